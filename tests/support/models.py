"""Plain Python models that the engine is tested against."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.planner import Plan, Planner
from cachedlrm.cache.policies import Oracle, Policy, Static, make_policy
from cachedlrm.cache.table_group import CacheSettings, GroupSlots
from cachedlrm.cache.working_set import AddressBook, Int32s, WorkingSet
from cachedlrm.data.lookups import Router, TablePart
from cachedlrm.model.features import FeatureVectors
from cachedlrm.model.graphed_pass import Work
from cachedlrm.model.tables import Embedding
from cachedlrm.store.init import CounterInit
from cachedlrm.store.records import GroupShape, RecordLayout

POLICIES = ["lru", "lfu", "lrfu", "static", "lookahead", "oracle"]
NUM_ROWS = 40


def plain_features(num_tables: int, dim: int) -> FeatureVectors:
    """Of ``num_tables`` plain tables of ``dim`` columns."""
    embeddings = [Embedding(number, 1, dim) for number in range(num_tables)]
    return FeatureVectors(embeddings, [[table for e in embeddings for table in e.tables]], dim, "mult")


def one_group(
    table_rows: tuple[int, ...],
    layout: RecordLayout,
    quota: int,
    num_slots: int | None = None,
    settings: CacheSettings | None = None,
    store_rows: int = 2**31 - 1,
    seed: int = 5,
    device: str = "cpu",
) -> EmbeddingCache:
    """A cache whose tables share one slab."""
    router = Router(table_rows, [[TablePart(feature, rows) for feature, rows in enumerate(table_rows)]])
    return EmbeddingCache(
        router,
        groups=[GroupShape(table_rows, layout)],
        slots=[GroupSlots(quota, num_slots or quota)],
        store_rows=[store_rows],
        inits=[CounterInit(seed, table_rows, layout, torch.device(device))],
        settings=replace(settings or CacheSettings(), seed=seed),
        device=torch.device(device),
    )


def working_sets(batches: Sequence[Sequence[int]], num_rows: int = NUM_ROWS) -> list[WorkingSet]:
    """The working sets of a stream of one-lookup bags."""
    book = AddressBook(num_rows)
    return [
        book.working_set(index, np.array(batch, np.int64), np.arange(len(batch) + 1))
        for index, batch in enumerate(batches)
    ]


def inform(policy: Policy, stream: Sequence[WorkingSet]) -> None:
    """Tells a policy of the stream what it wants to know before."""
    if isinstance(policy, Static):
        policy.count(stream)
    if isinstance(policy, Oracle):
        policy.know(dict(enumerate(next_uses(stream))).__getitem__)


def never_knows(policy: Policy) -> bool:
    """Whether a policy knows of no next use, so that it spares all rows in flight."""
    return policy.known_from == 2**31


def next_uses(stream: Sequence[WorkingSet]) -> list[Int32s]:
    """Of each batch: the batch that uses the row of each position next, -1 for none."""
    sets = [set(working_set.rows.tolist()) for working_set in stream]
    return [
        np.array(
            [
                next((later for later in range(index + 1, len(sets)) if row in sets[later]), -1)
                for row in working_set.rows.tolist()
            ],
            np.int32,
        )
        for index, working_set in enumerate(stream)
    ]


def plans(
    planner: Planner, stream: Sequence[WorkingSet], before: Callable[[], None] = lambda: None
) -> list[tuple[WorkingSet, Plan]]:
    """Announces and plans a stream as training does; ``before`` is called before each plan."""
    made = []
    for known, working_set in enumerate(stream, 1):
        planner.announce(working_set)
        while len(made) < (known if known == len(stream) else known - planner.window):
            before()
            made.append((stream[len(made)], planner.plan(stream[len(made)])))
    return made


def plan_stream(
    batches: Sequence[Sequence[int]], policy_name: str, quota: int, spare: int = 0, in_flight: int = 0
) -> list[Plan]:
    """Plans a stream (window 3) and checks each plan against `ResidencyModel`."""
    stream = working_sets(batches)
    policy = make_policy(policy_name, quota + spare, NUM_ROWS, window=3)
    inform(policy, stream)
    model = ResidencyModel(quota, in_flight if never_knows(policy) else 0)
    made = plans(Planner(quota, quota + spare, policy, in_flight), stream)
    for working_set, plan in made:
        model.check(working_set, plan)
    return [plan for _, plan in made]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What a program's `torch.set_default_dtype` makes of what is inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class HostRecorder:
    """What captured CUDA graphs do, as far as a caller can tell: replayed, the work is done into the same tensors.

    Capturing gives no results: they are NaN until the first replay. `replays` has the number of each work replayed.
    """

    def __init__(self) -> None:
        self._num_captured = 0
        self.replays: list[int] = []

    def __call__(self, work: Work) -> Work:
        number, results = self._num_captured, [result.clone() for result in work()]
        self._num_captured += 1
        for result in results:
            result.fill_(torch.nan)

        def replay() -> list[Tensor]:
            self.replays.append(number)
            for place, result in zip(results, work(), strict=True):
                place.copy_(result)
            return results

        return replay


class LruModel:
    """A batch-granular LRU: an ordered dictionary from address to slot, the next victim first.

    Rows of one batch are equally recent; the planner breaks such ties by slot, so the model takes slots from the plan.
    """

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.slot_of: OrderedDict[int, int] = OrderedDict()

    def victims(self, addresses: Sequence[int]) -> list[int]:
        """Removes and returns the addresses to evict for a batch, in order."""
        missing = sum(address not in self.slot_of for address in addresses)
        excess = len(self.slot_of) + missing - max(self.quota, len(addresses))
        chosen = [address for address in self.slot_of if address not in set(addresses)][: max(0, excess)]
        for address in chosen:
            del self.slot_of[address]
        return chosen

    def use(self, slot_of: dict[int, int]) -> None:
        """A batch's rows are now the most recent."""
        for address, slot in sorted(slot_of.items(), key=lambda item: item[1]):
            self.slot_of.pop(address, None)
            self.slot_of[address] = slot


def fewest_moves_of_all(batches: Sequence[Sequence[int]], slots: int) -> int:
    """What `fewest_moves` computes, by trying every set of rows that may stay after each batch. For tiny streams."""
    costs: dict[frozenset[int], int] = {frozenset(): 0}
    for batch in batches:
        needed = frozenset(batch)
        after: dict[frozenset[int], int] = {}
        for resident, moves in costs.items():
            others = resident - needed
            for size in range(min(len(others), max(slots, len(needed)) - len(needed)) + 1):
                for kept in combinations(others, size):
                    stays = needed | set(kept)
                    total = moves + len(needed - resident)
                    after[stays] = min(after.get(stays, total), total)
        costs = after
    return min(costs.values())


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
        lookups = working_set.lookups
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
