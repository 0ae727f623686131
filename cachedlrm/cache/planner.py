"""The planner decides, from ids alone, which rows each batch fetches, creates and evicts, batches ahead of training.

It runs on the host and never asks the device. It decides on a `Plan`, which `cachedlrm.cache.transfer` carries out.
"""

from dataclasses import dataclass

import numba
import numpy as np

from cachedlrm.cache.counters import TABLE_COUNTS, CacheCounters
from cachedlrm.cache.minimum import MinimumMoves
from cachedlrm.cache.policies import Policy
from cachedlrm.cache.victims import FREE, LAST_USE, VictimReserve, rank_of
from cachedlrm.cache.working_set import NEVER, Int32s, Int64s, WorkingSet

# slot_of[address]: the slot (>= 0), NEVER (-1) before the first admission, or -2 - plan after an eviction by `plan`.
_EVICTED = -2

BYTES_PER_SLOT = 20
"""Of the host's memory, rounded up: a rank and an address take 12, and the choice of victims 7.4 in a scan."""

NO_ROWS: Int64s = np.empty(0, np.int64)
"""Of all plans that move none in some way."""


@dataclass(frozen=True)
class Plan:
    """The moves that one batch needs. U rows in the working set, E evicted, F fetched, I first touches.

    Carried out in this order: evict, then fetch, then create. A slot may be evicted and admitted to in one plan.

    Attributes:
        index: number of the batch.
        slots: [U] int64, slot of each position.
        evict_addresses, evict_slots: [E] int64, rows to write back (every trained row is dirty) and where they lie.
        fetch_addresses, fetch_slots: [F] int64, rows to read from the store and where to.
        create_rows, create_slots: [I] int64, first touches and where to put their initial records.
        read_after: the plan whose write-backs (and all before) must be in the store before fetching; -1 for none.
        evict_after: the batch that must be trained before the victims' records are final; -1 for none.
        counters: this batch alone.
        table_counts: [num_tables, 4] int64, the `TABLE_COUNTS` of this batch alone.
    """

    index: int
    slots: Int64s
    evict_addresses: Int64s
    evict_slots: Int64s
    fetch_addresses: Int64s
    fetch_slots: Int64s
    create_rows: Int64s
    create_slots: Int64s
    read_after: int
    evict_after: int
    counters: CacheCounters
    table_counts: Int64s


