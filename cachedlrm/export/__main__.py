"""``python -m cachedlrm.export RUN_DIR OUT``: a run's parameters, for others to go on with.

With ``--format safetensors``, the default, OUT is a file with the reference's names:
``emb_l.T.weight`` [rows, dim] of each table, ``bot_l.N.weight``, ``bot_l.N.bias``, ``top_l.N.weight`` and
``top_l.N.bias``; learned pooling weights are ``v_W_l.T`` [rows], quotient and remainder tables ``emb_l.T.weight_q`` and
``emb_l.T.weight_r``, mixed-dimension tables ``emb_l.T.embs.weight`` with ``emb_l.T.proj.weight``. With
``--with-optimizer-state`` each table has its ``state`` [rows, state width] too.

With ``--format torchrec`` OUT is a new folder that TorchRec's sharded EmbeddingBagCollection and its DLRM load through
torch.distributed.checkpoint; docs/hand_over.md trains on with it.

Tables are written piece by piece, so they may be larger than memory.
"""

import sys

from cachedlrm.base.program import end_program, run_program, start_program

if __name__ == "__main__":
    start_program()

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write, without_links, writable_file
from cachedlrm.export.final_state import FinalState, load_final_state
from cachedlrm.export.formats.piecewise import PiecewiseTensor
from cachedlrm.export.formats.safetensors_file import BFLOAT16, TensorSpec, write_tensors
from cachedlrm.export.formats.torchrec import check_torchrec, write_torchrec
from cachedlrm.export.full_tables import FullTable, Records, TouchedRecords, full_tables
from cachedlrm.export.started import untouched_rows
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.parsing import parse
from cachedlrm.options.profiles import load_resolved
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import LOCK_FILE, RUN_FILES
from cachedlrm.options.types import Flag, GivenPath
from cachedlrm.store.environment import VOCABULARY
from cachedlrm.store.packing import packings

_KEPT = {"fp32": np.dtype(np.float32), "bf16": BFLOAT16, "fp16": np.dtype(np.float16)}

_HELP = """Write all parameters of a run, for others to go on with.

Example: python -m cachedlrm.export runs/A model.safetensors
"""


def export(
    run_dir: Path, out: Path, *, with_optimizer_state: bool = False, to_torchrec: bool = False, as_kept: bool = False
) -> None:
    """Writes all parameters of a finished run.

    Args:
        run_dir: the run's directory.
        out: safetensors file to write; for TorchRec a folder to make.
        with_optimizer_state: also write the rows' optimizer state.
        to_torchrec: write what TorchRec loads.
        as_kept: write rows in the floats that the run kept them in, not in 32 bits.

    Raises:
        UserError: the run did not end, its files are damaged, or ``out`` cannot be written.
    """
    target = _folder(out) if to_torchrec else writable_file(out, "OUT", [run_dir], (*RUN_FILES, LOCK_FILE))
    options = load_resolved(run_dir / "config.toml")
    architecture = _architecture(options, run_dir / "config.toml")
    if to_torchrec:
        if as_kept:
            raise UserError("--as-kept is for --format safetensors; for TorchRec rows are written in 32 bits: drop it")
        check_torchrec(architecture, with_optimizer_state)
    state = load_final_state(run_dir, options, architecture)
    tables = _exported_tables(options, architecture, state)
    if to_torchrec:
        write_torchrec(
            target,
            options,
            architecture,
            tables,
            state.dense,
            with_optimizer_state=with_optimizer_state,
            vocabulary=None if state.vocabulary is None else state.vocabulary.fingerprint,
        )
    else:
        _write_reference(target, tables, state, with_optimizer_state=with_optimizer_state, as_kept=as_kept)


def _write_reference(
    target: Path, tables: Sequence[FullTable], state: FinalState, *, with_optimizer_state: bool, as_kept: bool
) -> None:
    """One file, under the reference's names."""
    tensors: dict[str, PiecewiseTensor] = {}
    specs: dict[str, TensorSpec] = {}
    for table in tables:
        layout = table.layout
        of_table = table.parameters(as_kept)
        dtypes = dict.fromkeys(of_table, layout.row_dtype)
        if with_optimizer_state and layout.state_width:
            name = table.name.replace("weight", "state")
            of_table[name] = table.tensor(slice(layout.parameter_width, layout.columns), as_kept)
            dtypes[name] = layout.state_dtype
        tensors |= of_table
        specs |= {name: (_KEPT[dtypes[name] if as_kept else "fp32"], one.shape) for name, one in of_table.items()}
    specs |= {name: (array.dtype, array.shape) for name, array in state.dense.items()}

    def chunks() -> Iterator[NDArray[np.generic]]:
        for tensor in tensors.values():
            yield from tensor.pieces()
        yield from state.dense.values()

    about = {} if state.vocabulary is None else {VOCABULARY: state.vocabulary.fingerprint}
    write_tensors(target, specs, chunks(), about)


def _folder(out: Path) -> Path:
    """``out``, if a folder can be made there or is there and empty."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"OUT {out} is there; for --format torchrec name a folder to make")
        parent = without_links(out).parent
        if not parent.is_dir():
            raise UserError(f"OUT {out}: {parent} is not a folder; make it or name another place")
    except OSError as error:
        raise cannot_write(out, error) from error
    except RuntimeError as error:  # a loop of symbolic links
        raise UserError(f"OUT {out} is a symbolic link that leads to itself; name another place") from error
    return out


def _architecture(options: Resolved, config: Path) -> Architecture:
    try:
        return build_architecture(options.model, options.optimisation)
    except UserError as error:
        raise UserError(f"{config}: {error}") from error


def _exported_tables(options: Resolved, architecture: Architecture, state: FinalState) -> list[FullTable]:
    """The tables of a run, group by group."""
    packing = packings(architecture.shapes, options.batches.numpy_rand_seed)
    inits = untouched_rows(options, state.beginnings, torch.device("cpu"))
    groups: list[Records] = []
    for one, init, saved, layout in zip(packing, inits, state.groups, architecture.layouts, strict=True):
        if saved.rows is None or init is None:
            groups.append(saved)
        else:
            groups.append(TouchedRecords(one.init(init), saved.rows, saved.between, layout.width))
    return full_tables(architecture, groups)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(
        lambda _: parse(arguments, "python -m cachedlrm.export", _HELP, _command)(),
        interrupted="interrupted; OUT is as it was before",
    )


def _command(
    run_dir: Annotated[GivenPath, Parameter(help="Directory of a run that ended.")],
    out: Annotated[GivenPath, Parameter(help="File to write; for torchrec a folder to make.")],
    /,
    *,
    format: Annotated[
        Literal["safetensors", "torchrec"],
        Parameter(
            help="safetensors: one file, under facebookresearch/dlrm's names. torchrec: a folder that TorchRec loads."
        ),
    ] = "safetensors",
    with_optimizer_state: Annotated[Flag, Parameter(help="Write the optimizer state of the rows, too.")] = False,
    as_kept: Annotated[
        Flag, Parameter(help="Write rows in the floats of the run's --row-dtype and --row-state-dtype, not in 32 bits.")
    ] = False,
) -> Callable[[], None]:
    return partial(
        export,
        run_dir,
        out,
        with_optimizer_state=with_optimizer_state,
        to_torchrec=format == "torchrec",
        as_kept=as_kept,
    )


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
