"""An existing vocabulary that gives new data its rows: ``--vocabulary DIR``, or ``--extend DIR`` to add to it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.keys import RULES, mix_all
from cachedlrm.data.raw.samples import Format
from cachedlrm.data.vocabulary import (
    PREPARED_FILE,
    VOCABULARY_FILE,
    Vocabulary,
    garbled,
    make_fingerprint,
    read_summary,
    read_vocabulary,
)
from cachedlrm.prepare.options import PrepareOptions
from cachedlrm.prepare.spool import read_numbers
from cachedlrm.prepare.vocabulary import Part, UInt64s

_CHUNK = 1 << 20
_UINT64 = np.dtype(np.uint64)
_FULLEST = 0.6  # of a hash table, on average over ranges of keys
_COLUMN_SOURCES = ("parquet", "csv")


@dataclass(frozen=True)
class BaseTable:
    """The values of one table in ``vocabulary.npy``.

    Attributes:
        path: of the file.
        offset: of its first number, in bytes.
        first: number of the table's row 0 in it.
        num_rows: of the table, with row 0, which stands for no value.
    """

    path: Path
    offset: int
    first: int
    num_rows: int

    def chunks(self, start: int = 0) -> Iterator[tuple[int, UInt64s]]:
        """Keys of the rows from ``start`` on, in pieces, each with its first row."""
        for row in range(start, self.num_rows, _CHUNK):
            begin, end = self.first + row, self.first + min(row + _CHUNK, self.num_rows)
            yield row, read_numbers(self.path, _UINT64, begin, end, self.offset)

    def write_parts(self, folder: Path, max_slots: int) -> list[Part]:
        """The rows of all values, in ranges of mixed keys that a hash table of ``max_slots`` holds."""
        num_parts = max(1, -(-self.num_rows // max(1, int(_FULLEST * max_slots))))
        width, parts = 2**64 // num_parts, []
        for number in range(num_parts):
            low = number * width
            high = 2**64 - 1 if number == num_parts - 1 else low + width - 1
            part = Part(low, high, folder / f"base_{number:04}_keys.bin", folder / f"base_{number:04}_rows.bin")
            with part.keys.open("wb") as keys_file, part.rows.open("wb") as rows_file:
                for row, keys in self.chunks(start=1):
                    mixed = mix_all(keys)
                    inside = np.flatnonzero((mixed >= np.uint64(low)) & (mixed <= np.uint64(high)))
                    keys_file.write(mixed[inside].data)
                    rows_file.write((inside + row).astype(np.int32).data)
            parts.append(part)
        return parts

    def copy_keys(self, path: Path) -> None:
        """Writes the keys of all rows over the beginning of a file."""
        with path.open("r+b") as file:
            for _, keys in self.chunks():
                file.write(keys.data)


@dataclass(frozen=True)
class Base:
    """A vocabulary that new data is encoded under.

    Attributes:
        vocabulary: its fingerprint, and those of its own bases.
        max_ind_range: by which its values are folded.
        tables: by number.
        extends: whether new values get rows after those of the base.
    """

    vocabulary: Vocabulary
    max_ind_range: int
    tables: tuple[BaseTable, ...]
    extends: bool

    def vocabulary_with(self, fingerprint: str) -> Vocabulary:
        """The vocabulary of the result."""
        if fingerprint == self.vocabulary.fingerprint:
            return self.vocabulary
        return Vocabulary(fingerprint, (self.vocabulary.fingerprint, *self.vocabulary.bases))


def read_base(options: PrepareOptions, format_: Format) -> Base | None:
    """The base that ``--vocabulary`` or ``--extend`` names; None without them.

    Raises:
        UserError: it is no prepared data of this release, or of other columns.
    """
    folder = options.vocabulary or options.extend
    if folder is None:
        return None
    option = f"{'--vocabulary' if options.vocabulary else '--extend'} {shown(folder)}"
    summary = read_summary(folder)
    if summary is None:
        raise UserError(f"{option}: no {PREPARED_FILE} in it; name a folder that python -m cachedlrm.prepare wrote")
    if "vocabulary" not in summary or summary.get("command", {}).get("rules") != RULES:
        raise UserError(f"{option} was prepared by an earlier release; prepare its data again, and name that")
    try:
        command, names = summary["command"], [str(table["name"]) for table in summary["tables"]]
        rows, fold = [int(count) for count in summary["table_rows"]], int(command["max_ind_range"])
    except (KeyError, TypeError, ValueError) as error:
        raise garbled(folder / PREPARED_FILE) from error
    _check_same(option, command, format_)
    if options.max_ind_range not in (-1, fold):
        raise UserError(f"--max-ind-range {options.max_ind_range}: {option} has {fold}; leave it out")
    vocabulary = read_vocabulary(folder)
    assert vocabulary is not None
    tables = tuple(_tables(folder / VOCABULARY_FILE, rows))
    pieces = (keys.data for table in tables for _, keys in table.chunks())
    if make_fingerprint(names, rows, fold, pieces) != vocabulary.fingerprint:
        raise UserError(f"{option}: {VOCABULARY_FILE} is not what {PREPARED_FILE} says; prepare its data again")
    return Base(vocabulary, fold, tables, extends=options.extend is not None)


def _check_same(option: str, command: Mapping[str, Any], format_: Format) -> None:
    """A model of the base can be given the new data only if all columns mean the same.

    Raises:
        UserError: they do not.
    """
    source = command.get("source")
    if source != format_.name and not {source, format_.name} <= set(_COLUMN_SOURCES):
        raise UserError(f"{option} was prepared from {source} and this is {format_.name}; values are not the same")
    ours = {
        "--sparse": list(format_.table_names),
        "--dense": list(format_.dense_names),
        "--log-dense": format_.settings.get("log_dense"),
    }
    theirs = {
        "--sparse": command.get("sparse"),
        "--dense": command.get("dense"),
        "--log-dense": command.get("log_dense"),
    }
    for name, value in ours.items():
        if value != theirs[name]:
            raise UserError(f"{option} was prepared with {name} {_words(theirs[name])}, not {_words(value)}; give that")


def _words(value: object) -> str:
    return shown(",".join(map(str, value)) or "none" if isinstance(value, list) else json.dumps(value))


def _tables(path: Path, rows: list[int]) -> Iterator[BaseTable]:
    try:
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
        fits = keys.shape == (sum(rows),) and keys.dtype == _UINT64
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{shown(path)} cannot be read; prepare the data again") from error
    if not fits:
        raise UserError(f"{shown(path)} is not that of {PREPARED_FILE} beside it; prepare the data again")
    first, offset = 0, path.stat().st_size - keys.nbytes
    for num_rows in rows:
        yield BaseTable(path, offset, first, num_rows)
        first += num_rows
