"""Types common to the parsers of raw files: a block, its samples and its bad lines."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown

Keys = NDArray[np.unsignedinteger[Any]]


class KeyLists(NamedTuple):
    """Lists of keys, one of each of n samples.

    Attributes:
        keys: [L] unsigned, list after list.
        sizes: [n] int32.
    """

    keys: Keys
    sizes: NDArray[np.int32]


@dataclass(frozen=True)
class Samples:
    """n samples with raw categories: a *key* is a category as a number, before a vocabulary gives it a row.

    Attributes:
        dense: [n, num_dense] float32.
        labels: [n] int32, 0 or 1.
        keys: [num_tables, n] unsigned; column after column, as they are counted and mapped.
        lists: of the tables whose columns hold lists, by number; their rows of ``keys`` mean nothing.
    """

    dense: NDArray[np.float32]
    labels: NDArray[np.int32]
    keys: Keys
    lists: Mapping[int, KeyLists] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, chosen: NDArray[np.bool_]) -> "Samples":
        """Some of them, by a mask [n]."""
        lists = {
            table: KeyLists(keys[np.repeat(chosen, sizes)], sizes[chosen])
            for table, (keys, sizes) in self.lists.items()
        }
        return Samples(self.dense[chosen], self.labels[chosen], np.ascontiguousarray(self.keys[:, chosen]), lists)

    @classmethod
    def joined(cls, parts: "list[Samples]") -> "Samples":
        """One after the other; at least one part."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.dense for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.keys for part in parts], axis=1),
        )

    @classmethod
    def none(cls, format_: "Format") -> "Samples":
        """No samples."""
        num_dense, num_tables = len(format_.dense_names), len(format_.table_names)
        keys = np.empty((num_tables, 0), format_.key_dtype)
        return cls(np.empty((0, num_dense), np.float32), np.empty(0, np.int32), keys)


class Position(NamedTuple):
    """A place in a file: bytes of (decompressed) text or rows of a table, and lines or rows, before it."""

    offset: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Block:
    """A piece of a file.

    Attributes:
        path: of the file.
        start: where it begins.
        end: where the next one does.
        content: bytes of whole lines, or a table of the engine's.
        share: of the file that is read when the block is, for progress.
    """

    path: Path
    start: Position
    end: Position
    content: Any
    share: float

    def with_content(self, content: Any) -> "Block":
        """The same block with other content, or without (None)."""
        return replace(self, content=content)


class BadLine(NamedTuple):
    """A line, or row of a table, that does not parse.

    Attributes:
        number: from 1.
        reason: for the user.
    """

    number: int
    reason: str


class UnparsableError(Exception):
    """Something in a block does not parse; the message says what."""


class Format(Protocol):
    """Reads one kind of raw files.

    Attributes:
        name: as on the command line.
        line: what a record is called in messages: ``line`` or ``row``.
        dense_names: of the dense features.
        table_names: of the categories.
        has_labels: whether there are labels; without them all are 0.
        key_dtype: of their keys.
        list_tables: numbers of those that hold a list of categories in each sample.
        settings: what else decides the samples, as JSON has it.
    """

    name: str
    line: str
    dense_names: tuple[str, ...]
    table_names: tuple[str, ...]
    has_labels: bool
    key_dtype: np.dtype[Any]
    list_tables: frozenset[int]
    settings: dict[str, Any]

    def check(self, path: Path) -> bool:
        """Whether a file holds any samples; looks at its beginning, before anything is read.

        Raises:
            UserError: the file cannot be read, or is of another kind; says what it is and what to do.
        """
        ...

    def blocks(self, path: Path, start: Position) -> Iterator[Block]:
        """The file's blocks from a place on where a block may begin.

        Raises:
            UserError: the file cannot be read, or is of another kind.
        """
        ...

    def parse(self, block: Block, skip_bad: bool) -> tuple[Samples, list[BadLine]]:
        """The samples of a block, and its bad lines; thread-safe.

        Raises:
            UserError: a line does not parse and is not to be skipped; names it.
        """
        ...


def bad_line(format_: Format, path: Path, line: BadLine) -> UserError:
    """The error for a bad line."""
    words = bad_line_words(format_, path, line)
    return UserError(f"{words}; correct it, or leave out such {format_.line}s with --skip-bad-lines")


def bad_line_words(format_: Format, path: Path, line: BadLine) -> str:
    """The place of a bad line, and the reason."""
    return f"{shown(path)}: {format_.line} {line.number}: {line.reason}"


def log_transform(values: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.float32]:
    """log(x + 1) of positive values, 0 of the others, with the bits of facebookresearch/dlrm.

    Its ``data_utils.py`` sets negative integers to 0; its ``dlrm_data_pytorch.py`` takes the logarithm in torch, whose
    last bit differs from numpy's for 3 % of the integers.
    """
    import torch  # noqa: PLC0415 - takes a second and 200 MB, which a mistake on the command line need not wait for

    return (torch.log(torch.from_numpy(np.maximum(values, 0)).to(torch.float32) + 1)).numpy()
