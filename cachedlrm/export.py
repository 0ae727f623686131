"""``python -m cachedlrm.export RUN_DIR OUT.safetensors``: a run's parameters under the reference's names.

``emb_l.T.weight`` [rows, dim] of each table, ``bot_l.N.weight``, ``bot_l.N.bias``, ``top_l.N.weight`` and
``top_l.N.bias``; learned pooling weights are ``v_W_l.T`` [rows], quotient and remainder tables ``emb_l.T.weight_q`` and
``emb_l.T.weight_r``, mixed-dimension tables ``emb_l.T.embs.weight`` with ``emb_l.T.proj.weight``. With
``--with-optimizer-state`` each table has its ``state`` [rows, state width] too. Tables are written piece by piece, so
they may be larger than memory.
"""

import sys

from cachedlrm.program import quit_on_signals, run_program

if __name__ == "__main__":
    quit_on_signals()

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cachedlrm.architecture import Architecture, build_architecture
from cachedlrm.command_line import load_options
from cachedlrm.config import Options
from cachedlrm.errors import UserError
from cachedlrm.final_state import FinalState, load_final_state
from cachedlrm.formats.piecewise import PiecewiseTensor
from cachedlrm.formats.tensor_file import TensorSpec, write_tensors
from cachedlrm.formats.whole_file import cannot_write
from cachedlrm.full_tables import FullTable, TouchedRecords, full_tables
from cachedlrm.initial import initial_parameters
from cachedlrm.output import Output
from cachedlrm.run_directory import LOCK_FILE, RUN_FILES

_USAGE = "usage: python -m cachedlrm.export RUN_DIR OUT.safetensors [--with-optimizer-state]"


def export(run_dir: Path, out: Path, with_optimizer_state: bool = False) -> None:
    """Writes all parameters of a finished run.

    Args:
        run_dir: the run's directory.
        out: safetensors file to write.
        with_optimizer_state: also write the rows' optimizer state.

    Raises:
        UserError: the run did not end, its files are damaged, or ``out`` cannot be written.
    """
    target = _target(out, run_dir)
    options = load_options(run_dir / "config.toml")
    architecture = _architecture(options, run_dir / "config.toml")
    state = load_final_state(run_dir, options, architecture)
    tables = _exported_tables(options, architecture, state)
    tensors: dict[str, PiecewiseTensor] = {}
    for table in tables:
        tensors |= table.parameters()
        layout = table.layout
        if with_optimizer_state and layout.state_width:
            state_columns = slice(layout.parameter_width, layout.width)
            tensors[table.name.replace("weight", "state")] = table.tensor(state_columns)
    specs: dict[str, TensorSpec] = {name: (np.dtype(np.float32), tensor.shape) for name, tensor in tensors.items()}
    specs |= {name: (array.dtype, array.shape) for name, array in state.dense.items()}

    def chunks() -> Iterator[NDArray[np.generic]]:
        for tensor in tensors.values():
            yield from tensor.pieces()
        yield from state.dense.values()

    write_tensors(target, specs, chunks())


def _target(out: Path, run_dir: Path) -> Path:
    """Where ``out`` leads through symbolic links, if a file may be written there.

    Writing replaces what is there: a device, or the very run that is exported, would be lost.
    """
    try:
        target, own = out.resolve(), run_dir.resolve()
        mode = target.stat().st_mode if target.exists() else stat.S_IFREG
    except OSError as error:
        raise cannot_write(out, error) from error
    except RuntimeError as error:  # a loop of symbolic links
        raise UserError(f"OUT {out} is a symbolic link that leads to itself; name another file") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"OUT {out} is a directory; name a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"OUT {out} is not a regular file; name another one")
    if target.parent == own and target.name in (*RUN_FILES, LOCK_FILE):
        raise UserError(f"OUT {out} is {target.name} of the run itself; name another file")
    if not target.parent.is_dir():
        raise UserError(f"OUT {out}: {target.parent} is not a folder; make it or name another file")
    return target


def _architecture(options: Options, config: Path) -> Architecture:
    model, optimizer = options.model, options.optimisation.optimizer
    if None in (model.arch_embedding_size, model.arch_sparse_feature_size, model.arch_mlp_bot, model.arch_mlp_top):
        raise UserError(f"{config} lacks an architecture option (arch-...); put back the one that the run wrote")
    if optimizer is None:
        raise UserError(f"{config} lacks optimizer; put back the one that the run wrote")
    try:
        return build_architecture(model, optimizer)
    except UserError as error:
        raise UserError(f"{config}: {error}") from error


def _exported_tables(options: Options, architecture: Architecture, state: FinalState) -> list[FullTable]:
    """The tables of a run, group by group."""
    if all(group.rows is None for group in state.groups):
        return full_tables(architecture, state.groups)
    initial = initial_parameters(options, architecture, torch.device("cpu"))
    return full_tables(
        architecture,
        [
            group if group.rows is None else TouchedRecords(init, group.rows, group.records.__getitem__, layout.width)
            for init, group, layout in zip(initial.rows, state.groups, architecture.layouts, strict=True)
        ],
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(lambda _: _export(arguments), interrupted="interrupted; OUT is as it was before")


def _export(arguments: Sequence[str]) -> None:
    flags = [argument for argument in arguments if argument.startswith("-")]
    paths = [argument for argument in arguments if not argument.startswith("-")]
    if "-h" in flags or "--help" in flags:
        print(f"{_USAGE}\n\n{__doc__}", file=cast("TextIO", Output(sys.stdout)), flush=True)
        return
    unknown = [flag for flag in flags if flag != "--with-optimizer-state"]
    if unknown:
        raise UserError(f"unknown option {unknown[0]}; {_USAGE}")
    if len(paths) != 2:
        raise UserError(f"{len(paths)} paths given where 2 are needed; {_USAGE}")
    for name, path in zip(("RUN_DIR", "OUT"), paths, strict=True):
        if not path:  # usually a shell variable that is not set
            raise UserError(f"{name} is empty; {_USAGE}")
    export(Path(paths[0]), Path(paths[1]), with_optimizer_state=bool(flags))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
