"""Parquet files whose columns the user names: one label, dense features, and categories."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.keys import integer_keys, text_keys
from cachedlrm.data.raw.lines import reading
from cachedlrm.data.raw.samples import BadLine, Block, Position, Samples, bad_line, log_transform

_BLOCK_ROWS = 1 << 15


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


class Parquet:
    """A `Format`.

    Args:
        label: column of 0 and 1, in integers, floats or booleans.
        dense: columns of numbers; a missing one is 0.
        sparse: columns of integers, booleans or texts, of one value each.
        log_dense: whether dense features are transformed as Criteo's are.
    """

    name, line = "parquet", "row"
    key_dtype = np.dtype(np.uint64)

    def __init__(self, label: str, dense: Sequence[str], sparse: Sequence[str], log_dense: bool = False) -> None:
        self.dense_names, self.table_names = tuple(dense), tuple(sparse)
        self.settings = {"label": label, "log_dense": log_dense}
        self._label, self._log_dense = label, log_dense

    def blocks(self, path: Path, start: Position) -> Iterator[Block]:
        """Rows of the file, row group by row group, from a row on."""
        with reading_parquet(path), pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            self._check_schema(path, file.schema_arrow)
            yield from self._blocks(path, file, start.offset)

    def _blocks(self, path: Path, file: pyarrow.parquet.ParquetFile, start: int) -> Iterator[Block]:
        columns = list({self._label: None} | dict.fromkeys([*self.dense_names, *self.table_names]))
        total = file.metadata.num_rows
        first = 0  # row of the row group
        for group in range(file.num_row_groups):
            place = first
            first += file.metadata.row_group(group).num_rows
            if first <= start:
                continue
            for rows in file.iter_batches(_BLOCK_ROWS, row_groups=[group], columns=columns, use_threads=False):
                end = place + len(rows)
                if end > start:
                    skipped = max(0, start - place)
                    begin = place + skipped
                    yield Block(path, Position(begin, begin), Position(end, end), rows.slice(skipped), end / total)
                place = end

    def _check_schema(self, path: Path, schema: pa.Schema) -> None:
        options = [("--label", (self._label,)), ("--dense", self.dense_names), ("--sparse", self.table_names)]
        for option, names in options:
            for name in names:
                if name not in schema.names:
                    known = shown(", ".join(schema.names[:40]))
                    raise UserError(f"{option} {shown(name)}: {shown(path)} has no such column; there are {known}")
                kind = schema.field(name).type
                if not _is_usable(kind, option == "--sparse"):
                    wanted = "integers, booleans or texts" if option == "--sparse" else "numbers"
                    raise UserError(
                        f"{option} {shown(name)}: {shown(path)} has {shown(kind)} there where {wanted} are needed, one "
                        "a row; name another column or convert it"
                    )

    def parse(self, block: Block, skip_bad: bool) -> tuple[Samples, list[BadLine]]:
        """The samples of a block, and its bad rows."""
        rows: pa.RecordBatch = block.content
        labels = _floats(rows.column(self._label), np.nan)
        wrong = (labels != 0) & (labels != 1)
        reasons = dict.fromkeys(np.flatnonzero(wrong).tolist(), f"the label, {self._label}, is neither 0 nor 1")
        dense = np.empty((len(rows), len(self.dense_names)), np.float32)
        for column, name in enumerate(self.dense_names):
            with np.errstate(over="ignore"):
                dense[:, column] = _floats(rows.column(name), 0.0)
            for index in np.flatnonzero(~np.isfinite(dense[:, column])).tolist():
                reasons.setdefault(index, f"{name} is NaN, infinite, or more than a float32 holds")
        bad = [BadLine(block.start.lines + index + 1, shown(reasons[index])) for index in sorted(reasons)]
        if bad and not skip_bad:
            raise bad_line(self, block.path, bad[0])
        keys = np.empty((len(self.table_names), len(rows)), self.key_dtype)
        for number, name in enumerate(self.table_names):
            column = plain(rows.column(name))
            (text_keys if _is_text(column.type) else integer_keys)(column, keys[number])
        good = np.ones(len(rows), bool)
        good[list(reasons)] = False
        dense = log_transform(dense[good]) if self._log_dense else dense[good]
        return Samples(dense, labels[good].astype(np.int32), np.ascontiguousarray(keys[:, good])), bad


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _is_usable(kind: pa.DataType, sparse: bool) -> bool:
    if is_integer(kind):
        return True
    return _is_text(_values(kind)) if sparse else is_floating(kind)


def is_integer(kind: pa.DataType) -> bool:
    """Whether a column holds integers, or booleans."""
    return bool(pa.types.is_integer(_values(kind)) or pa.types.is_boolean(_values(kind)))


def is_floating(kind: pa.DataType) -> bool:
    """Whether a column holds floats."""
    return bool(pa.types.is_floating(_values(kind)))


def _values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def plain(column: pa.Array) -> pa.Array:
    """Values instead of a dictionary and indices into it."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _floats(column: pa.Array, missing: float) -> NDArray[np.float64]:
    floats: NDArray[np.float64] = plain(column).cast(pa.float64(), safe=False).fill_null(missing).to_numpy()
    return floats


def split_columns(option: str, text: str) -> tuple[str, ...]:
    """Names between commas.

    Raises:
        UserError: an empty one, or one that is there twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{option} {text}: names of different columns, joined by commas, are needed")
    return names
