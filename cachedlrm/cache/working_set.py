"""From a batch's rows to its working set. Nothing here knows the cache, so nothing computed from it can depend on it.

Index spaces: a *row* is global over the tables; an *address* numbers rows by first touch and is the place of a row's
record in the tiers below the device; a *position* is a place in one batch's working set.
"""

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.kernels import AHEAD, load_ahead

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]

NEVER = -1

_LOOKUPS_AHEAD = 4 * AHEAD  # as three of four lookups find the line of their row at hand


@dataclass(frozen=True)
class WorkingSet:
    """A batch's U unique rows in order of first appearance, and how its lookups use them.

    Attributes:
        index: number of the batch in the training stream.
        num_addresses: rows touched by this batch or before.
        rows: [U] int64.
        addresses: [U] int64.
        offsets: [num_bags + 1] int32, bag boundaries in ``positions``.
        positions: [num_lookups] int32, the position of each lookup's row.
        lookups: [U] int32, how many lookups each row has.
        first_lookups: [U] int32, the first of them, ascending.
        previous: [U] int64, where each row appeared last before this batch: ``batch index << 32 | position``,
            or `NEVER`; None from a book that does not keep it.
    """

    index: int
    num_addresses: int
    rows: Int64s
    addresses: Int64s
    offsets: Int32s
    positions: Int32s
    lookups: Int32s
    first_lookups: Int32s
    previous: Int64s | None

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def transposed(self) -> tuple[Int32s, Int32s]:
        """The lookups by position.

        Returns:
            The bags [num_lookups] int32 of the lookups sorted by position, in order within one, and the boundaries of
            positions in them [U + 1] int32.
        """
        position_offsets = np.zeros(self.num_rows + 1, np.int32)
        np.cumsum(self.lookups, out=position_offsets[1:])
        bags_by_position = np.empty(len(self.positions), np.int32)
        _transpose(self.positions, self.offsets, position_offsets[:-1].copy(), bags_by_position)
        return bags_by_position, position_offsets


@numba.njit(cache=True, nogil=True)
def _transpose(positions: Int32s, offsets: Int32s, starts: Int32s, bags_by_position: Int32s) -> None:
    """Fills ``bags_by_position``; the ``starts`` of positions advance to their ends."""
    for bag in range(len(offsets) - 1):
        for lookup in range(offsets[bag], offsets[bag + 1]):
            position = positions[lookup]
            bags_by_position[starts[position]] = bag
            starts[position] += 1


@numba.njit(cache=True, nogil=True)
def _deduplicate(
    rows: Int64s,
    num_addresses: int,
    address_of: Int32s,
    row_of: Int64s,
    unique_rows: Int64s,
    unique_addresses: Int64s,
    positions: Int32s,
    lookups: Int32s,
    first_lookups: Int32s,
) -> tuple[int, int]:
    """Fills the arrays of a `WorkingSet`; returns its size and the new number of addresses.

    From a row's first lookup to the end of the batch the map has its position, as a negative number, in place of its
    address. So a lookup reads one line of one map.
    """
    num_lookups = len(rows)
    # A map of millions of rows is in no cache, so its lines are on the way before a lookup needs them.
    for lookup in range(min(num_lookups, _LOOKUPS_AHEAD)):
        load_ahead(address_of, rows[lookup])
    size = np.uint32(0)
    for lookup in range(num_lookups):
        if lookup + _LOOKUPS_AHEAD < num_lookups:
            load_ahead(address_of, rows[lookup + _LOOKUPS_AHEAD])
        row = np.uint64(rows[lookup])  # unsigned: numba looks at the sign of other indices, as -1 is the last element
        found = address_of[row]
        if found < 0:
            position = np.uint32(~found)
            positions[lookup] = position
            lookups[position] += 1
            continue
        if found == 0:  # never touched
            row_of[num_addresses] = row
            num_addresses += 1
            found = np.int32(num_addresses)
        unique_rows[size], unique_addresses[size] = row, found - 1
        first_lookups[size], lookups[size], positions[lookup] = lookup, 1, size
        address_of[row] = ~np.int32(size)
        size = np.uint32(size + 1)
    for place in range(size):
        address_of[np.uint64(unique_rows[place])] = unique_addresses[place] + 1
    return int(size), num_addresses


