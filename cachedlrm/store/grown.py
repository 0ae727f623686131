"""Initial records of a run that goes on from a finished one: its rows as they were left, by table and row.

Tables may have grown since: rows that a table did not have begin as its new run draws them. The finished run's records
stay in their file, mapped into memory, and are read where a row is first touched; so they may exceed memory.
"""

from collections.abc import Callable

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.kernels import table_offsets
from cachedlrm.store.init import RowInit
from cachedlrm.store.packing import Packing, numbers_of
from cachedlrm.store.records import GroupShape

Int64s = NDArray[np.int64]

_PIECE_ROWS = 1 << 20


class RowPlaces:
    """Which of all rows are in an ordered list, and where. 12 bytes of memory for 64 rows.

    Args:
        rows: [n] int64, in order, each once; may be mapped from a file.
        num_rows: all rows.
    """

    def __init__(self, rows: Int64s, num_rows: int) -> None:
        self._bits = np.zeros(-(-num_rows // 64), np.uint64)
        for first in range(0, len(rows), _PIECE_ROWS):
            _set_bits(self._bits, np.asarray(rows[first : first + _PIECE_ROWS]))
        self._before = np.empty(len(self._bits), np.int32)
        _count_before(self._bits, self._before)

    def __call__(self, rows: Int64s) -> Int64s:
        """The place of each of ``rows`` [n] in the list, -1 of one that is not in it."""
        places = np.empty(len(rows), np.int64)
        _find_places(self._bits, self._before, rows, places)
        return places


@numba.njit(cache=True, nogil=True, inline="always")
def _population(word: np.uint64) -> np.int64:
    """Bits that are set (Warren, "Hacker's Delight", section 5-1)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True, nogil=True)
def _set_bits(bits: NDArray[np.uint64], rows: Int64s) -> None:
    for row in rows:
        bits[row >> 6] |= np.uint64(1) << np.uint64(row & 63)


@numba.njit(cache=True, nogil=True)
def _count_before(bits: NDArray[np.uint64], before: NDArray[np.int32]) -> None:
    total = np.int64(0)
    for word in range(len(bits)):
        before[word] = total
        total += _population(bits[word])


@numba.njit(cache=True, nogil=True)
def _find_places(bits: NDArray[np.uint64], before: NDArray[np.int32], rows: Int64s, places: Int64s) -> None:
    for index in range(len(rows)):
        row = rows[index]
        word, bit = bits[row >> 6], np.uint64(1) << np.uint64(row & 63)
        places[index] = before[row >> 6] + _population(word & (bit - np.uint64(1))) if word & bit else -1


class SavedInit:
    """Numbers that a file holds of some rows; those of the others are initial.

    Args:
        places: of rows in the file; None: it holds all of them, in order.
        read: numbers [n, columns] of the records at places [n].
        init: of the other rows.
    """

    fill_on_device = None

    def __init__(
        self, places: RowPlaces | None, read: Callable[[Int64s], NDArray[np.float32]], init: RowInit | None
    ) -> None:
        self._places = places
        self._read = read
        self._init = init

    def fill(self, rows: Int64s, out: NDArray[np.float32]) -> None:
        """See `cachedlrm.store.init.RowInit`."""
        if self._places is None:
            out[...] = self._read(rows)
            return
        places = self._places(rows)
        is_there = places >= 0
        if is_there.any():
            order = np.argsort(places[is_there])  # pages of the file in their order
            here = np.flatnonzero(is_there)[order]
            out[here] = self._read(places[here])
        if not is_there.all():
            assert self._init is not None, "a file of all rows lacks none"
            rest = np.flatnonzero(~is_there)
            initial = np.empty((len(rest), out.shape[1]), np.float32)
            self._init.fill(rows[rest], initial)
            out[rest] = initial


class RoundedInit:
    """Initial numbers as they are kept: those of 16 bits are rounded, once, by the run that they began in.

    Args:
        packing: of that run.
        init: numbers before rounding.
    """

    fill_on_device = None

    def __init__(self, packing: Packing, init: RowInit) -> None:
        self._layout = packing.layout
        self._init = packing.init(init)

    def fill(self, rows: Int64s, out: NDArray[np.float32]) -> None:
        """See `cachedlrm.store.init.RowInit`."""
        records = np.empty((len(rows), self._layout.width), np.float32)
        self._init.fill(rows, records)
        out[...] = numbers_of(self._layout, records)


class GrownInit:
    """Rows of tables that have grown: those they had before, and new ones after them in each table.

    Args:
        old: of the rows that the tables had; None, as for ``new``: none is asked for.
        old_shape: tables and columns of ``old``.
        new: of all rows; asked for those that are new.
        new_shape: tables, of no fewer rows, and columns of ``new``. State is taken over if the optimizer is the same.
    """

    fill_on_device = None

    def __init__(self, old: RowInit | None, old_shape: GroupShape, new: RowInit | None, new_shape: GroupShape) -> None:
        self._old, self._new = old, new
        self._old_layout = old_shape.layout
        self._old_rows = np.array(old_shape.table_rows, np.int64)
        self._first_old, self._first_new = table_offsets(old_shape.table_rows), table_offsets(new_shape.table_rows)
        self._parameters = new_shape.layout.parameter_width
        self._takes_state = old_shape.layout.optimizer == new_shape.layout.optimizer

    def fill(self, rows: Int64s, out: NDArray[np.float32]) -> None:
        """See `cachedlrm.store.init.RowInit`."""
        table = np.searchsorted(self._first_new, rows, side="right") - 1
        local = rows - self._first_new[table]
        is_old = local < self._old_rows[table]
        old, new = np.flatnonzero(is_old), np.flatnonzero(~is_old)
        if len(old):
            assert self._old is not None, "all of them are saved"
            numbers = np.empty((len(old), self._old_layout.columns), np.float32)
            self._old.fill(self._first_old[table[old]] + local[old], numbers)
            if self._takes_state:
                out[old] = numbers
            else:
                out[old] = 0.0
                out[old, : self._parameters] = numbers[:, : self._parameters]
        if len(new):
            assert self._new is not None, "all of them are saved"
            initial = np.empty((len(new), out.shape[1]), np.float32)
            self._new.fill(rows[new], initial)
            out[new] = initial

    def new_numbers(self, old_rows: Int64s) -> Int64s:
        """The numbers that rows [n] of before have now; order stays."""
        table = np.searchsorted(self._first_old, old_rows, side="right") - 1
        return old_rows - self._first_old[table] + self._first_new[table]
