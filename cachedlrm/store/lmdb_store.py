"""The tiers below the device when not all records fit in memory: a bounded host tier, and the log below it.

The host tier holds records that left the device and nothing else: a record that goes back up leaves it, since the
device's copy will come down changed. So of all rows the least recently evicted are the first to go on to the disk, and
a row that swings between device and host costs no write at all.
"""

from collections.abc import Iterator

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.store.host import Newer, RecordsBetween, places_of
from cachedlrm.store.record_log import RecordLog
from cachedlrm.store.spool import Spool

_NOTHING = 0  # in the map of frames, which are kept plus one: zeroed pages cost nothing until touched
_TURN_ROWS = 1 << 14

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Float32s = NDArray[np.float32]


class LmdbStore:
    """A `cachedlrm.store.host.Store` whose records are in memory as far as they fit, else in a log.

    Memory: the frames, and 4 bytes for each touched row.

    Args:
        num_rows: rows of the group.
        frames: records that the host tier holds.
        width: float32 columns of a record.
        log: for the others.
    """

    def __init__(self, num_rows: int, frames: int, width: int, log: RecordLog) -> None:
        self.capacity_rows = num_rows
        self._log = log
        self._records = np.empty((frames, width), np.float32)
        self._frame_of = np.zeros(num_rows, np.int32)  # by address
        self._address_in = np.empty(frames, np.int32)
        self._changed = np.zeros(frames, bool)  # the log has another record, or none
        self._is_used = np.zeros(frames, bool)
        self._free = np.arange(frames, dtype=np.int32)[::-1].copy()  # a stack, the next one last: frame 0
        self._num_free = frames
        self._hand = 0  # the next victim: frames are filled in a circle, so it is about the oldest

    @property
    def used_rows(self) -> int:
        """Records in memory."""
        return len(self._free) - self._num_free

    def read(self, addresses: Int64s, out: Float32s) -> None:
        """See `cachedlrm.store.host.Store`."""
        missing = np.empty(len(addresses), np.int64)
        num_missing, self._num_free = _take(
            addresses, self._frame_of, self._records, self._is_used, self._free, self._num_free, out, missing
        )
        self._read_log(addresses, missing[:num_missing], out)

    def peek(self, addresses: Int64s, out: Float32s) -> None:
        """See `cachedlrm.store.host.Store`."""
        frames = self._frame_of[addresses].astype(np.int64) - 1
        here = np.flatnonzero(frames >= 0)
        out[here] = self._records[frames[here]]
        self._read_log(addresses, np.flatnonzero(frames < 0), out)

    def _read_log(self, addresses: Int64s, indices: Int64s, out: Float32s) -> None:
        if len(indices):
            records = np.empty((len(indices), out.shape[1]), np.float32)
            self._log.read(addresses[indices], records)
            out[indices] = records

    def scan(self) -> Iterator[tuple[Int64s, Float32s]]:
        """See `cachedlrm.store.host.Store`."""
        frames = np.flatnonzero(self._is_used)
        for first in range(0, len(frames), _TURN_ROWS):
            part = frames[first : first + _TURN_ROWS]
            yield self._address_in[part].astype(np.int64), self._records[part]
        for addresses, records in self._log.scan():
            below = self._frame_of[addresses] == _NOTHING
            yield addresses[below], records[below]

    def arranged(self, addresses: Int32s, newer: Newer) -> RecordsBetween:
        """See `cachedlrm.store.host.Store`. Takes as much disk space beside the log, as long as the result lives."""
        places = np.empty(len(addresses), np.int32)  # by address
        places[addresses] = np.arange(len(addresses), dtype=np.int32)
        pieces = ((places[found], records) for found, records in self._newest(newer, len(addresses)))
        return Spool(self._log.folder, len(addresses), self._records.shape[1], pieces).read

    def _newest(self, newer: Newer, num_addresses: int) -> Iterator[tuple[Int64s, Float32s]]:
        """As `scan`, with what is newer."""
        is_old = places_of(newer, num_addresses) >= 0
        for found, records in self.scan():
            kept = ~is_old[found]
            yield found[kept], records[kept]
        for first in range(0, len(newer.addresses), _TURN_ROWS):
            indices = np.arange(first, min(first + _TURN_ROWS, len(newer.addresses)))
            yield newer.addresses[indices], newer.read(indices)

    def write(self, addresses: Int64s, values: Float32s) -> None:
        """See `cachedlrm.store.host.Store`.

        Raises:
            UserError: the log cannot be written.
        """
        step = max(1, min(_TURN_ROWS, len(self._free) // 2))
        for first in range(0, len(addresses), step):
            part = addresses[first : first + step]
            self._make_room(len(part))
            self._num_free = _put(
                part, values[first : first + step], self._frame_of, self._records, self._address_in, self._changed,
                self._is_used, self._free, self._num_free,
            )  # fmt: skip

    def _make_room(self, count: int) -> None:
        if self._num_free >= count:
            return
        victims = np.empty(count - self._num_free, np.int64)
        self._hand = _oldest(self._is_used, self._hand, victims)
        self._save(victims[self._changed[victims]])
        self._frame_of[self._address_in[victims]] = _NOTHING
        self._is_used[victims] = False
        self._free[self._num_free : self._num_free + len(victims)] = victims[::-1]
        self._num_free += len(victims)

    def check_capacity(self, num_rows: int) -> None:
        """See `cachedlrm.store.host.Store`; the disk says itself when it is full."""

    def save_changed(self) -> None:
        """See `cachedlrm.store.host.Store`."""
        frames = np.flatnonzero(self._changed & self._is_used)
        for first in range(0, len(frames), _TURN_ROWS):
            self._save(frames[first : first + _TURN_ROWS])

    def _save(self, frames: Int64s) -> None:
        self._log.append(self._address_in[frames].astype(np.int64), self._records[frames])
        self._changed[frames] = False


def frames_for(budget_bytes: int, record_bytes: int, num_rows: int) -> int:
    """Frames of a host tier of so many bytes.

    Raises:
        UserError: too few; names ``--host-budget``.
    """
    frames = min(num_rows, budget_bytes // (record_bytes + 10))  # with its place in the maps of frames
    least = min(num_rows, 1024)
    if frames < least:
        raise UserError(
            f"--host-budget leaves room for {frames:,} records of {record_bytes} bytes, and the least is {least:,}; "
            "give more"
        )
    return frames


@numba.njit(cache=True, nogil=True)
def _take(
    addresses: Int64s,
    frame_of: Int32s,
    records: Float32s,
    is_used: NDArray[np.bool_],
    free: Int32s,
    num_free: int,
    out: Float32s,
    missing: Int64s,
) -> tuple[int, int]:
    """Moves records out of their frames; (number of addresses without one, free frames)."""
    num_missing = 0
    for index in range(len(addresses)):
        frame = frame_of[addresses[index]] - 1
        if frame < 0:
            missing[num_missing] = index
            num_missing += 1
            continue
        for column in range(records.shape[1]):
            out[index, column] = records[frame, column]
        frame_of[addresses[index]] = 0
        is_used[frame] = False
        free[num_free] = frame
        num_free += 1
    return num_missing, num_free


@numba.njit(cache=True, nogil=True)
def _put(
    addresses: Int64s,
    values: Float32s,
    frame_of: Int32s,
    records: Float32s,
    address_in: Int32s,
    changed: NDArray[np.bool_],
    is_used: NDArray[np.bool_],
    free: Int32s,
    num_free: int,
) -> int:
    """Puts records into frames, that of the address if it has one; free frames left."""
    for index in range(len(addresses)):
        frame = frame_of[addresses[index]] - 1
        if frame < 0:
            num_free -= 1
            frame = free[num_free]
            frame_of[addresses[index]] = frame + 1
            address_in[frame] = addresses[index]
            is_used[frame] = True
        changed[frame] = True
        for column in range(records.shape[1]):
            records[frame, column] = values[index, column]
    return num_free


@numba.njit(cache=True, nogil=True)
def _oldest(is_used: NDArray[np.bool_], hand: int, victims: Int64s) -> int:
    """Fills ``victims`` with used frames from the hand on; where the hand is then. There must be as many."""
    found = 0
    while found < len(victims):
        if is_used[hand]:
            victims[found] = hand
            found += 1
        hand = (hand + 1) % len(is_used)
    return hand
