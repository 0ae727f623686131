"""``python -m cachedlrm.export RUN_DIR OUT.safetensors``: a run's parameters under the reference's names.

``emb_l.T.weight`` [rows, dim] of each table, ``bot_l.N.weight``, ``bot_l.N.bias``, ``top_l.N.weight`` and
``top_l.N.bias``; with ``--with-optimizer-state`` also ``emb_l.T.state`` [rows, state width]. Tables are written piece
by piece, so they may be larger than memory.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedlrm.config import Options, load_options
from cachedlrm.data.batch import table_offsets
from cachedlrm.errors import UserError
from cachedlrm.final_state import FILE_NAME, FinalState, load_final_state
from cachedlrm.store.init import RowInit
from cachedlrm.store.records import RecordLayout
from cachedlrm.tensor_file import TensorSpec, write_tensors

_CHUNK_ROWS = 1 << 18
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
    tables = _Tables(options, state)
    columns = {"weight": (0, tables.layout.dim)}
    if with_optimizer_state and tables.layout.state_width:
        columns["state"] = (tables.layout.dim, tables.layout.width)
    specs: dict[str, TensorSpec] = {
        f"emb_l.{table}.{name}": (np.dtype(np.float32), (num_rows, last - first))
        for table, num_rows in enumerate(tables.table_rows)
        for name, (first, last) in columns.items()
    }
    specs |= {name: (tensor.dtype, tensor.shape) for name, tensor in state.dense.items()}

    def chunks() -> Iterator[NDArray[np.generic]]:
        for table in range(len(tables.table_rows)):
            for first, last in columns.values():
                for records in tables.records(table):
                    yield records[:, first:last]
        yield from state.dense.values()

    write_tensors(out, specs, chunks())


class _Tables:
    """The full tables of a run: initial records, overwritten where rows were touched."""

    def __init__(self, options: Options, state: FinalState) -> None:
        model, optimizer = options.model, options.optimisation.optimizer
        if model.arch_embedding_size is None or model.arch_sparse_feature_size is None or optimizer is None:
            raise UserError("config.toml lacks arch-embedding-size, arch-sparse-feature-size or optimizer")
        self.table_rows = model.arch_embedding_size
        self.layout = RecordLayout(model.arch_sparse_feature_size, optimizer)
        self._state = state
        self._init = RowInit(options.batches.numpy_rand_seed, self.table_rows, self.layout.dim)
        self._first_rows = table_offsets(self.table_rows)

    def records(self, table: int) -> Iterator[NDArray[np.float32]]:
        """The table's records in pieces of [n, width]."""
        for first in range(int(self._first_rows[table]), int(self._first_rows[table + 1]), _CHUNK_ROWS):
            last = min(first + _CHUNK_ROWS, int(self._first_rows[table + 1]))
            records = np.empty((last - first, self.layout.width), np.float32)
            self._init.fill(np.arange(first, last), records)
            rows, touched = self._state.touched(first, last)
            records[rows - first] = touched
            yield records


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