class Planner:
    """Residency of rows in the slots.

    Announce each batch once, in order, and plan it when the `window` batches after it are announced too, or the stream
    has ended.

    Memory: 4 bytes per touched row, 12 per slot, those of the reserve of victims, and the policy's.

    Args:
        quota_slots: slots the cache may keep.
        num_slots: slots there are; those beyond the quota are used only by a batch whose working set exceeds it.
        policy: eviction policy with keys for ``num_slots``; has the arrays of slots by row and of ranks by slot.
        in_flight: batches that may be planned but not trained; their rows are spared as victims where possible,
            as evicting one means waiting for its training, but not at the cost of a row whose next use is known.
        minimum: counts the rows that MIN would move; None: not counted.
        num_tables: T; a batch's bags are those of T tables, sample after sample. 1: counts are of all tables together.

    Attributes:
        window: batches that the policy is to know ahead.
    """

    def __init__(
        self,
        quota_slots: int,
        num_slots: int,
        policy: Policy,
        in_flight: int,
        *,
        minimum: MinimumMoves | None = None,
        num_tables: int = 1,
    ) -> None:
        self._num_tables = num_tables
        self._quota_slots = quota_slots
        self._num_slots = num_slots
        self._policy = policy
        self.window = policy.window
        self._in_flight = in_flight
        self._minimum = minimum
        self.slot_of = policy.slot_of
        self.num_addresses = 0
        self._address_in: Int32s = np.empty(num_slots, np.int32)
        self._used_slots = 0  # slots from here on were never used
        self._free_slots = np.empty(0, np.int64)  # used once, free now
        self._reserve = VictimReserve(policy)

    @property
    def resident_rows(self) -> int:
        return self._used_slots - len(self._free_slots)

    def restore(self, num_addresses: int) -> None:
        """The store has the records of addresses below ``num_addresses``, from a run before this one."""
        self.slot_of[:num_addresses] = _EVICTED
        self.num_addresses = num_addresses

    def announce(self, working_set: WorkingSet) -> None:
        """Makes a batch known."""
        self.slot_of[self.num_addresses : working_set.num_addresses] = NEVER
        self.num_addresses = working_set.num_addresses
        self._policy.announce(working_set)

    def plan(self, working_set: WorkingSet) -> Plan:
        """Plans the oldest batch that is announced and not planned.

        Raises:
            AssertionError: its working set exceeds ``num_slots`` (callers check this before training).
        """
        index, addresses = working_set.index, working_set.addresses
        size = working_set.num_rows
        if size > self._num_slots:
            raise AssertionError(f"batch {index} needs {size} slots of {self._num_slots}")
        slots = np.empty(size, np.int64)
        missing = np.empty(size, np.int64)
        table_counts = np.zeros((self._num_tables, len(TABLE_COUNTS)), np.int64)
        keys = self._policy.use(working_set, slots)
        num_missing, hit_lookups = _count(
            slots, working_set.lookups, working_set.first_lookups, working_set.offsets, missing, table_counts
        )
        evict_slots, evict_addresses, evict_after = self._evict(index, size, num_missing)
        admit_slots = self._free_slots_for(num_missing, evict_slots)
        fetch_addresses = fetch_slots = create_rows = create_slots = NO_ROWS
        read_after = -1
        if num_missing:
            fetch_addresses, fetch_slots, create_rows, create_slots, read_after = _admit(
                working_set.rows, addresses, index, keys, missing[:num_missing], admit_slots,
                self.slot_of, self._address_in, self._policy.ranks, slots,
            )  # fmt: skip
        self._reserve.used(index, slots, keys)
        num_created = len(create_slots)
        return Plan(
            index=index,
            slots=slots,
            evict_addresses=evict_addresses,
            evict_slots=evict_slots,
            fetch_addresses=fetch_addresses,
            fetch_slots=fetch_slots,
            create_rows=create_rows,
            create_slots=create_slots,
            read_after=read_after,
            evict_after=evict_after,
            counters=CacheCounters(
                lookups=len(working_set.positions),
                hit_lookups=hit_lookups,
                working_set_rows=size,
                resident_rows=size - num_missing,
                first_touch_rows=num_created,
                fetched_rows=num_missing - num_created,
                evicted_rows=len(evict_slots),
                written_back_rows=len(evict_slots),
                moved_rows_min=0 if self._minimum is None else self._minimum.add(working_set),
            ),
            table_counts=table_counts,
        )

    def _evict(self, index: int, size: int, num_missing: int) -> tuple[Int64s, Int64s, int]:
        """Chooses victims so that residents stay within the quota; (slots, addresses, evict_after)."""
        count = max(0, self.resident_rows + num_missing - max(self._quota_slots, size))
        slots, evict_after = self._reserve.take(count, self._used_slots, index - 1, index - 1 - self._in_flight)
        if not count:
            return NO_ROWS, NO_ROWS, evict_after
        addresses = self._address_in[slots].astype(np.int64)
        self.slot_of[addresses] = _EVICTED - index
        return slots, addresses, evict_after

    def _free_slots_for(self, count: int, evicted: Int64s) -> Int64s:
        """``count`` free slots: just evicted ones, then older free ones, then ones never used."""
        if count == len(evicted):
            return evicted
        free = np.concatenate([self._free_slots, evicted])
        split = max(0, len(free) - count)
        self._free_slots, taken = free[:split], free[split:]
        fresh = np.arange(self._used_slots, self._used_slots + count - len(taken))
        self._used_slots += len(fresh)
        return np.concatenate([taken, fresh])

    def resident(self, since: int = 0) -> tuple[Int64s, Int64s]:
        """Resident rows used by batch ``since`` or later: (addresses, slots), each [n] int64."""
        used = self._policy.ranks[: self._used_slots]
        slots = np.flatnonzero((used != FREE) & (used & LAST_USE >= since))
        return self._address_in[slots].astype(np.int64), slots


