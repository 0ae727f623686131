"""Text files in blocks of whole lines: plain, gzip or zstd, told apart by their first bytes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

_SKIP_BYTES = 1 << 20
_LONGEST_LINE = 1 << 20
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


def read_blocks(path: Path, start: Position, block_bytes: int) -> Iterator[Block]:
    """Blocks of whole lines. A compressed file is decompressed from its beginning, whatever ``start`` is.

    Args:
        path: the file.
        start: the beginning of a line.
        block_bytes: of each block, about.

    Raises:
        UserError: the file cannot be read, is cut off or garbled, or has a line of more than 1 MiB.
    """
    with reading(path), TextFile(path) as file:
        file.skip(start.offset)
        rest, place = b"", start
        while read := file.read(block_bytes):
            text = rest + read
            cut = text.rfind(b"\n") + 1
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


class LineTable:
    """Arrow's CSV reader for lines of fixed columns.

    Args:
        types: of the columns, by name; an empty field is an empty byte string, or null in any other type.
        delimiter: between fields.
        quoted: whether fields may be in double quotes.
    """

    def __init__(self, types: dict[str, pa.DataType], delimiter: str, quoted: bool) -> None:
        self._names = list(types)
        self._parse = pyarrow.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoted else False, ignore_empty_lines=False
        )
        self._convert = pyarrow.csv.ConvertOptions(
            check_utf8=False, column_types=types, null_values=[""], strings_can_be_null=False
        )

    def read(self, text: bytes, num_lines: int) -> pa.Table:
        """The lines of a text as a table of one chunk.

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
    key_dtype: np.dtype[Any]

    def __init__(self, block_bytes: int) -> None:
        self.settings: dict[str, Any] = {}
        self._block_bytes = block_bytes

    @abstractmethod
    def _parse(self, text: bytes, num_lines: int) -> Samples:
        """Some lines.

        Raises:
            UnparsableError: one of them is bad.
        """

    def blocks(self, path: Path, start: Position) -> Iterator[Block]:
        """See `Format`; blocks begin with a line."""
        return read_blocks(path, start, self._block_bytes)

    def parse(self, block: Block, skip_bad: bool) -> tuple[Samples, list[BadLine]]:
        """See `Format`. If a block does not parse, its halves are tried, down to the bad lines.

        So one parser decides which lines are good, at the full rate if all of them are.
        """
        good: list[Samples] = []
        bad: list[BadLine] = []
        for part in _parse_part(block.content, block.start.lines + 1, self._parse):
            if isinstance(part, Samples):
                good.append(part)
            elif skip_bad:
                bad.append(part)
            else:
                raise bad_line(self, block.path, part)
        return Samples.joined(good) if good else Samples.none(self), bad


def _parse_part(text: bytes, first: int, parse: Callable[[bytes, int], Samples]) -> Iterator[Samples | BadLine]:
    num_lines = text.count(b"\n") + (not text.endswith(b"\n"))
    try:
        yield parse(text, num_lines)
        return
    except UnparsableError as error:
        if num_lines == 1:
            yield BadLine(first, str(error))
            return
    middle = text.find(b"\n", len(text) // 2, len(text) - 1) + 1 or text.rfind(b"\n", 0, len(text) // 2) + 1
    yield from _parse_part(text[:middle], first, parse)
    yield from _parse_part(text[middle:], first + text.count(b"\n", 0, middle), parse)


def labels_of(column: pa.Array) -> NDArray[np.int32]:
    """Labels [n].

    Raises:
        UnparsableError: one is neither 0 nor 1.
    """
    labels: NDArray[np.int32] = column.fill_null(-1).to_numpy(zero_copy_only=False)
    if ((labels != 0) & (labels != 1)).any():
        raise UnparsableError("the label is neither 0 nor 1")
    return labels
