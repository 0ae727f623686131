"""Records on disk, in segments that are written once and never changed.

A record's newest copy is live, the others are dead. When too much is dead, the live records of the emptiest segments
are written again and those segments deleted. (Rosenblum and Ousterhout, "The design and implementation of a
log-structured file system", ACM TOCS 10(1), 1992; "greedy" there.) A row keyed by itself would cost a page a record.

A checkpoint is a moment in the log: everything before it, nothing after. So a segment of the last checkpoint with a
record that was live then is *pinned*: it stays until the next checkpoint, however dead it is by then.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.store.database import Database, Delete, Put
from cachedlrm.store.mapped_file import will_read
from cachedlrm.store.segment import (
    HEADER_BYTES,
    PLACE_BITS,
    SegmentBuilder,
    fingerprint,
    gather,
    parse_segment,
    segment_capacity,
)

_MOST_SEGMENTS = (1 << (32 - PLACE_BITS)) - 1  # the last number of a further one, plus one, would be 2^32
USED_SHARE = 1.5
"""Records in segments for each live one; more is rewritten less often, and larger."""
SPARE_SEGMENTS = 4
"""Segments that a log may have beyond that."""
_SMALL_SEGMENTS = 256  # beyond twice as many as live records need; small ones are made by frequent checkpoints
_FREE, _FILLING, _WAITING, _STORED = range(4)


class AddressedRows(Protocol):
    """Which row an address is of, and the reverse."""

    def rows_of(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of ``addresses`` [n]."""
        ...

    def addresses(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses of ``rows`` [n]."""
        ...

    def register(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same, but rows without an address get one."""
        ...


def segment_bytes(record_bytes: int) -> int:
    """Bytes of a segment: large enough for few of them, small enough for memory."""
    return (1 << 20) if record_bytes <= 256 else (4 << 20)


class RecordLog:
    """The records of one group of tables on disk. One thread at a time reads and appends.

    Memory: 4 bytes for each touched row, and a segment.

    Args:
        database: where to.
        group: number of the group.
        width: float32 columns of a record.
        rows: of addresses.
        num_rows: rows of the group.
        capacity: records of a segment.
    """

    def __init__(
        self,
        database: Database,
        group: int,
        width: int,
        rows: AddressedRows,
        num_rows: int,
        *,
        capacity: int | None = None,
    ) -> None:
        self._database = database
        self._group = group
        self._width = width
        self._rows = rows
        self._num_rows = num_rows
        self._capacity = capacity or segment_capacity(width, segment_bytes(4 * width))
        # Zeroed pages cost nothing until touched, so "not here" is zero and numbers are kept plus one.
        self._numbers = np.zeros(num_rows, np.uint32)
        self._next_sequence = 0
        self._slot_of: dict[int, int] = {}  # by sequence number
        self._words: dict[int, NDArray[np.uint32]] = {}  # of segments that are not written yet, by slot
        self._free: list[int] = []
        self._sequence = np.zeros(0, np.int64)  # by slot, as all below
        self._state = np.zeros(0, np.int8)
        self._count = np.zeros(0, np.int32)
        self._live = np.zeros(0, np.int32)
        self._pinned = np.zeros(0, bool)
        self._base = np.zeros(0, np.int64)
        self.num_live = 0
        self.appended_records = 0  # reclaimed ones included
        self.reclaimed_records = 0
        database.attach(group, self)
        self._tail, self._tail_slot = SegmentBuilder(self._capacity, width), -1

    @property
    def folder(self) -> Path:
        """Of the store."""
        return self._database.path

    def append(self, addresses: NDArray[np.int64], records: NDArray[np.float32]) -> None:
        """Takes records [n, width]; they are the newest of ``addresses`` [n] from now on.

        Raises:
            UserError: the log cannot be written.
        """
        while len(addresses):
            done = self._fill_tail(addresses, records)
            addresses, records = addresses[done:], records[done:]
            if self._tail_slot < 0:  # it was full
                self._reclaim()

    def read(self, addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copies the newest records of ``addresses`` [n] into ``out`` [n, width]; all must be here.

        Raises:
            UserError: one is damaged; names its row.
        """
        rows = self._rows.rows_of(addresses)
        numbers = self._numbers[addresses].astype(np.int64) - 1
        target = out if out.flags.c_contiguous else np.empty(out.shape, np.float32)
        with self._database.lock:
            damaged = gather(numbers, rows, self._base, self._count, target.view(np.uint32))
        if damaged >= 0:
            segment = int(self._sequence[numbers[damaged] >> PLACE_BITS])
            raise self._database.damaged(
                f"the record of row {rows[damaged]} of group {self._group}, in segment {segment}, is not what was "
                "written"
            )
        if target is not out:
            out[...] = target

    def scan(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Addresses [n] and records [n, width] of all that is here, a segment at a time, in the order on the disk.

        Nothing may be appended meanwhile.

        Raises:
            UserError: one is damaged; names its row.
        """
        for _, slot in sorted(self._slot_of.items()):
            if self._live[slot]:
                yield self._live_records(slot)

    def begin_checkpoint(self) -> int:
        """Seals what was appended; the number of the first segment after the checkpoint.

        Raises:
            UserError: the log cannot be written.
        """
        if self._tail_slot >= 0 and self._tail.count:
            self._seal()
            self._reclaim()
            if self._tail_slot >= 0 and self._tail.count:
                self._seal()
        return self._next_sequence

    def fingerprint(self) -> int:
        """`cachedlrm.store.segment.fingerprint` of the segments with a live record."""
        return fingerprint(self._sequence[self._live > 0])

    def end_checkpoint(self) -> None:
        """The checkpoint is queued; what only the one before needed may go."""
        self._pinned = self._live > 0
        self._drop_dead()

    def load(self, boundary: int, segments: int) -> None:
        """Takes over the segments of a checkpoint; those from number ``boundary`` on are deleted.

        Args:
            boundary: the first segment after the checkpoint.
            segments: `fingerprint` at the checkpoint.

        Raises:
            UserError: one is damaged or missing.
        """
        behind = []
        for sequence, value in self._database.segments(self._group):
            if sequence >= boundary:
                behind.append(sequence)
                continue
            try:
                view = parse_segment(value, sequence, self._width, self._num_rows)
            except ValueError as error:
                raise self._database.damaged(f"segment {sequence} of group {self._group}: {error}") from error
            slot = self._take_slot(sequence, _STORED)
            self._count[slot] = len(view.rows)
            self._base[slot] = np.frombuffer(value, np.uint8).ctypes.data
            self._supersede(self._rows.register(view.rows.astype(np.int64)), slot, slot << PLACE_BITS)
        if self.fingerprint() != segments:
            raise self._database.damaged(f"group {self._group} lacks a segment")
        self._next_sequence = max([boundary, *(sequence + 1 for sequence in behind)])
        for sequence in behind:
            self._database.write(Delete(self._group, sequence))
        self.end_checkpoint()

    def stored(self, sequence: int, address: int) -> None:
        """See `cachedlrm.store.database.Stored`; called with the database's lock held."""
        slot = self._slot_of.get(sequence)
        if slot is not None:
            self._base[slot] = address
            self._state[slot] = _STORED
            self._words.pop(slot, None)

    def sequences(self) -> list[int]:
        """See `cachedlrm.store.database.Stored`."""
        return [int(sequence) for sequence, slot in list(self._slot_of.items()) if self._state[slot] == _STORED]

    def _supersede(self, addresses: NDArray[np.int64], slot: int, first_number: int) -> None:
        """Records of ``addresses`` are now in ``slot``, at ``first_number`` and the numbers after it."""
        self.num_live += _supersede(addresses, first_number, self._numbers, self._live)
        self._live[slot] += len(addresses)

    def _open_tail(self) -> None:
        self._tail = SegmentBuilder(self._capacity, self._width)
        self._tail_slot = self._take_slot(self._next_sequence, _FILLING)
        self._next_sequence += 1
        self._count[self._tail_slot] = self._capacity  # where its records lie follows from it
        self._base[self._tail_slot] = self._tail.words.ctypes.data

    def _fill_tail(self, addresses: NDArray[np.int64], records: NDArray[np.float32]) -> int:
        """Appends as many as the tail has room for, and seals it if it is full then; how many."""
        if self._tail_slot < 0:
            self._open_tail()
        part = addresses[: self._capacity - self._tail.count]
        first_number = (self._tail_slot << PLACE_BITS) + self._tail.count
        self._tail.append(self._rows.rows_of(part), records[: len(part)])
        self._supersede(part, self._tail_slot, first_number)
        self.appended_records += len(part)
        if self._tail.count == self._capacity:
            self._seal()
        return len(part)

    def _take_slot(self, sequence: int, state: int) -> int:
        if not self._free:
            size = len(self._state)
            if size == _MOST_SEGMENTS:
                raise UserError(f"the store in {self._database.path} is full: {size:,} segments; fold ids")
            more = min(max(64, size), _MOST_SEGMENTS - size)
            with self._database.lock:  # the writer changes entries
                self._sequence = np.concatenate([self._sequence, np.zeros(more, np.int64)])
                self._state = np.concatenate([self._state, np.zeros(more, np.int8)])
                self._count = np.concatenate([self._count, np.zeros(more, np.int32)])
                self._live = np.concatenate([self._live, np.zeros(more, np.int32)])
                self._pinned = np.concatenate([self._pinned, np.zeros(more, bool)])
                self._base = np.concatenate([self._base, np.zeros(more, np.int64)])
            self._free = list(range(size + more - 1, size - 1, -1))
        slot = self._free.pop()
        with self._database.lock:
            self._sequence[slot], self._state[slot] = sequence, state
            self._slot_of[sequence] = slot
        return slot

    def _seal(self) -> None:
        """Hands the tail to the writer."""
        slot, sequence = self._tail_slot, int(self._sequence[self._tail_slot])
        words = self._tail.finish(sequence)
        with self._database.lock:
            self._words[slot] = words
            self._count[slot] = self._tail.count
            self._base[slot] = words.ctypes.data
            self._state[slot] = _WAITING
        self._tail_slot = -1
        self._database.write(Put(self._group, sequence, words))
        self._drop_if_dead(slot)

    def _reclaim(self) -> None:
        """Rewrites the live records of the emptiest segments while the log is too large for what lives in it."""
        self._drop_dead()
        while (slot := self._emptiest()) is not None:
            addresses, records = self._live_records(slot)
            self.reclaimed_records += len(addresses)
            while len(addresses):
                done = self._fill_tail(addresses, records)
                addresses, records = addresses[done:], records[done:]
            self._drop_if_dead(slot)

    def _emptiest(self) -> int | None:
        """The segment to reclaim, if the log is too large."""
        sealed = np.flatnonzero((self._state >= _WAITING) & (self._live > 0))
        counts, live = self._count[sealed], self._live[sealed]
        used, needed = int(counts.sum()), int(live.sum())
        if used > USED_SHARE * needed + SPARE_SEGMENTS * self._capacity:
            return int(sealed[np.argmin(live / counts)])
        if len(sealed) > 2 * needed // self._capacity + _SMALL_SEGMENTS:
            return int(sealed[np.argmin(live)])
        return None

    def _live_records(self, slot: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Addresses and records of the live records of a segment."""
        count = self._tail.count if slot == self._tail_slot else int(self._count[slot])
        with self._database.lock:
            base = int(self._base[slot])
            will_read(base, HEADER_BYTES + count * (2 + self._width) * 4)
            words = (ctypes.c_uint32 * (HEADER_BYTES // 4 + count)).from_address(base)
            rows = np.array(words, np.uint32)[HEADER_BYTES // 4 :].astype(np.int64)
        addresses = self._rows.addresses(rows)
        numbers = (slot << PLACE_BITS) + np.arange(count)
        live = addresses[self._numbers[addresses].astype(np.int64) - 1 == numbers]
        records = np.empty((len(live), self._width), np.float32)
        self.read(live, records)
        return live, records

    def _drop_dead(self) -> None:
        for slot in np.flatnonzero((self._state >= _WAITING) & (self._live == 0) & ~self._pinned):
            self._drop_if_dead(int(slot))

    def _drop_if_dead(self, slot: int) -> None:
        """Deletes a segment without live records, unless the last checkpoint needs it."""
        if self._live[slot] or self._pinned[slot] or self._state[slot] < _WAITING:
            return
        sequence = int(self._sequence[slot])
        with self._database.lock:
            self._state[slot] = _FREE
            del self._slot_of[sequence]
            self._words.pop(slot, None)
        self._database.write(Delete(self._group, sequence))
        self._free.append(slot)


@numba.njit(cache=True, nogil=True)
def _supersede(
    addresses: NDArray[np.int64], first_number: int, numbers: NDArray[np.uint32], live: NDArray[np.int32]
) -> int:
    """Notes the new numbers and what they make dead; how many addresses had no record before."""
    num_new = 0
    for index in range(len(addresses)):
        old = numbers[addresses[index]]
        if old:
            live[(old - 1) >> PLACE_BITS] -= 1
        else:
            num_new += 1
        numbers[addresses[index]] = np.uint32(first_number + index + 1)
    return num_new
