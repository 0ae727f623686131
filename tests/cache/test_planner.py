"""The planner against a dictionary model, for every policy; and one trace with every counter worked out by hand."""

import gc
import tracemalloc
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.minimum import MinimumMoves
from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import Oracle, Static, make_policy
from cachedlrm.cache.working_set import AddressBook
from support.models import NUM_ROWS, POLICIES, ResidencyModel, never_knows, next_uses, plan_stream, plans, working_sets

streams = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=14), min_size=1, max_size=40)


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(batches=streams, quota=st.integers(14, 30), in_flight=st.integers(0, 4))
def test_plans_follow_the_model(policy, batches, quota, in_flight):
    plan_stream(batches, policy, quota, in_flight=in_flight)


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(batches=streams, quota=st.integers(1, 13), in_flight=st.integers(0, 4))
def test_working_sets_beyond_the_quota_use_temporary_slots(policy, batches, quota, in_flight):
    plan_stream(batches, policy, quota, spare=14, in_flight=in_flight)


def test_a_working_set_beyond_all_slots_is_an_error():
    with pytest.raises(AssertionError, match="needs 3 slots of 2"):
        plan_stream([[1, 2, 3]], "lru", 2)


def test_every_counter_of_a_trace_worked_out_by_hand():
    # Two slots, LRU. The third batch finds 5 resident (three lookups hit), misses 7 (two lookups miss): 6 leaves.
    # The fourth brings 6 back: 5 leaves, as 5 and 7 were used together and 5 came first. The fifth is empty.
    made = plan_stream([[5, 5], [6, 5], [7, 5, 7, 5, 5], [6, 7], []], "lru", 2)
    assert [plan.counters for plan in made] == [
        CacheCounters(2, 0, 1, 0, 1, 0, 0, 0),
        CacheCounters(2, 1, 2, 1, 1, 0, 0, 0),
        CacheCounters(5, 3, 2, 1, 1, 0, 1, 1),
        CacheCounters(2, 1, 2, 1, 0, 1, 1, 1),
        CacheCounters(0, 0, 0, 0, 0, 0, 0, 0),
    ]
    total = sum((plan.counters for plan in made), CacheCounters())
    assert total.hit_ratio == 5 / 11
    assert total.unique_hit_ratio == 3 / 7
    assert made[2].evict_addresses.tolist() == [1]  # row 6 was touched second
    assert made[2].evict_after == 1
    assert made[3].read_after == 2
    assert made[2].create_rows.tolist() == [7]


def test_rows_in_flight_are_spared_while_others_are_there():
    made = plan_stream([[1], [2], [3], [4]], "lru", 3, in_flight=1)
    assert made[3].evict_after == 0
    # With all of the cache in flight somebody must wait.
    made = plan_stream([[1, 2], [3, 4], [5, 6]], "lru", 4, in_flight=4)
    assert made[2].evict_after == 0


def test_read_after_is_the_newest_eviction_and_evict_after_the_newest_use():
    # Two slots, LRU. Row 1 leaves for 3 and row 2 for 4; then 1 comes back for 3, and, after an empty batch, 2 for 4.
    made = plan_stream([[1], [2], [3], [4], [1], [], [2, 1]], "lru", 2)
    assert [plan.evict_addresses.tolist() for plan in made] == [[], [], [0], [1], [2], [], [3]]
    assert [plan.evict_after for plan in made] == [-1, -1, 0, 1, 2, -1, 3]
    assert [plan.read_after for plan in made] == [-1, -1, -1, -1, 2, -1, 3]
    # Rows that left with different plans come back together.
    made = plan_stream([[1], [2], [3], [4], [1, 2]], "lru", 2)
    assert [plan.evict_addresses.tolist() for plan in made] == [[], [], [0], [1], [2, 3]]
    assert made[4].read_after == 3
    assert made[4].evict_after == 3


def test_temporary_slots_are_given_back():
    # Two slots to keep, three more for large batches. Batch 1 needs all five, so row 1 leaves. Batch 2 goes back to the
    # quota: of five residents four leave, and row 7 comes. Batch 3 finds one of its rows and evicts row 7.
    made = plan_stream([[1], [2, 3, 4, 5, 6], [7], [2, 3, 4, 5, 6]], "lru", 2, spare=3)
    assert [len(plan.evict_slots) for plan in made] == [0, 1, 4, 1]
    assert [plan.counters.resident_rows for plan in made] == [0, 0, 0, 1]
    assert sorted(made[3].slots.tolist()) == list(range(5))


@pytest.mark.parametrize("policy_name", ["lru", "lookahead"])
def test_residents_are_what_the_plans_left(policy_name):
    rng = np.random.default_rng(3)
    batches = [rng.integers(0, NUM_ROWS, 9).tolist() for _ in range(80)]
    policy = make_policy(policy_name, 15, NUM_ROWS, window=3)
    planner = Planner(12, 15, policy, in_flight=2)
    model = ResidencyModel(12, 2 if never_knows(policy) else 0)
    for working_set, plan in plans(planner, working_sets(batches)):
        model.check(working_set, plan)
    addresses, slots = planner.resident()
    assert dict(zip(addresses.tolist(), slots.tolist(), strict=True)) == model.slot_of
    assert planner.resident_rows == len(model.slot_of) == 12
    latest, slots = planner.resident(since=79)
    assert sorted(latest.tolist()) == sorted(working_set.addresses.tolist()), "the last batch's rows, and no others"
    assert [model.slot_of[address] for address in latest] == slots.tolist()
    assert planner.resident(since=80)[0].size == 0


@pytest.mark.parametrize("policy_name", POLICIES)
def test_planning_four_thousand_batches_takes_no_more_memory_than_one_thousand(policy_name):
    # A stream that repeats, so that what is kept by touched row is complete after the first round.
    rng = np.random.default_rng(8)
    period = [np.unique(rng.zipf(1.3, 60) % 900) for _ in range(50)]
    book = AddressBook(900)
    policy = make_policy(policy_name, 160, 900, window=20)
    if isinstance(policy, Static):
        policy.count(AddressBook(900).working_set(i, rows, np.arange(len(rows) + 1)) for i, rows in enumerate(period))
    if isinstance(policy, Oracle):
        again = [AddressBook(900).working_set(i, rows, np.arange(len(rows) + 1)) for i, rows in enumerate(period * 2)]
        in_period = next_uses(again)
        policy.know(lambda batch: _later(in_period[batch % 50], batch - batch % 50))
    planner = Planner(100, 160, policy, in_flight=2, minimum=MinimumMoves(100))
    evicted, sizes, waiting = 0, [], deque()
    tracemalloc.start()
    try:
        for index in range(4_000):
            rows = period[index % 50]
            waiting.append(book.working_set(index, rows, np.arange(len(rows) + 1)))
            planner.announce(waiting[-1])
            if len(waiting) > planner.window:
                evicted += planner.plan(waiting.popleft()).counters.evicted_rows
            if index in (999, 3_999):
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert evicted > 4_000
    assert sizes[1] - sizes[0] < 7_500  # two and a half bytes a batch


def _later(uses: np.ndarray, by: int) -> np.ndarray:
    return np.where(uses < 0, uses, uses + by).astype(np.int32)
