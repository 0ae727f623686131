"""Choosing victims: the slots with the lowest ranks, exactly, without looking at every slot in every batch.

A slot's rank is its key, then its last use. One scan over the slots sorts those below a threshold; batches take from
them until none is left. An entry whose slot was used since is skipped, and the slot enters again, by a heap beside the
sorted ones, as soon as it may be evicted and if its new rank is below the threshold. So what is kept always has every
candidate below the threshold, and the victims are those that a scan for each batch would choose.
"""

from collections import deque
from typing import NamedTuple, Protocol

import numba
import numpy as np

from cachedlrm.base.kernels import AHEAD, load_ahead
from cachedlrm.cache.working_set import Int32s, Int64s

_SAMPLE = 4096  # slots whose ranks say where the threshold lies
_NO_LIMIT = 2**31  # above every key
_NOTHING, _EVERYTHING = np.int64(-(2**63)), np.int64(2**63 - 1)  # thresholds
_NO_SLOTS = np.empty(0, np.int64)

FREE = 2**63 - 1
"""The rank of a free slot: above those of all others."""
LAST_USE = 2**32 - 1
"""The bits of a rank that hold the last use."""


class SlotRanks(Protocol):
    """The part of a policy that the reserve reads.

    Attributes:
        ranks: [num_slots] int64, ``key << 32 | last use`` or `FREE`; none falls between two uses of its slot.
        known_from: the lowest key of a slot whose next use is known.
    """

    ranks: Int64s
    known_from: int


class _Entries(NamedTuple):
    """Slots and the ranks they had when they were entered."""

    ranks: Int64s
    slots: Int32s


class _Use(NamedTuple):
    """A batch that was planned: its slots, and the keys they had then, none below ``lowest``."""

    batch: int
    slots: Int64s
    keys: Int32s
    lowest: int


def _room(size: int) -> _Entries:
    return _Entries(np.empty(size, np.int64), np.empty(size, np.int32))


