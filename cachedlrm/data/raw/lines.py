"""Text files in blocks of whole lines: plain, gzip or zstd, told apart by their first bytes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.samples import BadLine, Block, Position, Samples, UnparsableError, bad_line
from cachedlrm.data.raw.text_kinds import UTF8_MARK, check_beginning, check_packing

Ends = NDArray[np.int64]

_SKIP_BYTES = 1 << 20
_LONGEST_LINE = 1 << 20
_LOOKED_AT = 1 << 16  # bytes of a file, before it is read
_NEWLINE = ord("\n")
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def last_line_end(text: bytes) -> int:
    """Where the last whole line of a text ends."""
    return text.rfind(b"\n") + 1


def read_blocks(
    path: Path, start: Position, block_bytes: int, last_end: Callable[[bytes], int] = last_line_end
) -> Iterator[Block]:
    """Blocks of whole lines. A compressed file is decompressed from its beginning, whatever ``start`` is.

    Args:
        path: the file.
        start: the beginning of a line.
        block_bytes: of each block, about.
        last_end: of a text that begins with a line, where its last whole line ends, or record of several lines.

    Raises:
        UserError: the file cannot be read, is cut off or garbled, or has a line of more than 1 MiB.
    """
    with reading(path), TextFile(path) as file:
        file.skip(start.offset)
        rest, place = b"", start
        while read := file.read(block_bytes):
            text = rest + read
            cut = last_end(text)
            text, rest = text[:cut], text[cut:]
            if len(rest) > _LONGEST_LINE:
                number = place.lines + text.count(b"\n") + 1
                raise UserError(f"{shown(path)}: line {number} is longer than 1 MiB; name a file with a sample a line")
            if text:
                block = _block(path, place, text, file.share())
                place = block.end
                yield block
        if rest:
            yield _block(path, place, rest, 1.0)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns errors of the operating system and of Arrow's decompression into a `UserError`."""
    try:
        yield
    except OSError as error:  # Arrow's errors of decompression too
        reason = str(error.strerror or error).splitlines()[0].lower()
        raise UserError(f"{shown(path)} cannot be read: {shown(reason)}; change that, or name another file") from error


class TextFile:
    """A file's text, decompressed.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read; from `read` and `skip` also: it is cut off or garbled.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pa.OSFile(os.fsencode(path))  # unlike Python's files it may be left to the garbage collector
        self._size: int = max(1, self._file.size())
        start = self._file.read(4)
        self._file.seek(0)
        self._text = self._file
        for magic, compression in _COMPRESSIONS.items():
            if start.startswith(magic):
                self._text = pa.CompressedInputStream(self._file, compression)

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer at the end."""
        text: bytes = self._text.read(count)
        return text

    def skip(self, count: int) -> None:
        """Skips ``count`` bytes; only compressed text has to be read for that.

        Raises:
            UserError: the text is shorter.
        """
        if self._text is self._file:
            self._file.seek(count)
            return
        while count:
            piece = len(self.read(min(count, _SKIP_BYTES)))
            if not piece:
                raise UserError(f"{shown(self._path)} is shorter than when it was begun; use another --out")
            count -= piece

    @property
    def is_compressed(self) -> bool:
        """Whether text can only be read from the file's beginning on."""
        return self._text is not self._file

    def share(self) -> float:
        """The share of the file's bytes that was read."""
        place: int = self._file.tell()
        return place / self._size

    def close(self) -> None:
        """Closes the file."""
        self._text.close()
        self._file.close()

    def __enter__(self) -> "TextFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _block(path: Path, start: Position, text: bytes, share: float) -> Block:
    num_lines = text.count(b"\n") + (not text.endswith(b"\n"))
    return Block(path, start, Position(start.offset + len(text), start.lines + num_lines), text, share)


def first_line(path: Path) -> bytes:
    """The first line of a file, or its first mebibyte.

    Raises:
        UserError: the file cannot be read.
    """
    with reading(path), TextFile(path) as file:
        return file.read(_LONGEST_LINE).partition(b"\n")[0]


class LineTable:
    """Arrow's CSV reader for lines of fixed columns.

    Args:
        types: of the columns, by name; an empty field is an empty byte string, or null in any other type.
        delimiter: between fields.
        quoted: whether fields may be in double quotes.
        kept: names of the columns to convert; None: all.
        nulls: texts that stand for a missing value; with an empty tuple, texts are never missing.
    """

    def __init__(
        self,
        types: dict[str, pa.DataType],
        delimiter: str,
        *,
        quoted: bool,
        kept: Sequence[str] | None = None,
        nulls: tuple[str, ...] = (),
    ) -> None:
        self._names = list(types)
        self._parse = pyarrow.csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            ignore_empty_lines=False,
        )
        self._convert = pyarrow.csv.ConvertOptions(
            check_utf8=False,
            column_types=types,
            include_columns=kept,
            null_values=["", *nulls],
            strings_can_be_null=bool(nulls),
            quoted_strings_can_be_null=False,
        )

    def read(self, text: bytes, num_lines: int) -> pa.Table:
        """The lines of a text, or its records where they have several, as a table of one chunk.

        Raises:
            UnparsableError: a line has more or fewer fields, or one of another type.
        """
        # One thread, as blocks are parsed side by side, and one block, so that no line straddles two.
        options = pyarrow.csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=self._names)
        try:
            table = pyarrow.csv.read_csv(pa.BufferReader(text), options, self._parse, self._convert)
        except pa.ArrowInvalid as error:
            raise UnparsableError(str(error).splitlines()[0]) from error
        if len(table) != num_lines:  # carriage returns and quotes may hide or make line ends
            raise UnparsableError("the line holds several line ends, or half of a pair of quotes")
        return table.combine_chunks()


