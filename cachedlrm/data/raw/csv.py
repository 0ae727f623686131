"""Text with delimiters whose columns the user names: CSV with a header in each file, or with names given.

Quoting is RFC 4180's: a field in double quotes may hold delimiters, line ends and, written twice, double quotes. An
empty field is a missing value, an empty one in quotes an empty text.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.columns import KEY_DTYPE, Schema, missing_column
from cachedlrm.data.raw.lines import Ends, LineTable, TextFormat, last_line_end
from cachedlrm.data.raw.samples import Position, Samples, UnparsableError
from cachedlrm.data.raw.text_kinds import UTF8_MARK

_QUOTE = b'"'


@dataclass(frozen=True)
class Dialect:
    """How the files are written.

    Attributes:
        delimiter: one character of ASCII.
        columns: names of all columns, of files without a header; None: each file's first line has them.
        nulls: texts that stand for a missing value, beside an empty field.
    """

    delimiter: str = ","
    columns: tuple[str, ...] | None = None
    nulls: tuple[str, ...] = ()


class Csv(TextFormat):
    """A `Format`; the columns of its files may be in different orders.

    Args:
        schema: which columns are what.
        dialect: how they are written.
        block_bytes: of text in a block, about.
    """

    name = "csv"
    key_dtype = KEY_DTYPE

    def __init__(self, schema: Schema, dialect: Dialect, block_bytes: int) -> None:
        super().__init__(block_bytes)
        self.dense_names, self.table_names = schema.dense, schema.sparse
        self.has_labels = bool(schema.label)
        self.settings = {"label": schema.label, "log_dense": schema.log_dense} | {
            "delimiter": dialect.delimiter,
            "columns": None if dialect.columns is None else list(dialect.columns),
            "nulls": list(dialect.nulls),
        }
        self._schema, self._dialect = schema, dialect
        self._files: dict[Path, _Columns] = {}  # written before a file's blocks are handed out

    def _begin(self, path: Path, text: bytes) -> Position:
        """After the header, if there is one."""
        mark = len(UTF8_MARK) if text.startswith(UTF8_MARK) else 0
        record = text[mark : mark + self._line_ends(text[mark:])[0]] if text[mark:] else b""
        names, given = _fields(record, self._dialect.delimiter), self._dialect.columns
        if len(names) == 0 and len(record) > 2:
            raise UserError(f"{shown(path)}: line 1 is longer than a line is, or has a quote that nothing closes")
        if given is not None:
            if tuple(names) == given:
                raise UserError(
                    f"{shown(path)}: line 1 holds the names in --columns, so it is a header; drop --columns"
                )
            names = list(given)
        elif not record:
            return Position()
        for option, name in self._schema.roles:
            if names.count(name) != 1:
                error = missing_column(option, name, shown(path), names)
                raise error if given is not None else UserError(f"{error}; {_header_advice(names, self._dialect)}")
        self._files[path] = _Columns(names, self._schema, self._dialect)
        if given is not None:
            return Position(mark)
        return Position(mark + len(record), record.count(b"\n"))

    def _last_end(self, text: bytes) -> int:
        if _QUOTE not in text:
            return last_line_end(text)
        ends = self._record_ends(text)
        return int(ends[-1]) if len(ends) else 0

    def _line_ends(self, text: bytes) -> Ends:
        if _QUOTE not in text:
            return super()._line_ends(text)
        ends = self._record_ends(text)
        return ends if len(ends) and ends[-1] == len(text) else np.append(ends, len(text))

    def _record_ends(self, text: bytes) -> Ends:
        ends = np.empty(text.count(b"\n"), np.int64)
        return ends[: _find_ends(np.frombuffer(text, np.uint8), ord(self._dialect.delimiter), ends)]

    def _parse(self, text: bytes, num_lines: int, path: Path) -> Samples:
        columns = self._files[path]
        try:
            samples, reasons = self._schema.samples(columns.read(text, num_lines), num_lines)
        except (UnparsableError, pa.ArrowInvalid) as error:
            raise UnparsableError(columns.what_is_wrong(text) if num_lines == 1 else "") from error
        if reasons:
            raise UnparsableError(shown(reasons[min(reasons)]))
        return samples


class _Columns:
    """The columns of one file.

    Args:
        names: of all of them, in order.
        schema: which of them are what.
        dialect: of the file.
    """

    def __init__(self, names: Sequence[str], schema: Schema, dialect: Dialect) -> None:
        self._names, self._schema, self._dialect = names, schema, dialect
        self._numbers = {name: str(names.index(name)) for name in schema.names}  # others may share a name
        texts = {schema.label, *schema.sparse}
        types = {
            str(number): pa.float64() if name in schema.dense and name not in texts else pa.binary()
            for number, name in enumerate(names)
        }
        kept, nulls = list(self._numbers.values()), ("", *dialect.nulls)
        self._table = LineTable(types, dialect.delimiter, quoted=True, kept=kept, nulls=nulls)

    def read(self, text: bytes, num_lines: int) -> dict[str, pa.Array]:
        """The columns that the schema names.

        Raises:
            UnparsableError: a line has more or fewer fields, or one that is no number.
        """
        table = self._table.read(text, num_lines)
        return {name: _one_chunk(table.column(number)) for name, number in self._numbers.items()}

    def what_is_wrong(self, line: bytes) -> str:
        """Why the parser refused a line."""
        fields = _fields(line, self._dialect.delimiter)
        if len(fields) != len(self._names):
            return (
                f"{len(fields)} fields between {self._dialect.delimiter!r} where {len(self._names)} columns are named"
            )
        for name in self._schema.dense:
            field = fields[self._names.index(name)]
            try:
                float("0" if field in ("", *self._dialect.nulls) else field)
            except ValueError:
                return f"{shown(name)} is '{shown(field[:40])}', which is no number"
        return "half of a pair of quotes, or a line end in the middle"


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _fields(record: bytes, delimiter: str) -> list[str]:
    """The fields of a record, as texts; none of one that is too long for a record."""
    text = io.StringIO(record.decode("utf-8", "backslashreplace"), newline="")
    try:
        return next(csv.reader(text, delimiter=delimiter), [])
    except csv.Error:
        return []


def _header_advice(names: Sequence[str], dialect: Dialect) -> str:
    if len(names) == 1:
        return f"say what is between the fields, which is {dialect.delimiter!r} so far, with --delimiter"
    return "of files without a header name all columns with --columns"


@numba.njit(cache=True, nogil=True)
def _find_ends(text: NDArray[np.uint8], delimiter: int, ends: NDArray[np.int64]) -> int:
    """Writes where records end, line ends within quotes left out, and returns their number.

    Args:
        text: begins with a record.
        delimiter: between fields.
        ends: to fill; as long as there are line ends.
    """
    at_start, inside, quote_inside = True, False, False  # of a field; of quotes; after a quote within them
    count = 0
    for place in range(len(text)):
        code = text[place]
        if inside and not quote_inside:
            quote_inside = code == 34
        elif inside and code == 34:
            quote_inside = False  # two for one
        else:
            inside = at_start and code == 34
            quote_inside = False
            if code == 10:
                ends[count] = place + 1
                count += 1
            at_start = code in (10, delimiter)
    return count
