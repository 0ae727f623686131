"""Parquet files whose columns the user names: one label, dense features, and categories."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.columns import KEY_DTYPE, Schema, check_type, is_list, missing_column, plain_type
from cachedlrm.data.raw.keys import is_text
from cachedlrm.data.raw.lines import reading
from cachedlrm.data.raw.samples import BadLine, Block, Position, Samples, bad_line

_BLOCK_ROWS = 1 << 15
_LEAST_ROWS = 1 << 6
_PROBED_ROWS = 1 << 8
READ_BYTES = 1 << 16
"""Read of a column at a time. Without it, pyarrow reads the columns of a row group whole, however large it is."""


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Turns errors of the operating system and of Arrow into a `UserError`."""
    try:
        with reading(path):
            yield
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{shown(path)} is not a Parquet file, or damaged: {shown(reason)}; write it again or leave it out"
        ) from error


def find_lists(path: Path, names: Sequence[str]) -> frozenset[str]:
    """Those of the columns that hold lists in a file.

    Raises:
        UserError: it is no such file.
    """
    with reading_parquet(path), _open(path) as file:
        return frozenset(field.name for field in file.schema_arrow if field.name in names and is_list(field.type))


class Parquet:
    """A `Format`.

    Args:
        schema: which columns are what.
        block_bytes: of a block's columns in memory, about.
    """

    name, line = "parquet", "row"
    key_dtype = KEY_DTYPE

    def __init__(self, schema: Schema, block_bytes: int = 16 << 20) -> None:
        self.dense_names, self.table_names = schema.dense, schema.sparse
        self.has_labels = bool(schema.label)
        self.settings: dict[str, Any] = {"label": schema.label, "log_dense": schema.log_dense}
        self.list_tables = frozenset(number for number, name in enumerate(schema.sparse) if name in schema.lists)
        if schema.lists:
            self.settings["lists"] = sorted(schema.lists)
        self._schema, self._block_bytes = schema, block_bytes

    def check(self, path: Path) -> bool:
        """See `Format`."""
        with reading_parquet(path), _open(path) as file:
            self._check_schema(path, file.schema_arrow)
            return bool(file.metadata.num_rows)

    def blocks(self, path: Path, start: Position) -> Iterator[Block]:
        """Rows of the file, row group by row group, from a row on."""
        with reading_parquet(path), _open(path) as file:
            self._check_schema(path, file.schema_arrow)
            yield from self._blocks(path, file, start.offset)

    def _blocks(self, path: Path, file: pyarrow.parquet.ParquetFile, start: int) -> Iterator[Block]:
        columns = list(self._schema.names)
        total = file.metadata.num_rows
        first = 0  # row of the row group
        for group in range(file.num_row_groups):
            place = first
            first += file.metadata.row_group(group).num_rows
            if first <= start:
                continue
            count = self._rows_of_a_block(file, group, columns)
            for rows in file.iter_batches(count, row_groups=[group], columns=columns, use_threads=False):
                end = place + len(rows)
                if end > start:
                    skipped = max(0, start - place)
                    begin = place + skipped
                    yield Block(path, Position(begin, begin), Position(end, end), rows.slice(skipped), end / total)
                place = end

    def _rows_of_a_block(self, file: pyarrow.parquet.ParquetFile, group: int, columns: list[str]) -> int:
        """As many as take about the bytes of a block, by the first rows: of texts the footer does not tell."""
        types = [file.schema_arrow.field(name).type for name in columns]
        if not any(is_list(kind) or is_text(plain_type(kind)) for kind in types):
            return _BLOCK_ROWS
        probe = next(file.iter_batches(_PROBED_ROWS, row_groups=[group], columns=columns, use_threads=False), None)
        if probe is None or not len(probe):
            return _BLOCK_ROWS
        count = self._block_bytes * len(probe) // max(1, int(probe.nbytes))
        return max(_LEAST_ROWS, min(_BLOCK_ROWS, count))

    def _check_schema(self, path: Path, schema: pa.Schema) -> None:
        for option, name in self._schema.roles:
            if schema.names.count(name) != 1:
                raise missing_column(option, name, shown(path), schema.names)
            kind = schema.field(name).type
            if option == "--sparse" and is_list(kind) != (name in self._schema.lists):
                other = "lists" if name in self._schema.lists else "one value a row"
                raise UserError(
                    f"{option} {shown(name)}: {shown(path)} has {shown(kind)} there, where the first file has {other}; "
                    "write all files in one way, or prepare them apart"
                )
            check_type(option, name, shown(path), kind.value_type if option == "--sparse" and is_list(kind) else kind)

    def parse(self, block: Block, skip_bad: bool) -> tuple[Samples, list[BadLine]]:
        """The samples of a block, and its bad rows."""
        rows: pa.RecordBatch = block.content
        samples, reasons = self._schema.samples({name: rows.column(name) for name in self._schema.names}, len(rows))
        bad = [BadLine(block.start.lines + index + 1, shown(reasons[index])) for index in sorted(reasons)]
        if not bad:
            return samples, bad
        if not skip_bad:
            raise bad_line(self, block.path, bad[0])
        good = np.ones(len(rows), bool)
        good[list(reasons)] = False
        return samples.where(good), bad


def _open(path: Path) -> pyarrow.parquet.ParquetFile:
    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES)
