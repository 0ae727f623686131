"""The host tier that holds every touched record: records of rows that left the device, in memory.

A record's *address* is its row's number in order of first touch, so addresses are dense: memory is used for touched
rows only, and rows that became popular early are neighbours.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.kernels import empty_rows, gather_rows, scatter_rows
from cachedlrm.store.record_log import RecordLog

_TURN_ROWS = 1 << 13


RecordsBetween = Callable[[int, int], NDArray[np.float32]]
"""Records of indices ``first`` to ``last - 1``, [last - first, width]."""


class Newer(NamedTuple):
    """Records that the device has, newer than those in a store, which may lack them.

    Attributes:
        addresses: [n] int64.
        read: records [m, width] of some of them, by their indices [m] there.
    """

    addresses: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], NDArray[np.float32]]


class Store(Protocol):
    """The tiers below the device: records by address, float32 [width] each.

    One writer at a time; reads may run beside a write of other addresses.

    Attributes:
        capacity_rows: the most records it may hold.
    """

    capacity_rows: int

    def read(self, addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copies the records at ``addresses`` [n] into ``out`` [n, width]; each must have been written. They go to the
        device and come back by `write`."""
        ...

    def peek(self, addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """The same for records that stay."""
        ...

    def scan(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Addresses [n] and records [n, width] of all that is here, each once, in the order that is cheapest to read.

        Nothing may be written meanwhile."""
        ...

    def arranged(self, addresses: NDArray[np.int32], newer: Newer) -> RecordsBetween:
        """The newest records at ``addresses`` [n], all of them in any order, to be read by their index there.

        Cheapest from the first to the last. Nothing may be written meanwhile.

        Args:
            addresses: of the records here and of those that are newer.
            newer: takes the place of records here.

        Raises:
            UserError: the disk has no room for them.
        """
        ...

    def write(self, addresses: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Takes ``values`` [n, width] for ``addresses`` [n]."""
        ...

    def check_capacity(self, num_rows: int) -> None:
        """Makes sure that ``num_rows`` records fit, for every touched row comes down in the end.

        Raises:
            UserError: they do not; says what to change.
        """
        ...

    def save_changed(self) -> None:
        """Appends to the log what it lacks."""
        ...

    @property
    def used_rows(self) -> int:
        """Records in memory."""
        ...


class HostStore:
    """A `Store` of all records in memory.

    Args:
        capacity_rows: the most records it may hold. Memory is reserved, not used: the system backs a page when a
            record on it is first written.
        width: float32 columns of a record.
        log: where `save_changed` saves to; None for a run without checkpoints.
        num_saved: records that the log has, at addresses from 0 on.
    """

    def __init__(self, capacity_rows: int, width: int, log: RecordLog | None = None, num_saved: int = 0) -> None:
        self.capacity_rows = capacity_rows
        self._records = empty_rows(capacity_rows, width)
        self._log = log
        self._changed = np.zeros(capacity_rows if log is not None else 0, bool)
        self._used_rows = 0  # up to the highest address written
        if log is not None and num_saved:
            self.check_capacity(num_saved)
            for addresses, records in log.scan():
                self._records[addresses] = records
            self._used_rows = num_saved

    @property
    def used_rows(self) -> int:
        """See `Store`."""
        return self._used_rows

    def read(self, addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """See `Store`."""
        self.peek(addresses, out)
        if self._log is not None:
            self._changed[addresses] = False  # the device has the newer record from now on

    def peek(self, addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """See `Store`."""
        gather_rows(self._records, addresses, out)

    def scan(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """See `Store`."""
        for first in range(0, self._used_rows, _TURN_ROWS):
            last = min(first + _TURN_ROWS, self._used_rows)
            yield np.arange(first, last), self._records[first:last]

    def arranged(self, addresses: NDArray[np.int32], newer: Newer) -> RecordsBetween:
        """See `Store`."""
        places = places_of(newer, len(addresses))

        def between(first: int, last: int) -> NDArray[np.float32]:
            part = addresses[first:last]
            records, place = self._records[part], places[part]
            if (here := np.flatnonzero(place >= 0)).size:
                records[here] = newer.read(place[here])
            return records

        return between

    def write(self, addresses: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """See `Store`."""
        if len(addresses):
            self._used_rows = max(self._used_rows, int(addresses.max()) + 1)
            scatter_rows(self._records, addresses, values)
            if self._log is not None:
                self._changed[addresses] = True

    def check_capacity(self, num_rows: int) -> None:
        """See `Store`."""
        if num_rows > self.capacity_rows:
            raise UserError(
                f"the host store is full: {num_rows:,} rows of {4 * self._records.shape[1]} bytes were touched and it "
                f"may hold {self.capacity_rows:,}; raise --host-budget, keep rows on disk with --store lmdb, or train "
                "fewer rows (--max-ind-range)"
            )

    def save_changed(self) -> None:
        """See `Store`."""
        if self._log is None:
            return
        changed = np.flatnonzero(self._changed[: self._used_rows])
        for first in range(0, len(changed), _TURN_ROWS):
            addresses = changed[first : first + _TURN_ROWS]
            records = np.empty((len(addresses), self._records.shape[1]), np.float32)
            gather_rows(self._records, addresses, records)
            self._log.append(addresses, records)
        self._changed[changed] = False


def places_of(newer: Newer, num_addresses: int) -> NDArray[np.int64]:
    """Of each address its index among those that are newer, or -1."""
    places = np.full(num_addresses, -1, np.int64)
    places[newer.addresses] = np.arange(len(newer.addresses))
    return places
