"""Eviction policies: each keeps one integer per slot, and the slot with the lowest is evicted first.

Equal keys are evicted least recently used first. Rows of batches not trained yet are spared as long as there are others
whose next use is unknown: evicting one means waiting for its training. A policy only ever says keys; choosing victims
is the same for all (`cachedlrm.cache.victims`). History is kept by address, so a row that returns has not lost its
past. The unit of use is one batch's working set: ten lookups of a row in one batch are one use, as they would be one
fetch.
"""

import sys
from collections.abc import Callable, Iterable

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.kernels import AHEAD, load_ahead, side_by_side
from cachedlrm.cache.lookup_counts import MANY, Counts, lookups_left
from cachedlrm.cache.victims import rank_of
from cachedlrm.cache.working_set import NEVER, Int32s, Int64s, WorkingSet

_SCORE_BITS = 10  # LRFU scores are fixed-point with this many fractional bits
_ONE = 1 << _SCORE_BITS
# log2(1 + 2^-d) for the difference d of two scores; beyond 12 it is under half a unit.
_LOG_SUM = np.round(np.log2(1.0 + np.exp2(-np.arange(12 * _ONE) / _ONE)) * _ONE).astype(np.int32)
_UPPER = 1 if sys.byteorder == "little" else 0  # which int32 of an int64 is its upper half
_UNKNOWN = np.empty(0, np.int32)  # next uses where no batch is known ahead
_KNOWN_USE = np.int32(2**31 - 1)  # lookahead: keys above every LRFU score, falling with the batch of the next use


class Policy:
    """The keys of the slots, all equal until a subclass writes them as batches go by.

    Args:
        num_slots: of the device.
        num_rows: of all tables.

    Attributes:
        ranks: [num_slots] int64, the planner's: ``key << 32 | last use``; the slot with the lowest is evicted first.
        keys: [num_slots] int32, the upper halves of the ranks.
        slot_of: [num_rows] int32 by address, the planner's; beside the history of policies that keep one.
        window: batches to be known ahead.
        needs_previous: whether `announce` needs to know where rows appeared before.
        known_from: keys from here on are those of rows whose next use is known; 2^31: of none.
    """

    window = 0
    needs_previous = False
    known_from = 2**31

    def __init__(self, num_slots: int, num_rows: int) -> None:
        self.ranks: Int64s = np.zeros(num_slots, np.int64)
        self.keys: Int32s = self.ranks.view(np.int32)[_UPPER::2]
        self.slot_of: Int32s = np.zeros(num_rows, np.int32)

    def announce(self, working_set: WorkingSet) -> None:
        """A batch entered the known window; it is planned `window` batches later."""

    def use(self, working_set: WorkingSet, slots: Int64s) -> Int32s:
        """A batch is being planned: finds its rows, and ranks the slots of those that are resident.

        One loop for both, as a row's slot and its history are in one line of memory.

        Args:
            working_set: of the batch.
            slots: [U]; filled with `slot_of` of the rows.

        Returns:
            The keys [U] int32 of the rows from this batch on.
        """
        return self._rank(working_set, np.zeros(working_set.num_rows, np.int32), slots)

    def _rank(self, working_set: WorkingSet, keys: Int32s, slots: Int64s) -> Int32s:
        """What `use` does, for ``keys`` [U] that are known before the rows are found."""
        _find_rows(working_set.addresses, working_set.index, keys, self.slot_of, self.ranks, slots)
        return keys


class Lru(Policy):
    """Least recently used first: all keys stay equal, and the tie-break decides."""


class Lfu(Policy):
    """Least frequently used first, counted over the whole run and kept for evicted rows ("perfect" LFU)."""

    def __init__(self, num_slots: int, num_rows: int) -> None:
        super().__init__(num_slots, num_rows)
        self._uses, self.slot_of = side_by_side(num_rows)

    def use(self, working_set: WorkingSet, slots: Int64s) -> Int32s:
        return _count_uses(working_set.addresses, working_set.index, self._uses, self.slot_of, self.ranks, slots)


class Lrfu(Policy):
    """Lowest combined recency and frequency first (Lee et al., "LRFU", IEEE Trans. Computers 50(12), 2001).

    A use ``t`` batches ago weighs ``2^(-t / half_life)``; a row's value is the sum over its uses. The order of two
    rows does not change while neither is used, so the key is the logarithm of the value seen from batch 0,
    ``log2(sum of 2^(batch / half_life))``, which only a use changes.

    Args:
        half_life: batches after which a use counts half.
    """

    def __init__(self, num_slots: int, num_rows: int, half_life: float = 2000.0) -> None:
        super().__init__(num_slots, num_rows)
        self._half_life = half_life
        self._scores, self.slot_of = side_by_side(num_rows)  # scores plus one; zero: never used

    def use(self, working_set: WorkingSet, slots: Int64s) -> Int32s:
        return self._score(working_set, slots, _UNKNOWN)

    def _score(self, working_set: WorkingSet, slots: Int64s, next_uses: Int32s) -> Int32s:
        """Counts a use; the key is the score, or tells the next use where that is known."""
        now = round(working_set.index / self._half_life * _ONE)
        return _score_uses(
            working_set.addresses, working_set.index, now, next_uses, _LOG_SUM,
            self._scores, self.slot_of, self.ranks, slots,
        )  # fmt: skip


