"""One contract for every policy, traces worked out by hand, and references: what keys mean, an LRU, Belady's MIN."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.lookup_counts import MANY
from cachedlrm.cache.planner import Plan, Planner
from cachedlrm.cache.policies import Lfu, Lookahead, Lrfu, Policy, Static, make_policy
from cachedlrm.cache.victims import LAST_USE
from support.models import (
    NUM_ROWS,
    POLICIES,
    LruModel,
    fewest_moves,
    fewest_moves_of_all,
    inform,
    plan_stream,
    plans,
    working_sets,
)

Stream = list[list[int]]
streams = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=14), min_size=1, max_size=40)


def random_stream(seed: int, batches: int = 60, lookups: int = 9) -> Stream:
    """Skewed rows. Hypothesis finds the corners; a stream like this one evicts all the time."""
    rng = np.random.default_rng(seed)
    return [(rng.zipf(1.2, rng.integers(0, lookups + 1)) % NUM_ROWS).tolist() for _ in range(batches)]


def policy_for(name: str, stream: Stream, num_slots: int, window: int = 3) -> Policy:
    policy = make_policy(name, num_slots, NUM_ROWS, window)
    inform(policy, working_sets(stream))
    return policy


def moved(made: list[Plan]) -> int:
    total = sum((plan.counters for plan in made), CacheCounters())
    return total.first_touch_rows + total.fetched_rows


# The contract


def check_victims(name: str, stream: Stream, quota: int, in_flight: int) -> int:
    """Asserts that each batch evicts as many rows as it must, of the lowest ranks; returns how many in all."""
    policy = policy_for(name, stream, quota + 14)
    planner = Planner(quota, quota + 14, policy, in_flight)
    before: list[dict[int, tuple[int, int]]] = []  # by plan: key and last use of each resident address

    def remember() -> None:
        addresses, slots = planner.resident()
        ranks = zip(policy.keys[slots].tolist(), (policy.ranks[slots] & LAST_USE).tolist(), strict=True)
        before.append(dict(zip(addresses.tolist(), ranks, strict=True)))

    evicted = 0
    for ranks, (working_set, plan) in zip(before, plans(planner, working_sets(stream), remember), strict=True):
        own = set(working_set.addresses.tolist())
        victims = plan.evict_addresses.tolist()
        assert not own & set(victims)
        assert len(victims) == len(set(victims)) == max(0, len(own | set(ranks)) - max(quota, len(own)))
        # Rows of batches in flight come after the others without a known use, whatever their keys.
        by_class = {
            address: (2 if rank[0] >= policy.known_from else rank[1] >= plan.index - in_flight, rank)
            for address, rank in ranks.items()
        }
        order = sorted(by_class[address] for address in by_class if address not in own)
        assert sorted(by_class[address] for address in victims) == order[: len(victims)]
        evicted += len(victims)
    return evicted


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(stream=streams, quota=st.integers(1, 25), in_flight=st.integers(0, 4))
def test_victims_have_the_lowest_ranks(policy, stream, quota, in_flight):
    check_victims(policy, stream, quota, in_flight)


@pytest.mark.parametrize("in_flight", [0, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_victims_have_the_lowest_ranks_in_a_busy_stream(policy, in_flight):
    assert check_victims(policy, random_stream(5), 10, in_flight) > 60


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_stream_gives_the_same_plans(policy):
    first, second = (plan_stream(random_stream(6), policy, 8, spare=2, in_flight=2) for _ in range(2))
    for plan, again in zip(first, second, strict=True):
        assert plan.slots.tolist() == again.slots.tolist()
        assert plan.evict_slots.tolist() == again.evict_slots.tolist()
        assert plan.counters == again.counters


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_is_evicted_while_there_is_room(policy):
    made = plan_stream(random_stream(7), policy, NUM_ROWS)
    assert sum(plan.counters.evicted_rows for plan in made) == 0
    assert sum(plan.counters.fetched_rows for plan in made) == 0


# By hand


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


@pytest.mark.parametrize(("half_life", "victim"), [(1.0, 1), (100.0, 2)])
def test_lrfu_forgets_with_its_half_life(half_life, victim):
    # At batch 4, with a half-life of one batch, row 1 is worth 2^-4 + 2^-3 = 3/16 and row 2, used last, 1/4: 1 goes.
    # With one of 100 batches two uses beat one.
    planner = Planner(2, 2, Lrfu(2, NUM_ROWS, half_life), in_flight=0)
    made = plans(planner, working_sets([[1], [1], [2], [], [3]]))
    assert made[4][1].evict_addresses.tolist() == [victim - 1]


def test_a_use_is_a_batch_not_a_lookup():
    # Row 1 is looked up four times in one batch, row 2 once in each of two: 1 goes.
    for policy in ("lfu", "lrfu", "static"):
        assert evicted_rows([[1, 1, 1, 1], [2], [2], [3]], policy, 2)[3] == [1], policy


def test_lookahead_forgets_a_use_that_has_passed():
    # Window 3. When 4 comes, row 1's use at batch 2 is over and none is known, 2's is at 5 and 3's at 6: 1 goes.
    assert evicted_rows([[1], [2], [1, 3], [4], [], [2], [3]], "lookahead", 3)[3] == [1]


def test_lookahead_learns_a_use_of_a_row_that_left():
    # Row 1 goes first: at batch 2 nothing is known of batch 6. It returns there with its use at batch 8 known, so
    # rows 2 and 3, without a use, go before it. At the end 4, used twice, goes before 1, used three times.
    stream = [[1], [2], [3], [], [], [], [1], [4], [1], [4], [5]]
    assert evicted_rows(stream, "lookahead", 2) == [[], [], [1], [], [], [], [2], [3], [], [], [4]]


# What the keys mean


def resident_keys(policy: Policy, stream: Stream, num_slots: int, quota: int) -> list[dict[int, int]]:
    """By plan: the key of each resident row when the plan is made."""
    planner = Planner(quota, num_slots, policy, in_flight=0)
    sets = working_sets(stream)
    row_of = {a: r for ws in sets for a, r in zip(ws.addresses.tolist(), ws.rows.tolist(), strict=True)}
    keys: list[dict[int, int]] = []

    def remember() -> None:
        addresses, slots = planner.resident()
        keys.append({row_of[a]: k for a, k in zip(addresses.tolist(), policy.keys[slots].tolist(), strict=True)})

    plans(planner, sets, remember)
    return keys


@settings(deadline=None, derandomize=True, max_examples=40)
@given(stream=streams, quota=st.integers(1, 20))
def test_lfu_keys_count_batches_over_the_whole_run(stream, quota):
    uses: Counter[int] = Counter()
    for keys, batch in zip(resident_keys(Lfu(quota + 14, NUM_ROWS), stream, quota + 14, quota), stream, strict=True):
        assert keys == {row: uses[row] for row in keys}
        uses.update(set(batch))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(stream=streams, quota=st.integers(1, 20))
def test_static_keys_count_batches_of_the_data_set(stream, quota):
    policy = policy_for("static", stream, quota + 14)
    uses = Counter(row for batch in stream for row in set(batch))
    for keys in resident_keys(policy, stream, quota + 14, quota):
        assert keys == {row: uses[row] for row in keys}


def test_static_counts_up_to_many():
    policy = Static(4, NUM_ROWS)
    policy.take_counts(np.full(NUM_ROWS, MANY - 2))
    policy.count(working_sets([[1, 1], [1, 2], [1]]))
    (batch,) = working_sets([[1, 2, 3]])
    assert policy.use(batch, np.empty(3, np.int64)).tolist() == [MANY, MANY - 1, MANY - 2]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(stream=streams, quota=st.integers(1, 20), half_life=st.sampled_from([0.5, 1.0, 7.0, 2000.0]))
def test_lrfu_keys_are_logarithms_of_decayed_counts(stream, quota, half_life):
    values: dict[int, float] = {}
    policy = Lrfu(quota + 14, NUM_ROWS, half_life)
    for index, keys in enumerate(resident_keys(policy, stream, quota + 14, quota)):
        # Each use rounds twice, by half a unit of 2^-10; there are at most 40.
        assert all(abs(key / 1024 - math.log2(values[row])) <= 40 / 1024 for row, key in keys.items())
        for row in set(stream[index]):
            values[row] = values.get(row, 0.0) + 2.0 ** (index / half_life)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(stream=streams, quota=st.integers(1, 20), window=st.integers(0, 6))
def test_lookahead_with_counts_ranks_rows_beyond_the_window_by_lookups_left(stream, quota, window):
    policy = Lookahead(quota + 14, NUM_ROWS, window)
    left = Counter(row for batch in stream for row in batch)
    policy.take_counts(np.array([left[row] for row in range(NUM_ROWS)], np.int64))
    for index, keys in enumerate(resident_keys(policy, stream, quota + 14, quota)):
        for row, key in keys.items():
            uses = [batch for batch in range(index, len(stream)) if row in stream[batch]]
            if uses and uses[0] <= index + window:
                assert key == 2**31 - 1 - uses[0]
            else:
                assert key == left[row] < policy.known_from
        left.subtract(stream[index])


def test_lookups_left_are_those_of_the_run_and_never_negative():
    policy = Lookahead(4, NUM_ROWS, 0)
    policy.take_counts(np.full(NUM_ROWS, 65534))
    (batch,) = working_sets([[1, 1, 2]])
    slots = np.empty(2, np.int64)
    policy.announce(batch)
    assert policy.use(batch, slots).tolist() == [65532, 65533]
    policy.take_counts(np.full(NUM_ROWS, 5), epochs=3)
    assert policy.use(batch, slots).tolist() == [13, 14]
    for count, epochs in ((65535, 1), (2**62, 3), (21845, 3), (1, 2**40)):  # as many as are not counted any more
        policy.take_counts(np.full(NUM_ROWS, count), epochs)
        assert policy.use(batch, slots).tolist() == [65535, 65535]
    policy.take_counts(np.full(NUM_ROWS, 21844), epochs=3)
    assert policy.use(batch, slots).tolist() == [65530, 65531]
    policy.take_counts(np.ones(NUM_ROWS, np.int64))
    assert policy.use(batch, slots).tolist() == [0, 0]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(stream=streams, quota=st.integers(1, 20), window=st.integers(0, 6))
def test_lookahead_keys_are_next_uses_inside_the_window_and_lrfu_beyond(stream, quota, window):
    lookahead = resident_keys(Lookahead(quota + 14, NUM_ROWS, window), stream, quota + 14, quota)
    lrfu = Lrfu(NUM_ROWS, NUM_ROWS)  # everything resident: knows every row's score
    scores = resident_keys(lrfu, stream, NUM_ROWS, NUM_ROWS)
    for index, keys in enumerate(lookahead):
        for row, key in keys.items():
            # Before batch `index` is planned it is known itself, and `window` more.
            known = [use for use in range(index, min(index + window + 1, len(stream))) if row in stream[use]]
            assert key == (2**31 - 1 - known[0] if known else scores[index][row])


# Against LRU


@settings(deadline=None, derandomize=True, max_examples=60)
@given(stream=st.one_of(streams, st.integers(0, 99).map(random_stream)), quota=st.integers(1, 20))
def test_lru_is_an_ordered_dictionary(stream, quota):
    policy = make_policy("lru", quota + 14, NUM_ROWS, 0)
    planner = Planner(quota, quota + 14, policy, in_flight=0)
    model = LruModel(quota)
    for working_set, plan in plans(planner, working_sets(stream)):
        addresses = working_set.addresses.tolist()
        assert plan.evict_addresses.tolist() == model.victims(addresses)
        model.use(dict(zip(addresses, plan.slots.tolist(), strict=True)))


# Against MIN


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    stream=st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=9),
    slots=st.integers(1, 6),
)
def test_evicting_the_farthest_next_use_is_the_minimum(stream, slots):
    assert fewest_moves(stream, slots) == fewest_moves_of_all(stream, slots)


@pytest.mark.parametrize("name", ["lookahead", "oracle"])
@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    stream=st.one_of(streams, st.integers(0, 99).map(random_stream)),
    quota=st.integers(1, 25),
    in_flight=st.integers(0, 3),
)
def test_a_policy_that_knows_the_whole_stream_moves_as_few_rows_as_min(name, stream, quota, in_flight):
    policy = policy_for(name, stream, quota + 14, window=len(stream))
    made = plans(Planner(quota, quota + 14, policy, in_flight), working_sets(stream))
    assert moved([plan for _, plan in made]) == fewest_moves(stream, quota)


def test_the_oracle_evicts_rows_that_are_never_used_again_first_and_no_more_than_it_must():
    # At batch 3 row 2 is dead, 1 and 3 are not; at batch 5 rows 1 and 4 are, of which 1 was used before.
    assert evicted_rows([[1], [2], [3], [4], [1], [5], [3]], "oracle", 3) == [[], [], [], [2], [], [4], []]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_policy_moves_fewer_rows_than_min(policy):
    rng = np.random.default_rng(0)
    batches = [(rng.zipf(1.3, 12) % NUM_ROWS).tolist() for _ in range(200)]
    counters = sum((plan.counters for plan in plan_stream(batches, policy, 16)), CacheCounters())
    assert counters.evicted_rows > 100
    assert counters.first_touch_rows + counters.fetched_rows >= fewest_moves(batches, 16)
