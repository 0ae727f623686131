"""A table's vocabulary: which keys have a row, and which row, by frequency; out of core.

Keys are counted in a hash table of limited size. Where they are too many, a pass over the column counts only a range of
them, as wide as fits, and the next pass goes on after it. Ranges are of mixed keys (`cachedlrm.base.kernels.mix`), so
that they hold about equally many. The order of rows is by count, then by mixed key: it depends on the data alone, not
on how much memory there was.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.kernels import mix
from cachedlrm.data.raw.keys import unmix_all
from cachedlrm.data.raw.samples import Keys

UInt64s = NDArray[np.uint64]
Int64s = NDArray[np.int64]

SLOT_BYTES = 32
"""Of memory for each slot of a table: 16 in it, and what sorting its entries takes."""
_FIRST_SLOTS = 1 << 12
_LARGEST = 2**64 - 1
_WRITE_ROWS = 1 << 20


@dataclass(frozen=True)
class Part:
    """A range of a vocabulary, in two files: mixed keys [n] ascending, and their rows [n]; 0: none of their own.

    Attributes:
        low: the least mixed key of the range.
        high: the greatest.
        keys: file of uint64.
        rows: file of int32.
    """

    low: int
    high: int
    keys: Path
    rows: Path


def count_keys(
    chunks: Callable[[], Iterable[tuple[float, Keys]]], max_slots: int, done: Callable[[float], None]
) -> Iterator[tuple[int, int, UInt64s, Int64s]]:
    """Counts the keys of a column, range after range.

    Args:
        chunks: reads the column once; pieces of it, each with the share of the column that ends with it.
        max_slots: of the hash table; a power of two.
        done: takes the share of the work that is done; falls when a range turns out too wide.

    Yields:
        The range (least and greatest mixed key), its mixed keys [n] ascending, and their counts [n].
    """
    low, width = 0, _LARGEST
    while low <= _LARGEST:
        counter = _Counter(low, min(low + width, _LARGEST), max_slots)
        for share, chunk in chunks():
            counter.add(chunk)
            done((low + (counter.high - low) * share) / _LARGEST)
        yield low, counter.high, *counter.entries()
        low, width = counter.high + 1, counter.high - low


class _Counter:
    """Counts of the mixed keys from ``low`` to ``high``; lowers ``high`` where they are too many."""

    def __init__(self, low: int, high: int, max_slots: int) -> None:
        self.low, self.high = low, high
        self._max_slots = max_slots
        self._reset(min(_FIRST_SLOTS, max_slots))

    def _reset(self, num_slots: int) -> None:
        self._keys = np.empty(num_slots, np.uint64)
        self._counts = np.zeros(num_slots, np.int64)  # 0: free
        self._used = 0

    def add(self, keys: Keys) -> None:
        place = 0
        while True:
            limit = len(self._keys) * 7 // 10
            place, self._used = _count(
                keys, place, np.uint64(self.low), np.uint64(self.high), self._keys, self._counts, self._used, limit
            )
            if place == len(keys):
                return
            self._make_room()

    def _make_room(self) -> None:
        num_slots = len(self._keys)
        if num_slots < self._max_slots:
            num_slots = min(4 * num_slots, self._max_slots)
        else:
            self.high = self.low + (self.high - self.low) // 2
        used = self._counts > 0
        if self.high < _LARGEST:
            used &= self._keys <= np.uint64(self.high)
        keys, counts = self._keys[used], self._counts[used]
        del used
        self._keys, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)  # free before the next one is made
        self._reset(num_slots)
        self._used = _insert(keys, counts, self._keys, self._counts)

    def entries(self) -> tuple[UInt64s, Int64s]:
        """Mixed keys ascending and their counts; the table is empty afterwards."""
        used = self._counts > 0
        keys, counts = self._keys[used], self._counts[used]
        del used
        self._keys, self._counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        order = np.argsort(keys)
        return keys[order], counts[order]


@numba.njit(cache=True, nogil=True)
def _count(
    keys: Keys,
    place: int,
    low: np.uint64,
    high: np.uint64,
    table_keys: UInt64s,
    table_counts: Int64s,
    used: int,
    limit: int,
) -> tuple[int, int]:
    """Counts ``keys[place:]``; where it ended (a key found no room, or the end), and the slots in use."""
    mask = np.uint64(len(table_keys) - 1)
    for index in range(place, len(keys)):
        mixed = mix(np.uint64(keys[index]))
        if mixed < low or mixed > high:
            continue
        slot = mixed & mask
        while table_counts[slot] and table_keys[slot] != mixed:
            slot = (slot + np.uint64(1)) & mask
        if table_counts[slot] == 0:
            if used >= limit:
                return index, used
            table_keys[slot] = mixed
            used += 1
        table_counts[slot] += 1
    return len(keys), used


@numba.njit(cache=True, nogil=True)
def _insert(keys: UInt64s, counts: Int64s, table_keys: UInt64s, table_counts: Int64s) -> int:
    """Puts distinct mixed keys into an empty table; their number."""
    mask = np.uint64(len(table_keys) - 1)
    for index in range(len(keys)):
        slot = keys[index] & mask
        while table_counts[slot]:
            slot = (slot + np.uint64(1)) & mask
        table_keys[slot], table_counts[slot] = keys[index], counts[index]
    return len(keys)


class Ranking:
    """Gives rows to the keys of a table, the most frequent first, from row 1 on.

    Args:
        part_counts: counts of each part's keys.
        min_count: keys seen less often get no row.
        first_row: of the most frequent key; those before it are taken.
    """

    def __init__(self, part_counts: Iterable[Int64s], min_count: int, first_row: int = 1) -> None:
        numbers: dict[int, int] = {}
        self.dropped_lookups = 0
        for counts in part_counts:
            self.dropped_lookups += int(counts[counts < min_count].sum())
            for level, number in zip(*np.unique(counts[counts >= min_count], return_counts=True), strict=True):
                numbers[int(level)] = numbers.get(int(level), 0) + int(number)
        self.levels = np.array(sorted(numbers, reverse=True), np.int64)  # distinct counts, descending
        self.numbers = np.array([numbers[level] for level in self.levels.tolist()], np.int64)
        ends = np.cumsum(self.numbers, dtype=np.int64)
        self._first_row = first_row
        self._next_rows = first_row + ends - self.numbers

    @property
    def num_rows(self) -> int:
        """Rows of the table: the keys with a row, those taken before, and row 0 for all others."""
        return self._first_row + int(self.numbers.sum())

    def rows(self, counts: Int64s) -> NDArray[np.int32]:
        """Rows [n] of the keys of the next part; 0 for keys without one."""
        rows = np.zeros(len(counts), np.int32)
        level = len(self.levels) - np.searchsorted(self.levels[::-1], counts, side="right")
        kept = np.flatnonzero(level < len(self.levels))
        order = kept[np.argsort(level[kept], kind="stable")]
        numbers = np.bincount(level[kept], minlength=len(self.levels))
        firsts = np.cumsum(numbers) - numbers
        sorted_level = level[order]
        rows[order] = self._next_rows[sorted_level] + np.arange(len(order)) - firsts[sorted_level]
        self._next_rows += numbers
        return rows

    def row_counts(self) -> Iterator[Int64s]:
        """Lookups of each row in pieces; row 0 has those of the keys without a row."""
        yield np.array([self.dropped_lookups], np.int64)
        for level, number in zip(self.levels.tolist(), self.numbers.tolist(), strict=True):
            for start in range(0, number, _WRITE_ROWS):
                yield np.full(min(_WRITE_ROWS, number - start), level, np.int64)


def write_keys_by_row(path: Path, num_rows: int, parts: Iterable[tuple[UInt64s, NDArray[np.int32]]]) -> None:
    """Writes the key of each row, 0 for row 0, from parts of (mixed keys, rows)."""
    with path.open("wb") as file:
        file.truncate(8 * num_rows)
        for mixed, rows in parts:
            order = np.argsort(rows, kind="stable")[np.count_nonzero(rows == 0) :]
            keys, sorted_rows = unmix_all(mixed[order]), rows[order]
            del order
            breaks = np.flatnonzero(np.diff(sorted_rows) != 1) + 1  # rows of equal counts follow each other
            starts = np.concatenate([[0], breaks, [len(keys)]]).tolist()
            for start, stop in pairwise(starts):
                if start < stop:
                    file.seek(8 * int(sorted_rows[start]))
                    file.write(keys[start:stop].data)


@numba.njit(cache=True, nogil=True)
def build_map(mixed: UInt64s, rows: NDArray[np.int32], table_keys: UInt64s, table_rows: NDArray[np.int32]) -> None:
    """Fills a hash table from mixed key to row; ``table_rows`` is zeros, and longer than there are keys with a row."""
    mask = np.uint64(len(table_keys) - 1)
    for index in range(len(mixed)):
        if rows[index]:
            slot = mixed[index] & mask
            while table_rows[slot]:
                slot = (slot + np.uint64(1)) & mask
            table_keys[slot], table_rows[slot] = mixed[index], rows[index]


@numba.njit(cache=True, nogil=True)
def map_keys(
    keys: Keys,
    low: np.uint64,
    high: np.uint64,
    table_keys: UInt64s,
    table_rows: NDArray[np.int32],
    out: NDArray[np.int32],
) -> None:
    """Writes the rows of those keys that lie in a range and have none yet; of keys without one, 0."""
    mask = np.uint64(len(table_keys) - 1)
    for index in range(len(keys)):
        mixed = mix(np.uint64(keys[index]))
        if mixed < low or mixed > high or out[index]:
            continue
        slot = mixed & mask
        while table_rows[slot] and table_keys[slot] != mixed:
            slot = (slot + np.uint64(1)) & mask
        out[index] = table_rows[slot]