class Static(Policy):
    """Lowest frequency in the data set first, from one pass over its ids (CachedEmbedding's DATASET policy).

    Rows of `MANY` uses or more are equal. Call `count` with every batch before training, or `take_counts` once.
    """

    def __init__(self, num_slots: int, num_rows: int) -> None:
        super().__init__(num_slots, num_rows)
        self._uses: Counts = np.zeros(num_rows, np.uint16)  # by row

    def count(self, working_sets: Iterable[WorkingSet]) -> None:
        """Counts the batches each row is used in."""
        for working_set in working_sets:
            self._uses[working_set.rows] += self._uses[working_set.rows] != MANY

    def take_counts(self, row_counts: NDArray[np.integer]) -> None:
        """Takes lookups of each row [num_rows], counted by others, in place of batches that use it."""
        self._uses = lookups_left(row_counts, epochs=1)

    def use(self, working_set: WorkingSet, slots: Int64s) -> Int32s:
        return self._rank(working_set, self._uses[working_set.rows].astype(np.int32), slots)


class Lookahead(Lrfu):
    """Farthest next use first inside the known window; rows without one in it first, by LRFU.

    Inside the window this is Belady's MIN ("A study of replacement algorithms", IBM Systems Journal 5(2), 1966). With
    `take_counts`, rows without a known use leave by how many lookups are left to them in the run, fewest first.

    Args:
        window: batches known ahead.
    """

    needs_previous = True
    known_from = 2**30

    def __init__(self, num_slots: int, num_rows: int, window: int) -> None:
        super().__init__(num_slots, num_rows)
        self.window = window
        # Row ``index % (window + 1)``: the next use of each position of batch ``index``, or NEVER.
        self._next_uses = np.empty((window + 1, 0), np.int32)
        self._next_planned = 0
        self._left: Counts | None = None  # by row

    def take_counts(self, row_counts: NDArray[np.integer], epochs: int = 1, passed: Counts | None = None) -> None:
        """Takes how often each row is still to be looked up, where that is known beforehand.

        Args:
            row_counts: lookups of each row [num_rows] in an epoch.
            epochs: of the run.
            passed: lookups of each row [num_rows] in batches that were trained before; None: there were none.
        """
        self._left = lookups_left(row_counts, epochs, passed)

    def announce(self, working_set: WorkingSet) -> None:
        assert working_set.previous is not None
        size = working_set.num_rows
        if size > self._next_uses.shape[1]:
            spare = np.empty((self.window + 1, size + size // 4 - self._next_uses.shape[1]), np.int32)
            self._next_uses = np.concatenate([self._next_uses, spare], axis=1)
        _announce_uses(
            working_set.index, working_set.addresses, working_set.previous, self.slot_of,
            self._next_planned, self._next_uses, self.keys,
        )  # fmt: skip

    def use(self, working_set: WorkingSet, slots: Int64s) -> Int32s:
        self._next_planned = working_set.index + 1
        next_uses = self._next_uses[working_set.index % (self.window + 1)]
        if self._left is None:
            return self._score(working_set, slots, next_uses)
        keys = _keys_by_lookups_left(working_set.rows, working_set.lookups, next_uses, self._left)
        return self._rank(working_set, keys, slots)


class Oracle(Policy):
    """Farthest next use first, over the whole stream: Belady's MIN. Rows never used again leave before all others.

    Call `know` before training.
    """

    known_from = 1

    def know(self, next_uses: Callable[[int], Int32s]) -> None:
        """Takes a function from a batch to the next uses [U] of its positions, `NEVER` for none."""
        self._next_uses = next_uses

    def use(self, working_set: WorkingSet, slots: Int64s) -> Int32s:
        next_uses = self._next_uses(working_set.index)
        if len(next_uses) != working_set.num_rows:
            raise AssertionError(f"batch {working_set.index} has other ids than when they were read ahead")
        return self._rank(working_set, np.where(next_uses == NEVER, np.int32(0), _KNOWN_USE - next_uses), slots)


def bytes_per_row(name: str, counts_lookups: bool) -> int:
    """Bytes that the policy called ``name`` keeps for every row of the tables; what others keep is by address.

    Args:
        name: on the command line.
        counts_lookups: whether policy ``lookahead`` takes counts.
    """
    return 2 if name == "static" or (name == "lookahead" and counts_lookups) else 0


def make_policy(name: str, num_slots: int, num_rows: int, window: int) -> Policy:
    """The policy called ``name`` on the command line."""
    if name == "lookahead":
        return Lookahead(num_slots, num_rows, window)
    policies: dict[str, type[Policy]] = {"lru": Lru, "lfu": Lfu, "lrfu": Lrfu, "static": Static, "oracle": Oracle}
    return policies[name](num_slots, num_rows)


@numba.njit(cache=True, nogil=True)
def _load_rows_ahead(addresses: Int64s, position: int, slot_of: Int32s, ranks: Int64s) -> None:
    """Starts to load what the loops below read of the rows to come: the line of a row, then that of its slot.

    Inlined by the compiler; numba's ``inline="always"`` makes it 1.6 times slower.
    """
    if position + 2 * AHEAD < len(addresses):
        load_ahead(slot_of, addresses[position + 2 * AHEAD])
    if position + AHEAD < len(addresses):
        load_ahead(ranks, max(slot_of[np.uint64(addresses[position + AHEAD])], 0))


@numba.njit(cache=True, nogil=True)
def _find_rows(addresses: Int64s, index: int, keys: Int32s, slot_of: Int32s, ranks: Int64s, slots: Int64s) -> None:
    """Fills ``slots`` with ``slot_of`` of ``addresses``; resident rows get ranks of their keys and batch ``index``."""
    for position in range(len(addresses)):
        _load_rows_ahead(addresses, position, slot_of, ranks)
        slot = slots[position] = slot_of[np.uint64(addresses[position])]
        if slot >= 0:
            ranks[np.uint64(slot)] = rank_of(keys[position], index)


@numba.njit(cache=True, nogil=True)
def _count_uses(addresses: Int64s, index: int, uses: Int32s, slot_of: Int32s, ranks: Int64s, slots: Int64s) -> Int32s:
    """`_find_rows` with keys that count uses, which it returns."""
    keys = np.empty(len(addresses), np.int32)
    for position in range(len(addresses)):
        _load_rows_ahead(addresses, position, slot_of, ranks)
        address = np.uint64(addresses[position])
        uses[address] += 1
        keys[position] = uses[address]
        slot = slots[position] = slot_of[address]
        if slot >= 0:
            ranks[np.uint64(slot)] = rank_of(keys[position], index)
    return keys


@numba.njit(cache=True, nogil=True)
def _score_uses(
    addresses: Int64s,
    index: int,
    now: int,
    next_uses: Int32s,
    log_sum: NDArray[np.int32],
    scores: Int32s,
    slot_of: Int32s,
    ranks: Int64s,
    slots: Int64s,
) -> Int32s:
    """`_find_rows` with keys that are scores or next uses, which it returns.

    score = log2(2^score + 2^now) in fixed point; positions beyond ``next_uses`` have none known.
    """
    keys = np.empty(len(addresses), np.int32)
    for position in range(len(addresses)):
        _load_rows_ahead(addresses, position, slot_of, ranks)
        address = np.uint64(addresses[position])
        score = int(scores[address]) - 1
        if score < 0:
            score = now
        else:
            difference = abs(score - now)
            score = max(score, now)
            if difference < len(log_sum):
                score += int(log_sum[difference])
        scores[address] = score + 1
        is_known = position < len(next_uses) and next_uses[position] != NEVER
        keys[position] = _KNOWN_USE - next_uses[position] if is_known else score
        slot = slots[position] = slot_of[address]
        if slot >= 0:
            ranks[np.uint64(slot)] = rank_of(keys[position], index)
    return keys


@numba.njit(cache=True, nogil=True)
def _announce_uses(
    index: int,
    addresses: Int64s,
    previous: Int64s,
    slot_of: Int32s,
    next_planned: int,
    next_uses: NDArray[np.int32],
    keys: Int32s,
) -> None:
    """Tells the last known use of each row of batch ``index`` that its next use is this batch.

    A row last used in a batch not yet planned learns it there; a row that is merely resident, at its slot.
    """
    ring = len(next_uses)
    place = index % ring
    next_uses[place, :] = NEVER
    for position in range(len(addresses)):
        batch = previous[position] >> 32
        if previous[position] != NEVER and batch >= next_planned:
            before = place - (index - batch)  # no remainder: the window is shorter than the ring
            next_uses[before if before >= 0 else before + ring, previous[position] & 0xFFFFFFFF] = index
        elif slot_of[addresses[position]] >= 0:
            keys[slot_of[addresses[position]]] = _KNOWN_USE - index


@numba.njit(cache=True, nogil=True)
def _keys_by_lookups_left(rows: Int64s, lookups: Int32s, next_uses: Int32s, left: Counts) -> Int32s:
    """Takes this batch's lookups from those left; a key is the next use if known, else the lookups left."""
    keys = np.empty(len(rows), np.int32)
    for position in range(len(rows)):
        if position + AHEAD < len(rows):
            load_ahead(left, rows[position + AHEAD])
        row = rows[position]
        if left[row] != MANY:
            left[row] -= min(left[row], lookups[position])
        known = next_uses[position] != NEVER
        keys[position] = _KNOWN_USE - next_uses[position] if known else left[row]
    return keys
