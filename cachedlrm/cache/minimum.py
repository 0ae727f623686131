"""The fewest rows that any policy could have moved: Belady's MIN, computed online.

MIN ("A study of replacement algorithms", IBM Systems Journal 5(2), 1966) evicts the row whose next use is farthest, so
it seems to need the future. How many rows it moves does not: a row used by batches ``p`` and ``j``, and by none
between, is still there at ``j`` if it can be given a place in every batch between; granting places in the order of the
second use, the shorter wait first, keeps as many rows as any choice (Jain and Lin, "Back to the Future: Leveraging
Belady's Algorithm for Improved Cache Replacement", ISCA 2016, where it is called OPTgen). So one number per batch is
all the memory it takes, and at any moment the count is that of the stream so far.
"""

import numba
import numpy as np

from cachedlrm.cache.working_set import NEVER, Int32s, Int64s, WorkingSet


class MinimumMoves:
    """Rows that Belady's MIN brings in, batch by batch, with all rows of a batch resident together.

    After each batch at most ``quota_slots`` rows stay, or its own if it has more. Memory: 8 bytes for each batch since
    the last in which no place is left, twice at most.

    Args:
        quota_slots: slots the cache may keep.
    """

    def __init__(self, quota_slots: int) -> None:
        self._quota_slots = quota_slots
        # By batch from `_base` on: rows of other batches that may still stay during it, and counts, zero between calls.
        self._places: Int32s = np.zeros(0, np.int32)
        self._counts: Int32s = np.zeros(0, np.int32)
        self._base = 0
        self._first = 0  # no row used last before this batch can be there any more

    def add(self, working_set: WorkingSet) -> int:
        """The rows brought in for the next batch, first touches among them.

        Args:
            working_set: of a batch later than all before.
        """
        assert working_set.previous is not None
        batch = working_set.index
        if not len(self._places):
            self._base = self._first = batch
        if batch - self._base >= len(self._places):
            still = self._places[self._first - self._base : batch - self._base]
            self._places = np.append(still, np.zeros(len(still) + 64, np.int32))
            self._counts = np.zeros(len(self._places), np.int32)
            self._base = self._first
        kept, self._first = _keep(working_set.previous, batch, self._first, self._base, self._places, self._counts)
        places = max(0, self._quota_slots - working_set.num_rows)
        self._places[batch - self._base] = places
        if not places:
            self._first = batch
        return working_set.num_rows - kept


@numba.njit(cache=True, nogil=True)
def _keep(previous: Int64s, batch: int, first: int, base: int, places: Int32s, counts: Int32s) -> tuple[int, int]:
    """Gives rows of ``batch`` places in the batches since their last use: (rows kept, the new first batch)."""
    for position in range(len(previous)):
        last_use = previous[position] >> 32
        if previous[position] != NEVER and last_use >= first:
            counts[last_use - base] += 1
    kept = 0
    room = len(previous)  # that all batches after a last use have left
    for last in range(batch - base - 1, first - base - 1, -1):
        counts[last] = min(counts[last], room)
        kept += counts[last]
        room = min(room - counts[last], places[last])
    staying = 0
    for between in range(first - base, batch - base):
        places[between] -= staying
        staying += counts[between]
        counts[between] = 0
        if not places[between]:
            first = between + base
    return kept, first
