"""Plain Python models that the engine is tested against."""

from collections.abc import Sequence

import numpy as np

from cachedlrm.cache.planner import Plan
from cachedlrm.cache.working_set import WorkingSet
from cachedlrm.metrics import CacheCounters


def fewest_moves(batches: Sequence[Sequence[int]], slots: int) -> int:
    """Rows brought in under Belady's MIN with batch-granular residency: evict the farthest next use."""
    resident: set[int] = set()
    moves = 0
    for index, batch in enumerate(batches):
        needed = set(batch)
        moves += len(needed - resident)
        resident |= needed

        def next_use(row: int, after: int = index) -> int:
            return next((i for i in range(after + 1, len(batches)) if row in batches[i]), len(batches))

        excess = len(resident) - max(slots, len(needed))
        for row in sorted(resident - needed, key=next_use, reverse=True)[: max(0, excess)]:
            resident.remove(row)
    return moves


class ResidencyModel:
    """Follows plans with dictionaries and checks each against them.

    Args:
        quota: slots the cache may keep.
        in_flight: batches that may be untrained when a plan is made.
    """

    def __init__(self, quota: int, in_flight: int) -> None:
        self.quota, self.in_flight = quota, in_flight
        self.slot_of: dict[int, int] = {}  # by address
        self.last_use: dict[int, int] = {}  # of resident addresses
        self.evicted_by: dict[int, int] = {}
        self.row_of: dict[int, int] = {}

    def check(self, working_set: WorkingSet, plan: Plan) -> None:
        """Asserts that a plan is right, then applies it."""
        addresses = working_set.addresses.tolist()
        self.row_of.update(zip(addresses, working_set.rows.tolist(), strict=True))
        lookups = np.diff(working_set.position_offsets)
        hits = [position for position, address in enumerate(addresses) if address in self.slot_of]
        missing = [address for address in addresses if address not in self.slot_of]

        evicted = plan.evict_addresses.tolist()
        assert not set(evicted) & set(addresses)
        assert [self.slot_of[address] for address in evicted] == plan.evict_slots.tolist()
        assert plan.evict_after == max((self.last_use[address] for address in evicted), default=-1)
        self._check_spared(plan, addresses, evicted)
        for address in evicted:
            del self.slot_of[address]
            self.evicted_by[address] = plan.index

        fetched, created = plan.fetch_addresses.tolist(), plan.create_rows.tolist()
        assert sorted(fetched) == sorted(a for a in missing if a in self.evicted_by)
        assert sorted(created) == sorted(self.row_of[a] for a in missing if a not in self.evicted_by)
        assert plan.read_after == max((self.evicted_by[address] for address in fetched), default=-1)
        self.slot_of.update(zip(addresses, plan.slots.tolist(), strict=True))
        self.last_use.update(dict.fromkeys(addresses, plan.index))
        assert [self.slot_of[address] for address in fetched] == plan.fetch_slots.tolist()
        assert len(set(self.slot_of.values())) == len(self.slot_of)
        assert len(self.slot_of) <= max(self.quota, len(addresses))
        assert plan.counters == CacheCounters(
            lookups=int(lookups.sum()),
            hit_lookups=int(lookups[hits].sum()),
            working_set_rows=len(addresses),
            resident_rows=len(hits),
            first_touch_rows=len(created),
            fetched_rows=len(fetched),
            evicted_rows=len(evicted),
            written_back_rows=len(evicted),
        )

    def _check_spared(self, plan: Plan, addresses: list[int], evicted: list[int]) -> None:
        """A row of a batch in flight is a victim only when every other row is one too."""
        candidates = set(self.slot_of) - set(addresses)
        settled = {a for a in candidates if self.last_use[a] < plan.index - self.in_flight}
        if set(evicted) - settled:
            assert settled <= set(evicted)