@numba.njit(cache=True, nogil=True)
def _appear(index: int, addresses: Int64s, last_seen: Int64s) -> Int64s:
    """Marks the rows of batch ``index`` as seen in it; where they were before, as `WorkingSet.previous` has it."""
    previous = np.empty(len(addresses), np.int64)
    one_batch = np.int64(1) << 32
    now = np.int64(index + 1) << 32  # batch index i is kept as i + 1; 0: in no batch
    for position in range(len(addresses)):
        if position + AHEAD < len(addresses):
            load_ahead(last_seen, addresses[position + AHEAD])
        seen = last_seen[addresses[position]]
        previous[position] = seen - one_batch if seen else NEVER
        last_seen[addresses[position]] = now | position
    return previous


class AddressBook:
    """Gives each row its address at first touch and reduces batches to working sets.

    Memory: 4 bytes per table row and 8 per touched row, 16 with ``keeps_previous``; backed by the system as pages are
    used.

    Args:
        num_rows: rows of all tables.
        keeps_previous: whether working sets are to say where their rows appeared before.
    """

    def __init__(self, num_rows: int, *, keeps_previous: bool = True) -> None:
        # Zeroed pages cost nothing until touched, so "never touched" is zero and addresses are kept plus one.
        self._address_of = np.zeros(num_rows, np.int32)
        self._row_of = np.empty(num_rows, np.int64)
        self._keeps_previous = keeps_previous
        self._last_seen = np.zeros(num_rows if keeps_previous else 0, np.int64)
        self._room = np.empty((2, 0), np.int64), np.empty((2, 0), np.int32)  # for what a batch has of each row
        self.num_addresses = 0
        self._newest = -1

    def working_set(self, index: int, rows: Int64s, offsets: Int64s) -> WorkingSet:
        """The working set of training batch ``index``.

        Args:
            index: number of the batch, increasing from call to call.
            rows: [num_lookups] global rows, in range.
            offsets: [num_bags + 1] bag boundaries.
        """
        assert index > self._newest, "batches are numbered in order"
        self._newest = index
        num_lookups = len(rows)
        if num_lookups > self._room[0].shape[1]:
            shape = 2, num_lookups + num_lookups // 4
            self._room = np.empty(shape, np.int64), np.empty(shape, np.int32)
        (unique_rows, addresses), (lookups, first_lookups) = self._room
        positions = np.empty(num_lookups, np.int32)
        size, self.num_addresses = _deduplicate(
            rows, self.num_addresses, self._address_of, self._row_of,
            unique_rows, addresses, positions, lookups, first_lookups,
        )  # fmt: skip
        return WorkingSet(
            index, self.num_addresses, unique_rows[:size].copy(), addresses[:size].copy(), offsets.astype(np.int32),
            positions, lookups[:size].copy(), first_lookups[:size].copy(),
            _appear(index, addresses[:size], self._last_seen) if self._keeps_previous else None,
        )  # fmt: skip

    def addresses(self, rows: Int64s) -> Int64s:
        """Addresses of ``rows`` [n], `NEVER` where a row was not touched; changes nothing."""
        return self._address_of[rows].astype(np.int64) - 1

    def rows_of(self, addresses: Int64s) -> Int64s:
        """Rows of ``addresses`` [n]."""
        return self._row_of[addresses]

    def register(self, rows: Int64s) -> Int64s:
        """Addresses of ``rows`` [n]; rows without one get the next, in order."""
        addresses = np.empty(len(rows), np.int64)
        self.num_addresses = _register(rows, self.num_addresses, self._address_of, self._row_of, addresses)
        return addresses

    def rows(self, num_addresses: int | None = None) -> Int64s:
        """Rows by address: [num_addresses] int64."""
        return self._row_of[: self.num_addresses if num_addresses is None else num_addresses]

    def in_order(self) -> tuple[Int64s, Int32s]:
        """All rows with an address, in order, and their addresses: [num_addresses] each."""
        rows = np.flatnonzero(self._address_of)
        return rows, self._address_of[rows] - np.int32(1)


@numba.njit(cache=True, nogil=True)
def _register(rows: Int64s, num_addresses: int, address_of: Int32s, row_of: Int64s, addresses: Int64s) -> int:
    """Fills ``addresses``; the new number of addresses."""
    for index in range(len(rows)):
        address = int(address_of[rows[index]]) - 1
        if address < 0:
            address = num_addresses
            num_addresses += 1
            address_of[rows[index]] = address + 1
            row_of[address] = rows[index]
        addresses[index] = address
    return num_addresses
