"""``python -m cachedlrm.export RUN_DIR OUT.safetensors``: a run's parameters under the reference's names.

``emb_l.T.weight`` [rows, dim] of each table, ``bot_l.N.weight``, ``bot_l.N.bias``, ``top_l.N.weight`` and
``top_l.N.bias``; learned pooling weights are ``v_W_l.T`` [rows], quotient and remainder tables ``emb_l.T.weight_q`` and
``emb_l.T.weight_r``, mixed-dimension tables ``emb_l.T.embs.weight`` with ``emb_l.T.proj.weight``. With
``--with-optimizer-state`` each table has its ``state`` [rows, state width] too. Tables are written piece by piece, so
they may be larger than memory.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cachedlrm.architecture import build_architecture
from cachedlrm.command_line import load_options
from cachedlrm.config import Options
from cachedlrm.errors import UserError
from cachedlrm.final_state import FILE_NAME, FinalState, SavedGroup, load_final_state
from cachedlrm.full_tables import FullTable, TouchedRecords, full_tables
from cachedlrm.initial import initial_parameters
from cachedlrm.model.tables import Table
from cachedlrm.piecewise import PiecewiseTensor
from cachedlrm.store.records import RecordLayout
from cachedlrm.tensor_file import TensorSpec, write_tensors

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
    options = load_options(run_dir / "config.toml")
    state = load_final_state(run_dir / FILE_NAME)
    tables = _exported_tables(options, state)
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

    write_tensors(out, specs, chunks())


def _exported_tables(options: Options, state: FinalState) -> list[FullTable]:
    """The tables of a run, group by group."""
    model, optimizer = options.model, options.optimisation.optimizer
    if None in (model.arch_embedding_size, model.arch_sparse_feature_size, model.arch_mlp_bot, model.arch_mlp_top):
        raise UserError("config.toml lacks an architecture option (arch-...); it must be the one the run wrote")
    if optimizer is None:
        raise UserError("config.toml lacks optimizer; it must be the one the run wrote")
    architecture = build_architecture(model, optimizer)
    if len(state.groups) != len(architecture.groups) or not all(
        map(_fits, state.groups, architecture.groups, architecture.layouts)
    ):
        raise UserError(f"{FILE_NAME} and config.toml are of different runs; export from an unchanged run directory")
    if all(group.rows is None for group in state.groups):
        return full_tables(architecture, state.groups)
    initial = initial_parameters(options, architecture, torch.device("cpu"))
    return full_tables(
        architecture,
        [
            group if group.rows is None else TouchedRecords(init, group.rows, group.records)
            for init, group in zip(initial.rows, state.groups, strict=True)
        ],
    )


def _fits(saved: SavedGroup, tables: Sequence[Table], layout: RecordLayout) -> bool:
    """Whether saved records are those of a group of tables."""
    num_rows = len(saved.rows) if saved.rows is not None else sum(table.num_rows for table in tables)
    return saved.shape == (num_rows, layout.width)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    paths = [Path(argument) for argument in arguments if not argument.startswith("-")]
    if flags in (["-h"], ["--help"]):
        print(f"{_USAGE}\n\n{__doc__}")
        return 0
    try:
        unknown = [flag for flag in flags if flag != "--with-optimizer-state"]
        if unknown:
            raise UserError(f"unknown option {unknown[0]}; {_USAGE}")
        if len(paths) != 2:
            raise UserError(f"{len(paths)} paths given where 2 are needed; {_USAGE}")
        export(paths[0], paths[1], with_optimizer_state=bool(flags))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
