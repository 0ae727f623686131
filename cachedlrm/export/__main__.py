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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write, writable_file
from cachedlrm.base.output import Output
from cachedlrm.export.final_state import FinalState, load_final_state
from cachedlrm.export.formats.piecewise import PiecewiseTensor
from cachedlrm.export.formats.safetensors_file import TensorSpec, write_tensors
from cachedlrm.export.formats.torchrec import check_torchrec, write_torchrec
from cachedlrm.export.full_tables import FullTable, TouchedRecords, full_tables
from cachedlrm.export.initial import initial_parameters
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.command_line import load_options
from cachedlrm.options.config import Options
from cachedlrm.options.run_files import LOCK_FILE, RUN_FILES

_USAGE = "usage: python -m cachedlrm.export RUN_DIR OUT [--format safetensors|torchrec] [--with-optimizer-state]"
_FORMATS = ("safetensors", "torchrec")


def export(run_dir: Path, out: Path, with_optimizer_state: bool = False, to_torchrec: bool = False) -> None:
    """Writes all parameters of a finished run.

    Args:
        run_dir: the run's directory.
        out: safetensors file to write; for TorchRec a folder to make.
        with_optimizer_state: also write the rows' optimizer state.
        to_torchrec: write what TorchRec loads.

    Raises:
        UserError: the run did not end, its files are damaged, or ``out`` cannot be written.
    """
    target = _folder(out) if to_torchrec else writable_file(out, "OUT", [run_dir], (*RUN_FILES, LOCK_FILE))
    options = load_options(run_dir / "config.toml")
    architecture = _architecture(options, run_dir / "config.toml")
    if to_torchrec:
        check_torchrec(architecture, with_optimizer_state)
    state = load_final_state(run_dir, options, architecture)
    tables = _exported_tables(options, architecture, state)
    if to_torchrec:
        write_torchrec(target, options, architecture, tables, state.dense, with_optimizer_state)
    else:
        _write_reference(target, tables, state, with_optimizer_state)


def _write_reference(target: Path, tables: Sequence[FullTable], state: FinalState, with_optimizer_state: bool) -> None:
    """One file, under the reference's names."""
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


def _folder(out: Path) -> Path:
    """``out``, if a folder can be made there or is there and empty."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"OUT {out} is there; for --format torchrec name a folder to make")
        if not out.resolve().parent.is_dir():
            raise UserError(f"OUT {out}: {out.resolve().parent} is not a folder; make it or name another place")
    except OSError as error:
        raise cannot_write(out, error) from error
    except RuntimeError as error:  # a loop of symbolic links
        raise UserError(f"OUT {out} is a symbolic link that leads to itself; name another place") from error
    return out


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
            group if group.rows is None else TouchedRecords(init, group.rows, group.between, layout.width)
            for init, group, layout in zip(initial.rows, state.groups, architecture.layouts, strict=True)
        ],
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(lambda _: _export(arguments), interrupted="interrupted; OUT is as it was before")


@dataclass(frozen=True)
class _Request:
    """What the command line asks for."""

    paths: tuple[str, ...]
    format: str = "safetensors"
    with_optimizer_state: bool = False
    help: bool = False


def _parse(arguments: Sequence[str]) -> _Request:
    """The command line; a later option goes before an earlier one."""
    paths: list[str] = []
    given: dict[str, str] = {}
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, is_joined, value = argument.partition("=")
        if not argument.startswith("-"):
            paths.append(argument)
        elif name == "--format":
            given["format"] = value if is_joined else left.pop(0) if left else ""
        elif argument in ("--with-optimizer-state", "-h", "--help"):
            given[argument] = ""
        else:
            raise UserError(f"unknown option {argument}; {_USAGE}")
    if given.get("format", "safetensors") not in _FORMATS:
        raise UserError(f"--format {given['format'] or 'lacks a value'}: choose {' or '.join(_FORMATS)}; {_USAGE}")
    return _Request(
        tuple(paths), given.get("format", "safetensors"), "--with-optimizer-state" in given,
        "-h" in given or "--help" in given,
    )  # fmt: skip


def _export(arguments: Sequence[str]) -> None:
    request = _parse(arguments)
    if request.help:
        print(f"{_USAGE}\n\n{__doc__}", file=cast("TextIO", Output(sys.stdout)), flush=True)
        return
    if len(request.paths) != 2:
        raise UserError(f"{len(request.paths)} paths given where 2 are needed; {_USAGE}")
    for name, path in zip(("RUN_DIR", "OUT"), request.paths, strict=True):
        if not path:  # usually a shell variable that is not set
            raise UserError(f"{name} is empty; {_USAGE}")
    run_dir, out = map(Path, request.paths)
    export(run_dir, out, request.with_optimizer_state, to_torchrec=request.format == "torchrec")


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
