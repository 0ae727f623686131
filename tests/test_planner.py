"""The planner against a dictionary model, for every policy; and one trace with every counter worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ResidencyModel, fewest_moves

from cachedlrm.cache.planner import Plan, Planner
from cachedlrm.cache.policies import Lookahead, Lru, Static, make_policy
from cachedlrm.cache.victims import VictimReserve
from cachedlrm.cache.working_set import AddressBook, WorkingSet
from cachedlrm.metrics import CacheCounters

POLICIES = ["lru", "lfu", "lrfu", "static", "lookahead"]
NUM_ROWS = 40

streams = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=14), min_size=1, max_size=40)


def working_sets(batches: list[list[int]]) -> list[WorkingSet]:
    book = AddressBook(NUM_ROWS)
    return [
        book.working_set(index, np.array(batch, np.int64), np.arange(len(batch) + 1))
        for index, batch in enumerate(batches)
    ]


def plans(planner: Planner, stream: list[WorkingSet]) -> list[tuple[WorkingSet, Plan]]:
    made = []
    for working_set in stream:
        planner.announce(working_set)
        while planner.ready:
            made.append(planner.plan())
    while len(made) < len(stream):
        made.append(planner.plan())
    return made


def plan_stream(
    batches: list[list[int]], policy_name: str, quota: int, spare: int = 0, in_flight: int = 0
) -> list[Plan]:
    """Plans a stream and checks each plan against the model."""
    stream = working_sets(batches)
    policy = make_policy(policy_name, quota + spare, NUM_ROWS, window=3)
    if isinstance(policy, Static):
        policy.count(stream)
    model = ResidencyModel(quota, in_flight)
    made = plans(Planner(NUM_ROWS, quota, quota + spare, policy, in_flight), stream)
    for working_set, plan in made:
        model.check(working_set, plan)
    return [plan for _, plan in made]


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


def evicted_rows(batches: list[list[int]], policy: str, quota: int) -> list[list[int]]:
    """The rows each batch evicts."""
    stream = working_sets(batches)
    row_of = {a: r for ws in stream for a, r in zip(ws.addresses.tolist(), ws.rows.tolist(), strict=True)}
    return [sorted(row_of[a] for a in plan.evict_addresses.tolist()) for plan in plan_stream(batches, policy, quota)]


def test_lru_evicts_the_least_recently_used():
    assert evicted_rows([[1], [2], [3], [1], [4], [5]], "lru", 3) == [[], [], [], [], [2], [3]]


def test_lfu_evicts_the_least_frequently_used_and_remembers():
    # 1 is used three times, 2 and 3 once: 2, the older, goes for 4, then 3 for 2. Now 2 has been used twice (its past
    # counts), so 4 goes for 5.
    assert evicted_rows([[1], [1], [1], [2], [3], [4], [2], [5]], "lfu", 3) == [[], [], [], [], [], [2], [3], [4]]


def test_lrfu_weighs_both():
    # Twice used beats once used; among once used, the older goes.
    assert evicted_rows([[1], [1], [2], [3], [4], [5]], "lrfu", 3) == [[], [], [], [], [2], [3]]


def test_static_evicts_the_least_frequent_of_the_whole_stream():
    # 3 occurs three times in all, 1 and 2 twice, 4 once: 1, used before 2, goes for 4; then 4 goes.
    assert evicted_rows([[1], [2], [3], [4], [3], [2], [1], [3]], "static", 3) == [[], [], [], [1], [], [], [4], []]


def test_lookahead_evicts_the_farthest_next_use():
    # At batch 3 the next uses are 1: 6, 2: 4, 3: 5, all in the window of three.
    assert evicted_rows([[1], [2], [3], [4], [2], [3], [1]], "lookahead", 3)[3] == [1]


def test_lookahead_evicts_rows_without_a_known_use_first():
    assert evicted_rows([[1], [2], [3], [4], [2], [1]], "lookahead", 3)[3] == [3]


@settings(deadline=None, derandomize=True, max_examples=80)
@given(batches=streams, quota=st.integers(14, 25))
def test_a_window_over_the_whole_stream_moves_as_few_rows_as_min(batches, quota):
    policy = Lookahead(quota, NUM_ROWS, window=len(batches))
    planner = Planner(NUM_ROWS, quota, quota, policy, in_flight=0)
    planner._reserve = VictimReserve(policy, planner._last_use, reserve_share=0.0)  # choose anew for every batch
    counters = sum((plan.counters for _, plan in plans(planner, working_sets(batches))), CacheCounters())
    assert counters.first_touch_rows + counters.fetched_rows == fewest_moves(batches, quota)


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_moves_fewer_rows_than_min(policy):
    rng = np.random.default_rng(0)
    batches = [(rng.zipf(1.3, 12) % NUM_ROWS).tolist() for _ in range(200)]
    counters = sum((plan.counters for plan in plan_stream(batches, policy, 16)), CacheCounters())
    assert counters.evicted_rows > 100
    assert counters.first_touch_rows + counters.fetched_rows >= fewest_moves(batches, 16)


class Keys:
    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_victims_are_the_lowest_keys_then_the_least_recent(data):
    size = data.draw(st.integers(1, 300))
    keys = np.array(data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)), np.int32)
    last_use = np.array(data.draw(st.lists(st.integers(-1, 20), min_size=size, max_size=size)), np.int32)
    allowed = np.flatnonzero((last_use >= 0) & (last_use <= 15))
    count = data.draw(st.integers(0, len(allowed)))
    victims = VictimReserve(Keys(keys), last_use, reserve_share=0.1).take(count, size, 15, 15)
    assert len(set(victims.tolist())) == count
    ranks = sorted((keys[slot], last_use[slot]) for slot in allowed)
    assert sorted((keys[slot], last_use[slot]) for slot in victims) == ranks[:count]


def test_a_crowded_bin_of_ranks_is_split():
    # One distant outlier stretches the histogram, so that all other ranks fall into one bin.
    keys = np.arange(5000, dtype=np.int32)[::-1].copy()
    keys[0] = 2**31 - 1
    victims = VictimReserve(Keys(keys), np.zeros(5000, np.int32), reserve_share=0.0).take(7, 5000, 3, 3)
    assert sorted(victims.tolist()) == list(range(4993, 5000))


def test_rows_in_flight_are_spared_while_others_are_there():
    made = plan_stream([[1], [2], [3], [4]], "lru", 3, in_flight=1)
    assert made[3].evict_after == 0
    # With all of the cache in flight somebody must wait.
    made = plan_stream([[1, 2], [3, 4], [5, 6]], "lru", 4, in_flight=4)
    assert made[2].evict_after == 0


def test_a_reserve_outlives_a_batch():
    last_use = np.zeros(100, np.int32)
    reserve = VictimReserve(Lru(100, 1), last_use, reserve_share=0.5)
    first = reserve.take(10, 100, 5, 5)
    last_use[first] = -1
    last_use[:50:2] = 6  # used since: no longer candidates
    second = reserve.take(10, 100, 5, 5)
    assert not set(first.tolist()) & set(second.tolist())
    assert (last_use[second] == 0).all()
