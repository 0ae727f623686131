"""From a table's keys to its vocabulary and to the row of every lookup."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import give_back_freed_memory
from cachedlrm.data.raw.samples import Keys
from cachedlrm.prepare.base import Base, BaseTable
from cachedlrm.prepare.options import MOST_ROWS
from cachedlrm.prepare.spool import count_listed, keys_file, read_numbers, sizes_file
from cachedlrm.prepare.vocabulary import (
    Part,
    Ranking,
    build_map,
    count_keys,
    map_keys,
    write_keys_by_row,
)

ReadKeys = Callable[[], Iterable[tuple[float, Keys]]]
"""Reads a column once; pieces of it, each with the share of the column that ends with it."""

_CHUNK = 1 << 20
UINT64, INT64, INT32 = np.dtype(np.uint64), np.dtype(np.int64), np.dtype(np.int32)


@dataclass(frozen=True)
class FinishedTable:
    """A finished table in the working folder.

    Attributes:
        folder: with `counts` [num_rows] int64, `keys` [num_rows] uint64 and `rows` [all lookups] int32.
        num_rows: of the table, with row 0, which keys without a row of their own share.
        num_keys: different keys in the training samples.
        sizes: file with the lookups of each sample [all samples] int32; None: one each.
    """

    folder: Path
    num_rows: int
    num_keys: int
    sizes: Path | None = None

    def num_lookups(self, samples: range) -> int:
        """Of some samples."""
        return len(samples) if self.sizes is None else count_listed(self.sizes, samples.start, samples.stop)

    @property
    def counts(self) -> Path:
        return self.folder / "counts.bin"

    @property
    def keys(self) -> Path:
        return self.folder / "keys.bin"

    @property
    def rows(self) -> Path:
        return self.folder / "rows.bin"


@dataclass(frozen=True)
class TableBuilder:
    """Builds the tables of a spool.

    Attributes:
        folder: the working folder.
        key_dtype: of the spool's keys.
        num_train: samples whose keys are counted.
        num_samples: samples whose keys get rows.
        min_count: keys seen less often share row 0.
        max_slots: of a hash table.
        base: the vocabulary to encode under, and perhaps to add to; None: a new one is made.
        stop: set when the work is to be given up.
    """

    folder: Path
    key_dtype: np.dtype[Any]
    num_train: int
    num_samples: int
    min_count: int
    max_slots: int
    stop: threading.Event
    base: Base | None = None

    def build(self, number: int, name: str, done: Callable[[float], None]) -> FinishedTable:
        """Builds a table, or finds it built by an earlier process.

        Args:
            number: of the table.
            name: for messages.
            done: takes the share of the work that is done.

        Raises:
            UserError: more different keys than an int32 can number.
            KeyboardInterrupt: the work is to be given up.
        """
        folder = self.folder / f"table_{number:03}"
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            builder, column = self._for_table(number), self.folder / keys_file(number)
            if self.base is None:
                builder._build(partial, column, name, done)
            else:
                builder._build_on(self.base.tables[number], partial, column, name, done)
            partial.rename(folder)
        (self.folder / keys_file(number)).unlink(missing_ok=True)
        done(1.0)
        facts, sizes = json.loads((folder / "table.json").read_text(encoding="ascii")), self._sizes(number)
        return FinishedTable(folder, **facts, sizes=sizes if sizes.exists() else None)

    def _sizes(self, number: int) -> Path:
        """Where the sizes of a table's lists are, if it has lists."""
        return self.folder / sizes_file(number)

    def _for_table(self, number: int) -> "TableBuilder":
        """The same for a table whose samples have any number of keys: those are counted in place of samples."""
        sizes = self._sizes(number)
        if not sizes.exists():
            return self
        num_train, num_keys = (count_listed(sizes, 0, samples) for samples in (self.num_train, self.num_samples))
        return replace(self, num_train=num_train, num_samples=num_keys)

    def _build(self, folder: Path, column: Path, name: str, done: Callable[[float], None]) -> None:
        table = FinishedTable(folder, 0, 0)
        parts = self._count(folder, self._keys(column), lambda share: done(0.6 * share))
        ranking = self._rank(parts, name, first_row=1)
        with table.counts.open("wb") as file:
            for counts in ranking.row_counts():
                file.write(counts.data)
        write_keys_by_row(
            table.keys, ranking.num_rows, ((np.fromfile(p.keys, UINT64), np.fromfile(p.rows, INT32)) for p in parts)
        )
        table.rows.touch()
        self._map(parts, column, table.rows, lambda share: done(0.6 + 0.4 * share))
        _finish(folder, ranking.num_rows, _remove(parts))

    def _build_on(self, base: BaseTable, folder: Path, column: Path, name: str, done: Callable[[float], None]) -> None:
        """Rows of the base first; of an extended one then rows for the keys that still have none."""
        table = FinishedTable(folder, 0, 0)
        table.rows.touch()
        known = base.write_parts(folder, self.max_slots)
        self._map(known, column, table.rows, lambda share: done(0.4 * share))
        _remove(known)
        num_rows, parts = base.num_rows, []
        if self.base is not None and self.base.extends:
            parts = self._count(folder, self._keys(column, table.rows), lambda share: done(0.4 + 0.3 * share))
            num_rows = self._rank(parts, name, first_row=base.num_rows).num_rows
            self._map(parts, column, table.rows, lambda share: done(0.7 + 0.2 * share))
        new = ((np.fromfile(p.keys, UINT64), np.fromfile(p.rows, INT32)) for p in parts)
        write_keys_by_row(table.keys, num_rows, new)
        base.copy_keys(table.keys)
        dropped = sum(int(np.count_nonzero(np.fromfile(part.rows, INT32) == 0)) for part in parts)
        num_used = self._count_rows(table, num_rows)
        _remove(parts)
        _finish(folder, num_rows, num_used + dropped)

    def _rank(self, parts: list[Part], name: str, first_row: int) -> Ranking:
        """Gives the keys of counted parts their rows, from ``first_row`` on."""
        ranking = Ranking((np.fromfile(_counts(part), INT64) for part in parts), self.min_count, first_row)
        if ranking.num_rows > MOST_ROWS:
            raise UserError(
                f"table {name} has {ranking.num_rows:,} rows, of which there can be {MOST_ROWS:,}; raise --min-count, "
                "or fold its values with --max-ind-range"
            )
        for part in parts:
            ranking.rows(np.fromfile(_counts(part), INT64)).tofile(part.rows)
            _counts(part).unlink()
        return ranking

    def _count_rows(self, table: FinishedTable, num_rows: int) -> int:
        """Writes how often the training samples look up each row, a range of rows after the other; how many they do."""
        num_used, step = 0, max(1, self.max_slots)
        with table.counts.open("wb") as file:
            for first in range(0, num_rows, step):
                counts = np.zeros(min(step, num_rows - first), np.int64)
                for start in range(0, self.num_train, _CHUNK):
                    self._check_stop()
                    rows = read_numbers(table.rows, INT32, start, min(start + _CHUNK, self.num_train)) - first
                    inside = rows[(rows >= 0) & (rows < len(counts))]
                    np.add(counts, np.bincount(inside, minlength=len(counts)), out=counts)
                file.write(counts.data)
                num_used += int(np.count_nonzero(counts[1:] if not first else counts))
        return num_used

    def _count(self, folder: Path, read_keys: ReadKeys, done: Callable[[float], None]) -> list[Part]:
        parts = []
        ranges = count_keys(read_keys, self.max_slots, done)
        for number, (low, high, keys, counts) in enumerate(ranges):
            part = Part(low, high, folder / f"part_{number:04}_keys.bin", folder / f"part_{number:04}_rows.bin")
            keys.tofile(part.keys)
            counts.tofile(_counts(part))
            del keys, counts  # before the next range is counted
            give_back_freed_memory()
            parts.append(part)
        return parts

    def _map(self, parts: list[Part], column: Path, out: Path, done: Callable[[float], None]) -> None:
        """Writes the rows of keys that have none yet, range after range."""
        has_rows = out.stat().st_size > 0  # of a base
        for number, part in enumerate(parts):
            keys, rows = np.fromfile(part.keys, UINT64), np.fromfile(part.rows, INT32)
            num_slots = 1 << (10 * len(keys) // 7 + 1).bit_length()
            map_keys_, map_rows = np.empty(num_slots, np.uint64), np.zeros(num_slots, np.int32)
            build_map(keys, rows, map_keys_, map_rows)
            del keys, rows
            with out.open("r+b") as file:
                start = 0
                for share, chunk in self._chunks(column, self.num_samples):
                    found = np.zeros(len(chunk), np.int32)
                    if number or has_rows:  # else no range has found anything yet
                        found = read_numbers(out, INT32, start, start + len(chunk))
                    map_keys(chunk, np.uint64(part.low), np.uint64(part.high), map_keys_, map_rows, found)
                    file.seek(4 * start)
                    file.write(found.data)
                    start += len(chunk)
                    done((number + share) / len(parts))
            del map_keys_, map_rows
            give_back_freed_memory()

    def _chunks(self, column: Path, count: int) -> Iterator[tuple[float, Keys]]:
        for start in range(0, count, _CHUNK):
            self._check_stop()
            stop = min(start + _CHUNK, count)
            yield stop / count, read_numbers(column, self.key_dtype, start, stop)

    def _keys(self, column: Path, rows: Path | None = None) -> ReadKeys:
        """Reads the keys of the training samples; with ``rows``, those that have none there yet."""

        def read() -> Iterator[tuple[float, Keys]]:
            start = 0
            for share, chunk in self._chunks(column, self.num_train):
                if rows is None:
                    yield share, chunk
                else:
                    yield share, chunk[read_numbers(rows, INT32, start, start + len(chunk)) == 0]
                start += len(chunk)

        return read

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt


def _remove(parts: list[Part]) -> int:
    """Removes the files of parts; the number of their keys."""
    num_keys = sum(part.keys.stat().st_size for part in parts) // 8
    for part in parts:
        part.keys.unlink()
        part.rows.unlink()
    return num_keys


def _finish(folder: Path, num_rows: int, num_keys: int) -> None:
    """Writes what `FinishedTable` says, and forces everything to the disk."""
    text = json.dumps({"num_rows": int(num_rows), "num_keys": int(num_keys)})
    (folder / "table.json").write_text(text, encoding="ascii")
    for path in folder.iterdir():
        with path.open("r+b") as file:  # Windows syncs none that is open for reading alone
            os.fsync(file.fileno())


def _counts(part: Part) -> Path:
    """Where a part's counts wait to be ranked."""
    return part.rows.with_suffix(".counts")