@numba.njit(cache=True, nogil=True)
def _count(
    slots: Int64s,
    lookups: Int32s,
    first_lookups: Int32s,
    offsets: Int32s,
    missing: Int64s,
    table_counts: Int64s,
) -> tuple[int, int]:
    """Counts a batch, and finds which of its rows are not resident.

    Args:
        slots: [U], states of ``slot_of``.
        lookups: of the `WorkingSet`.
        first_lookups: of the `WorkingSet`.
        offsets: of the `WorkingSet`.
        missing: [U]; filled with positions of rows that are not resident.
        table_counts: [num_tables, 4] of zeros; filled with the `TABLE_COUNTS` of the batch.

    Returns:
        The number of missing positions, and of lookups that hit.
    """
    num_tables = len(table_counts)
    num_missing = np.uint32(0)  # unsigned, as `_deduplicate` has its indices
    last_bag = len(offsets) - 2
    is_one_hot = offsets[-1] <= last_bag + 1  # as good as: of bags of many lookups a guess is far off
    first_bag = bag = before = 0  # `first_bag` of a sample; as first lookups ascend, no division is needed
    for position in range(len(slots)):
        slot = slots[position]
        first = first_lookups[position]
        if is_one_hot:
            bag = min(bag + first - before, last_bag)  # its bag, where all have one lookup
            while offsets[np.uint32(bag)] > first:
                bag -= 1
        while offsets[np.uint32(bag + 1)] <= first:
            bag += 1
        before = first
        while bag >= first_bag + num_tables:
            first_bag += num_tables
        table = np.uint32(bag - first_bag)
        is_hit = np.uint32(slot >= 0)  # no branch, which would be guessed wrongly
        table_counts[table, is_hit] += lookups[position]  # of column 0, those that hit are added below
        table_counts[table, 2] += 1
        table_counts[table, 3] += slot == NEVER
        missing[num_missing] = position
        num_missing = np.uint32(num_missing + 1 - is_hit)
    hit_lookups = 0
    for each in range(num_tables):
        hit_lookups += table_counts[each, 1]
        table_counts[each, 0] += table_counts[each, 1]
    return int(num_missing), hit_lookups


@numba.njit(cache=True, nogil=True)
def _admit(
    rows: Int64s,
    addresses: Int64s,
    index: int,
    keys: Int32s,
    missing: Int64s,
    admit_slots: Int64s,
    slot_of: Int32s,
    address_in: Int32s,
    ranks: Int64s,
    slots: Int64s,
) -> tuple[Int64s, Int64s, Int64s, Int64s, int]:
    """Gives the rows at the ``missing`` positions of batch ``index`` their slots.

    Returns:
        Addresses and slots of rows to fetch, rows and slots of rows to create, and the latest plan that evicted one of
        those to fetch, or -1.
    """
    fetch_addresses, fetch_slots = np.empty(len(missing), np.int64), np.empty(len(missing), np.int64)
    create_rows, create_slots = np.empty(len(missing), np.int64), np.empty(len(missing), np.int64)
    num_fetched, num_created, read_after = 0, 0, -1
    for number in range(len(missing)):
        position, slot = np.uint64(missing[number]), np.uint64(admit_slots[number])
        address, state = addresses[position], slots[position]
        if state == NEVER:
            create_rows[num_created], create_slots[num_created] = rows[position], slot
            num_created += 1
        else:
            fetch_addresses[num_fetched], fetch_slots[num_fetched] = address, slot
            num_fetched += 1
            read_after = max(read_after, _EVICTED - state)
        slot_of[np.uint64(address)], address_in[slot], slots[position] = slot, address, slot
        ranks[slot] = rank_of(keys[position], index)
    return (
        fetch_addresses[:num_fetched], fetch_slots[:num_fetched],
        create_rows[:num_created], create_slots[:num_created], read_after,
    )  # fmt: skip