class VictimReserve:
    """The next victims in order.

    Memory: 15 bytes for each slot of the reserve, so 1.9 for each slot there is; in a scan 7.4 (4 to list those below
    the threshold, and two reserves), more if a batch takes more than a reserve.

    Args:
        policy: its ``ranks`` [num_slots]; the lowest is evicted first, of equal ones that of the lowest slot.
        reserve_share: share of the slots that one scan picks. More makes scans rarer and sorting slower.
    """

    def __init__(self, policy: SlotRanks, reserve_share: float = 1 / 8) -> None:
        self._ranks = policy.ranks
        self._known_from = policy.known_from
        self._reserve_share = reserve_share
        self._sorted = _room(0)
        self._taken = 0  # of the sorted entries
        self._heap = _room(0)
        self._heap_size = 0
        self._threshold = _NOTHING
        self._used: deque[_Use] = deque()
        self._entered = -1  # slots used last by batches up to here are candidates, those of `_used` wait

    def used(self, batch: int, slots: Int64s, keys: Int32s) -> None:
        """A batch was planned, its rows in ``slots`` [U] with ``keys`` [U]. Call it for every batch."""
        self._used.append(_Use(batch, slots, keys, _lowest(keys)))

    def take(self, count: int, used_slots: int, newest: int, newest_preferred: int) -> tuple[Int64s, int]:
        """Frees ``count`` slots: sets their ranks to `FREE`.

        First go slots without a known next use, those whose training is over before the others; then the rest.

        Args:
            count: how many; there must be as many that were used last by ``newest`` or before.
            used_slots: slots below this number have ever been used.
            newest: last batch whose rows may be evicted at all (the one before the batch being planned).
            newest_preferred: last batch whose rows may be evicted without waiting for its training.

        Returns:
            The slots [count] int64, and the batch that used any of them last (-1 for none).
        """
        if not count:
            self._let_in(newest_preferred)
            return _NO_SLOTS, -1
        victims = np.empty(count, np.int64)
        found, latest = self._take_lowest(victims, 0, used_slots, newest_preferred, self._known_from)
        if found < count:
            found, last = self._take_in_flight(victims, found, newest_preferred, newest, self._known_from)
            latest = max(latest, last)
        if found < count:
            found, last = self._take_lowest(victims, found, used_slots, newest, _NO_LIMIT)
            latest = max(latest, last)
        if found < count:
            raise AssertionError(f"{count} victims wanted, {found} found")
        return victims, latest

    def _take_lowest(
        self, victims: Int64s, found: int, used_slots: int, newest: int, below_key: int
    ) -> tuple[int, int]:
        """Fills ``victims`` from ``found`` on with slots last used at ``newest`` or before; (found, latest use)."""
        self._let_in(newest)
        latest = -1
        while True:
            found, self._taken, self._heap_size, last, is_over = _take(
                *self._sorted, self._taken, *self._heap, self._heap_size,
                self._threshold, below_key, self._ranks, victims, found,
            )  # fmt: skip
            latest = max(latest, last)
            if self._heap_size == len(self._heap.ranks):  # no room for an entry that should be in it
                self._forget()
            if found == len(victims) or is_over or not self._scan(len(victims) - found, used_slots):
                return found, latest

    def _take_in_flight(
        self, victims: Int64s, found: int, newest_preferred: int, newest: int, below_key: int
    ) -> tuple[int, int]:
        """The same with the lowest slots of batches in flight whose keys are below ``below_key``."""
        ranks = self._ranks
        batches = [use.slots[ranks[use.slots] & LAST_USE == use.batch] for use in self._used if use.batch <= newest]
        slots = np.sort(np.concatenate([*batches, np.empty(0, np.int64)]))
        slots = slots[ranks[slots] >> 32 < below_key]
        chosen = slots[np.argsort(ranks[slots], kind="stable")[: len(victims) - found]]
        latest = int((ranks[chosen] & LAST_USE).max(initial=-1))
        ranks[chosen] = FREE
        victims[found : found + len(chosen)] = chosen
        return found + len(chosen), latest

    def _let_in(self, newest: int) -> None:
        """Makes slots used last by batch ``newest`` or before candidates."""
        self._entered = max(self._entered, newest)
        while self._used and self._used[0].batch <= newest:
            use = self._used.popleft()
            if use.lowest <= self._threshold >> 32:
                self._heap_size = _push_used(
                    use.batch, use.slots, use.keys, self._ranks, self._threshold, *self._heap, self._heap_size
                )
                if self._heap_size == len(self._heap.ranks):
                    self._forget()

    def _forget(self) -> None:
        """Drops all entries; the next scan finds what qualifies."""
        self._taken, self._heap_size, self._threshold = len(self._sorted.ranks), 0, _NOTHING

    def _scan(self, count: int, used_slots: int) -> bool:
        """Refills the reserve with ``count`` slots or more, or all that qualify; False if none does."""
        ranks, newest = self._ranks[:used_slots], self._entered
        wanted = max(count + count // 8, int(used_slots * self._reserve_share))  # a sample hardly misses by an 8th
        while True:
            self._threshold = _rank_at(ranks, newest, wanted)
            found = _Entries(*_below(ranks, newest, self._threshold))
            if len(found.ranks) >= count or self._threshold == _EVERYTHING:
                break
            wanted *= 2
        order = np.argsort(found.ranks, kind="stable")
        self._sorted = _Entries(found.ranks[order], found.slots[order])
        self._taken = self._heap_size = 0
        if len(self._heap.ranks) < wanted // 4 + 1:  # a scan costs less than as many entries of a heap
            self._heap = _room(wanted // 4 + 1)
        return len(order) > 0


@numba.njit(cache=True, nogil=True, inline="always")
def rank_of(key: np.int32, last_use: int) -> np.int64:
    """Key first, then recency."""
    return (np.int64(key) << 32) | np.int64(last_use)


@numba.njit(cache=True, nogil=True)
def _lowest(keys: Int32s) -> int:
    """The lowest of ``keys``, 2^31 - 1 without any. numpy's takes 25 us to begin where caches are cold."""
    lowest = np.int32(_NO_LIMIT - 1)
    for key in keys:
        lowest = min(lowest, key)
    return int(lowest)


@numba.njit(cache=True, nogil=True)
def _rank_at(ranks: Int64s, newest: int, place: int) -> np.int64:
    """About the rank that ``place`` slots last used at ``newest`` or before are below, from an even sample of slots.

    Exact for few slots; `_EVERYTHING` if there are hardly more.
    """
    stride = max(1, len(ranks) // _SAMPLE)
    sample = np.empty(len(ranks) // stride + 1, np.int64)
    size = 0
    for slot in range(0, len(ranks), stride):
        if ranks[slot] & LAST_USE <= newest:
            sample[size] = ranks[slot]
            size += 1
    place = -(-place // stride)
    return np.partition(sample[:size], place)[place] if place < size else _EVERYTHING


@numba.njit(cache=True, nogil=True)
def _below(ranks: Int64s, newest: int, threshold: np.int64) -> tuple[Int64s, Int32s]:
    """The slots last used at ``newest`` or before whose rank is below ``threshold``: (ranks, slots)."""
    below = np.empty(len(ranks) + 1, np.int32)
    num_below = np.uint64(0)
    for slot in range(len(ranks)):
        below[num_below] = slot  # kept if it qualifies, which a branch would guess wrongly
        num_below += np.uint64(ranks[slot] < threshold)
    found, slots = np.empty(num_below, np.int64), np.empty(num_below, np.int32)
    size = 0
    for slot in below[:num_below]:
        if ranks[slot] & LAST_USE <= newest:
            found[size], slots[size] = ranks[slot], slot
            size += 1
    return found[:size], slots[:size]


@numba.njit(cache=True, nogil=True)
def _push(ranks: Int64s, slots: Int32s, size: int, rank: np.int64, slot: np.int32) -> int:
    """Adds an entry to a heap; its new size."""
    place = size
    while place > 0:
        parent = (place - 1) // 2
        if ranks[parent] < rank or (ranks[parent] == rank and slots[parent] < slot):
            break
        ranks[place], slots[place] = ranks[parent], slots[parent]
        place = parent
    ranks[place], slots[place] = rank, slot
    return size + 1


@numba.njit(cache=True, nogil=True)
def _pop(ranks: Int64s, slots: Int32s, size: int) -> int:
    """Removes the lowest entry, of equal ranks that of the lowest slot, from a heap; its new size."""
    size -= 1
    rank, slot = ranks[size], slots[size]
    place, child = 0, 1
    while child < size:
        other = child + 1
        if other < size and (
            ranks[other] < ranks[child] or (ranks[other] == ranks[child] and slots[other] < slots[child])
        ):
            child = other
        if rank < ranks[child] or (rank == ranks[child] and slot < slots[child]):
            break
        ranks[place], slots[place] = ranks[child], slots[child]
        place, child = child, 2 * child + 1
    ranks[place], slots[place] = rank, slot
    return size


@numba.njit(cache=True, nogil=True)
def _push_used(
    batch: int,
    used: Int64s,
    keys: Int32s,
    ranks: Int64s,
    threshold: np.int64,
    heap_ranks: Int64s,
    heap_slots: Int32s,
    size: int,
) -> int:
    """Pushes the ``used`` slots that no batch after ``batch`` used and whose rank is below the threshold.

    Stops when the heap is full. Most slots ranked higher when they were used, and no rank falls since; theirs are not
    read.
    """
    for index in range(len(used)):
        if rank_of(keys[index], batch) < threshold and size < len(heap_ranks):
            rank = ranks[used[index]]
            if rank & LAST_USE == batch and rank < threshold:
                size = _push(heap_ranks, heap_slots, size, rank, np.int32(used[index]))
    return size


@numba.njit(cache=True, nogil=True)
def _take(
    entries: Int64s,
    slots: Int32s,
    taken: int,
    heap_ranks: Int64s,
    heap_slots: Int32s,
    heap_size: int,
    threshold: np.int64,
    below_key: int,
    ranks: Int64s,
    victims: Int64s,
    found: int,
) -> tuple[int, int, int, int, bool]:
    """Moves the lowest entries of both kinds into ``victims``, as long as their keys are below ``below_key``.

    Returns:
        found, taken and heap size afterwards, the latest use of a victim, and whether ``below_key`` was met.
    """
    latest = -1
    while found < len(victims) and heap_size < len(heap_ranks):
        is_sorted = taken < len(entries)
        if heap_size and is_sorted:
            is_sorted = entries[taken] < heap_ranks[0] or (
                entries[taken] == heap_ranks[0] and slots[taken] < heap_slots[0]
            )
        if not is_sorted and not heap_size:
            break
        if (entries[taken] if is_sorted else heap_ranks[0]) >> 32 >= below_key:
            return found, taken, heap_size, latest, True
        if is_sorted:
            if taken + AHEAD < len(slots):
                load_ahead(ranks, slots[taken + AHEAD])
            entered, slot = entries[taken], slots[taken]
            taken += 1
        else:
            entered, slot = heap_ranks[0], heap_slots[0]
            heap_size = _pop(heap_ranks, heap_slots, heap_size)
        rank = ranks[slot]
        if rank == entered:
            victims[found] = slot
            found += 1
            latest = max(latest, rank & LAST_USE)
            ranks[slot] = FREE
        elif rank & LAST_USE == entered & LAST_USE and rank < threshold:  # its key has risen
            heap_size = _push(heap_ranks, heap_slots, heap_size, rank, slot)
        # Otherwise used since; such a slot enters by `_push_used`.
    return found, taken, heap_size, latest, False
