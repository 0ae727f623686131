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


@dataclass(frozen=True)
class WorkingSet:
    """A batch's U unique rows in order of first appearance, and how its lookups use them.

    Attributes:
        index: number of the batch in the training stream.
        rows: [U] int64.
        addresses: [U] int64.
        offsets: [num_bags + 1] int32, bag boundaries in ``positions``.
        positions: [num_lookups] int32, the position of each lookup's row.
        lookups: [U] int32, how many lookups each row has.
        first_lookups: [U] int32, the first of them, ascending.
        previous: [U] int64, where each row appeared last before this batch: ``batch index << 32 | position``,
            or `NEVER`.
    """

    index: int
    rows: Int64s
    addresses: Int64s
    offsets: Int32s
    positions: Int32s
    lookups: Int32s
    first_lookups: Int32s
    previous: Int64s

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
    index: int,
    num_addresses: int,
    address_of: Int32s,
    row_of: Int64s,
    last_seen: Int64s,
    unique_rows: Int64s,
    unique_addresses: Int64s,
    previous: Int64s,
    positions: Int32s,
    lookups: Int32s,
    first_lookups: Int32s,
) -> tuple[int, int]:
    """Fills the arrays of a `WorkingSet`, ``lookups`` of zeros; returns its size and the new number of addresses."""
    num_lookups = len(rows)
    # Maps of millions of rows are in no cache, so their lines are on the way before a lookup needs them.
    for lookup in range(min(num_lookups, 2 * AHEAD)):
        load_ahead(address_of, rows[lookup])
    for lookup in range(min(num_lookups, AHEAD)):
        load_ahead(last_seen, max(address_of[rows[lookup]] - 1, 0))
    now = np.int64(index + 1) << 32  # batch index i is kept as i + 1; 0: in no batch
    size = 0
    for lookup in range(num_lookups):
        if lookup + 2 * AHEAD < num_lookups:
            load_ahead(address_of, rows[lookup + 2 * AHEAD])
        if lookup + AHEAD < num_lookups:
            load_ahead(last_seen, max(address_of[rows[lookup + AHEAD]] - 1, 0))
        row = rows[lookup]
        address = int(address_of[row]) - 1
        if address < 0:  # 0 in the map: never touched
            address = num_addresses
            num_addresses += 1
            address_of[row] = address + 1
            row_of[address] = row
            last_seen[address] = 0
        # Whether a row is new in this batch cannot be predicted, so there is no branch: the next position is written in
        # any case, and taken only by a new row.
        seen = last_seen[address]
        is_new = seen < now
        position = size if is_new else seen & 0xFFFFFFFF
        unique_rows[size], unique_addresses[size] = row, address
        previous[size] = seen - (np.int64(1) << 32) if seen else NEVER
        first_lookups[size] = lookup
        last_seen[address] = now | position
        size += is_new
        positions[lookup] = position
        lookups[position] += 1
    return size, num_addresses


class AddressBook:
    """Gives each row its address at first touch and reduces batches to working sets.

    Memory: 4 bytes per table row and 16 per touched row, backed by the system as pages are used.

    Args:
        num_rows: rows of all tables.
    """

    def __init__(self, num_rows: int) -> None:
        # Zeroed pages cost nothing until touched, so "never touched" is zero and addresses are kept plus one.
        self._address_of = np.zeros(num_rows, np.int32)
        self._row_of = np.empty(num_rows, np.int64)
        self._last_seen = np.empty(num_rows, np.int64)
        self._room = np.empty((3, 0), np.int64)  # for rows, addresses and last uses of a batch
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
        if num_lookups > self._room.shape[1]:
            self._room = np.empty((3, num_lookups + num_lookups // 4), np.int64)
        unique_rows, addresses, previous = self._room
        positions, first_lookups = np.empty(num_lookups, np.int32), np.empty(num_lookups, np.int32)
        lookups = np.zeros(num_lookups, np.int32)
        size, self.num_addresses = _deduplicate(
            rows, index, self.num_addresses, self._address_of, self._row_of, self._last_seen,
            unique_rows, addresses, previous, positions, lookups, first_lookups,
        )  # fmt: skip
        return WorkingSet(
            index, unique_rows[:size].copy(), addresses[:size].copy(), offsets.astype(np.int32), positions,
            lookups[:size].copy(), first_lookups[:size].copy(), previous[:size].copy(),
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
        self.num_addresses = _register(
            rows, self.num_addresses, self._address_of, self._row_of, self._last_seen, addresses
        )
        return addresses

    def rows(self, num_addresses: int | None = None) -> Int64s:
        """Rows by address: [num_addresses] int64."""
        return self._row_of[: self.num_addresses if num_addresses is None else num_addresses]

    def in_order(self) -> tuple[Int64s, Int32s]:
        """All rows with an address, in order, and their addresses: [num_addresses] each."""
        rows = np.flatnonzero(self._address_of)
        return rows, self._address_of[rows] - np.int32(1)


@numba.njit(cache=True, nogil=True)
def _register(
    rows: Int64s, num_addresses: int, address_of: Int32s, row_of: Int64s, last_seen: Int64s, addresses: Int64s
) -> int:
    """Fills ``addresses``; the new number of addresses."""
    for index in range(len(rows)):
        address = int(address_of[rows[index]]) - 1
        if address < 0:
            address = num_addresses
            num_addresses += 1
            address_of[rows[index]] = address + 1
            row_of[address] = rows[index]
            last_seen[address] = 0
        addresses[index] = address
    return num_addresses