class TextFormat(ABC):
    """A `Format` of text files with a sample in each line.

    Args:
        block_bytes: of text in a block, about.
    """

    line = "line"
    name: str
    dense_names: tuple[str, ...]
    table_names: tuple[str, ...]
    has_labels = True
    key_dtype: np.dtype[Any]
    list_tables: frozenset[int] = frozenset()

    def __init__(self, block_bytes: int) -> None:
        self.settings: dict[str, Any] = {}
        self._block_bytes = block_bytes

    @abstractmethod
    def _parse(self, text: bytes, num_lines: int, path: Path) -> Samples:
        """Some lines of a file.

        Raises:
            UnparsableError: one of them is bad.
        """

    def _begin(self, path: Path, text: bytes) -> Position:
        """Where the first sample begins, of a file whose text begins with ``text``.

        Raises:
            UserError: the file is of another kind.
        """
        return Position(len(UTF8_MARK)) if text.startswith(UTF8_MARK) else Position()

    def _line_ends(self, text: bytes) -> Ends:
        """Where the lines of a text end, that begins with one."""
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE) + 1
        return ends if text.endswith(b"\n") else np.append(ends, len(text))

    def _last_end(self, text: bytes) -> int:
        return last_line_end(text)

    def check(self, path: Path) -> bool:
        """See `Format`; a file is of another kind if none of its first lines is a sample."""
        with reading(path):
            check_packing(path)
        block = next(self._blocks(path, Position(), _LOOKED_AT), None)
        if block is None:
            return False
        samples, bad = self.parse(block, skip_bad=True)
        if not len(samples):
            number, reason = bad[0]
            raise UserError(
                f"{shown(path)} holds no samples of {self.name}: line {number}: {reason}; leave the file out, or name "
                "another one"
            )
        return True

    def blocks(self, path: Path, start: Position) -> Iterator[Block]:
        """See `Format`; blocks begin with a line."""
        return self._blocks(path, start, self._block_bytes)

    def _blocks(self, path: Path, start: Position, block_bytes: int) -> Iterator[Block]:
        with reading(path), TextFile(path) as file:
            text = file.read(_LONGEST_LINE)
        check_beginning(path, text)
        begin = self._begin(path, text)
        return read_blocks(path, begin if start == Position() else start, block_bytes, self._last_end)

    def parse(self, block: Block, skip_bad: bool) -> tuple[Samples, list[BadLine]]:
        """See `Format`. If a block does not parse, its halves are tried, down to the bad lines.

        So one parser decides which lines are good, at the full rate if all of them are.
        """
        good: list[Samples] = []
        bad: list[BadLine] = []
        for part in self._parts(block):
            if isinstance(part, Samples):
                good.append(part)
            elif skip_bad:
                bad.append(part)
            else:
                raise bad_line(self, block.path, part)
        return Samples.joined(good) if good else Samples.none(self), bad

    def _parts(self, block: Block) -> Iterator[Samples | BadLine]:
        text: bytes = block.content
        if b'"' not in text:  # every line end ends a line
            num_lines = text.count(b"\n") + (not text.endswith(b"\n"))
            with suppress(UnparsableError):
                yield self._parse(text, num_lines, block.path)
                return
        yield from self._halves(block, self._line_ends(text), 0)

    def _halves(self, block: Block, ends: Ends, begin: int) -> Iterator[Samples | BadLine]:
        """Of the lines that end at ``ends``, the first of which begins at ``begin``."""
        text: bytes = block.content[begin : ends[-1]]
        try:
            yield self._parse(text, len(ends), block.path)
            return
        except UnparsableError as error:
            if len(ends) == 1:
                yield BadLine(block.start.lines + block.content.count(b"\n", 0, begin) + 1, str(error))
                return
        middle = len(ends) // 2
        yield from self._halves(block, ends[:middle], begin)
        yield from self._halves(block, ends[middle:], int(ends[middle - 1]))


def labels_of(column: pa.Array) -> NDArray[np.int32]:
    """Labels [n].

    Raises:
        UnparsableError: one is neither 0 nor 1.
    """
    labels: NDArray[np.int32] = column.fill_null(-1).to_numpy(zero_copy_only=False)
    if ((labels != 0) & (labels != 1)).any():
        raise UnparsableError("the label is neither 0 nor 1")
    return labels
