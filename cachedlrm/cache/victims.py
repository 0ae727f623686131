"""Choosing victims: the slots with the lowest keys, without looking at every slot in every batch.

One scan over the slots picks a reserve of the lowest keys, worth several batches; each batch takes from it. A candidate
used since the scan is skipped. So the scan's cost is spread, a use costs one write, and the policies need no queues.
"""

from typing import Protocol

import numba
import numpy as np

from cachedlrm.cache.working_set import Int32s, Int64s

_BINS = 4096


class SlotKeys(Protocol):
    """What the scan needs of a policy."""

    keys: Int32s


class VictimReserve:
    """The next victims in order.

    Args:
        policy: its ``keys`` [num_slots]; the lowest is evicted first.
        last_use: [num_slots] int32, batch that used a slot last, -1 for a free slot. Shared with the planner.
        reserve_share: share of the slots that one scan picks. More makes scans rarer and choices staler.
    """

    def __init__(self, policy: SlotKeys, last_use: Int32s, reserve_share: float = 1 / 32) -> None:
        self._policy = policy
        self._last_use = last_use
        self._reserve_share = reserve_share
        self._slots = np.empty(0, np.int64)
        self._ranks = np.empty(0, np.int64)
        self._taken = 0

    def take(self, count: int, used_slots: int, newest: int, newest_preferred: int) -> Int64s:
        """``count`` slots to evict: [count] int64.

        Args:
            count: how many; there must be as many with ``last_use <= newest``.
            used_slots: slots below this number have ever been used.
            newest: last batch whose rows may be evicted at all (the one before the batch being planned).
            newest_preferred: last batch whose rows may be evicted without waiting for its training.
        """
        victims = np.empty(count, np.int64)
        found = 0
        for horizon in (newest_preferred, newest):
            while found < count:
                found, self._taken = _take(
                    self._slots, self._ranks, self._taken, self._policy.keys, self._last_use, horizon, victims, found
                )
                if found == count or not self._scan(count - found, used_slots, horizon, victims[:found]):
                    break
        if found < count:
            raise AssertionError(f"{count} victims wanted, {found} found")
        return victims

    def _scan(self, count: int, used_slots: int, horizon: int, taken: Int64s) -> bool:
        """Refills the reserve; False if no slot qualifies."""
        taken_uses = self._last_use[taken].copy()
        self._last_use[taken] = -1  # already victims of this batch: not again
        wanted = max(count, int(used_slots * self._reserve_share))
        slots, ranks = _lowest(self._policy.keys, self._last_use, used_slots, horizon, wanted)
        self._last_use[taken] = taken_uses
        order = np.argsort(ranks, kind="stable")
        self._slots, self._ranks, self._taken = slots[order], ranks[order], 0
        return len(slots) > 0


@numba.njit(cache=True, nogil=True)
def _rank(key: np.int32, last_use: np.int32) -> np.int64:
    """Key first, then recency."""
    return (np.int64(key) << 32) | np.int64(last_use)


@numba.njit(cache=True, nogil=True)
def _take(
    slots: Int64s, ranks: Int64s, taken: int, keys: Int32s, last_use: Int32s, horizon: int, victims: Int64s, found: int
) -> tuple[int, int]:
    """Moves reserve entries that were not used since the scan into ``victims``; (found, taken) afterwards."""
    while found < len(victims) and taken < len(slots):
        slot = slots[taken]
        if last_use[slot] >= 0 and last_use[slot] <= horizon and _rank(keys[slot], last_use[slot]) == ranks[taken]:
            victims[found] = slot
            found += 1
        taken += 1
    return found, taken


@numba.njit(cache=True, nogil=True)
def _lowest(keys: Int32s, last_use: Int32s, used_slots: int, horizon: int, wanted: int) -> tuple[Int64s, Int64s]:
    """At least ``wanted`` slots with the lowest ranks among those last used at ``horizon`` or before (all, if fewer).

    A histogram over the range of ranks finds the rank below which enough lie; a crowded last bin is split again.
    """
    num_slots = 0
    low, high = np.int64(2**63 - 1), np.int64(-1)
    for slot in range(used_slots):
        if 0 <= last_use[slot] <= horizon:
            rank = _rank(keys[slot], last_use[slot])
            low, high = min(low, rank), max(high, rank)
            num_slots += 1
    below = 0  # slots with a rank under `low`, all chosen
    counts = np.empty(_BINS, np.int64)
    while num_slots > wanted:
        width = (high - low) // _BINS + 1
        counts[:] = 0
        for slot in range(used_slots):
            if 0 <= last_use[slot] <= horizon:
                rank = _rank(keys[slot], last_use[slot])
                if low <= rank <= high:
                    counts[(rank - low) // width] += 1
        last_bin = 0
        while below + counts[last_bin] < wanted:
            below += counts[last_bin]
            last_bin += 1
        low += last_bin * width
        high = low + width - 1
        if width == 1 or below + counts[last_bin] <= wanted + wanted // 4:
            num_slots = below + counts[last_bin]
            break
    slots, ranks = np.empty(num_slots, np.int64), np.empty(num_slots, np.int64)
    chosen = 0
    for slot in range(used_slots):
        if 0 <= last_use[slot] <= horizon:
            rank = _rank(keys[slot], last_use[slot])
            if rank <= high:
                slots[chosen], ranks[chosen] = slot, rank
                chosen += 1
    return slots, ranks
