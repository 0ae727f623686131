"""The reserve of victims: which slots a scan finds, and what is left of it for later batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.policies import Lru
from cachedlrm.cache.victims import VictimReserve


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
    reserve = VictimReserve(Keys(keys), np.zeros(5000, np.int32), reserve_share=0.0)
    assert sorted(reserve.take(7, 5000, 3, 3).tolist()) == list(range(4993, 5000))
    assert len(reserve._slots) <= 8, "sorting what was not wanted is the cost that splitting avoids"


def test_a_reserve_outlives_a_batch():
    last_use = np.zeros(100, np.int32)
    reserve = VictimReserve(Lru(100, 1), last_use, reserve_share=0.5)
    first = reserve.take(10, 100, 5, 5)
    last_use[first] = -1
    last_use[:50:2] = 6  # used since: no longer candidates
    second = reserve.take(10, 100, 5, 5)
    assert not set(first.tolist()) & set(second.tolist())
    assert (last_use[second] == 0).all()


def test_keys_at_the_end_of_their_range():
    keys = np.array([2**31 - 1, 2**31 - 3, 2**31 - 1, 2**31 - 2, 0], np.int32)
    last_use = np.array([2**31 - 1, 2**31 - 1, 7, 0, 2**31 - 1], np.int32)
    newest = 2**31 - 1
    assert VictimReserve(Keys(keys), last_use, reserve_share=0.0).take(1, 5, newest, newest).tolist() == [4]
    assert VictimReserve(Keys(keys), last_use).take(5, 5, newest, newest).tolist() == [4, 1, 3, 2, 0]


def test_rows_in_flight_come_after_all_others():
    # Slot 0 has the lowest key but was used by batch 9, which is in flight; so was slot 3.
    keys = np.array([0, 5, 6, 1], np.int32)
    last_use = np.array([9, 3, 4, 9], np.int32)
    for count, victims in ((0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (4, [1, 2, 0, 3])):
        assert VictimReserve(Keys(keys), last_use).take(count, 4, newest=9, newest_preferred=8).tolist() == victims


def test_a_row_of_the_batch_itself_is_no_victim():
    last_use = np.array([5, 4, 5], np.int32)
    with pytest.raises(AssertionError, match="2 victims wanted, 1 found"):
        VictimReserve(Lru(3, 1), last_use).take(2, 3, newest=4, newest_preferred=4)
    assert last_use.tolist() == [5, 4, 5]


def test_free_slots_and_slots_never_used_are_no_victims():
    last_use = np.array([-1, 2, -1, 1, 0], np.int32)  # the last one was never used: what it holds means nothing
    assert VictimReserve(Lru(5, 1), last_use).take(2, 4, newest=3, newest_preferred=3).tolist() == [3, 1]
    with pytest.raises(AssertionError, match="victims wanted"):
        VictimReserve(Lru(5, 1), last_use).take(3, 4, newest=3, newest_preferred=3)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 60),
    share=st.sampled_from([0.0, 1 / 32, 0.3, 1.0]),
    in_flight=st.integers(0, 3),
)
def test_a_reserve_stays_right_over_many_batches(seed, size, share, in_flight):
    # Slots are used, evicted and admitted to at random, with keys at random; the reserve is asked all along.
    rng = np.random.default_rng(seed)
    keys, last_use = np.zeros(size, np.int32), np.full(size, -1, np.int32)
    reserve = VictimReserve(Keys(keys), last_use, share)
    for batch in range(40):
        newest, preferred = batch - 1, batch - 1 - in_flight
        used = rng.random(size) < 0.2
        last_use[used] = batch
        keys[used] = rng.integers(0, 5, used.sum())
        allowed = np.flatnonzero((last_use >= 0) & (last_use <= newest))
        settled = set(allowed[last_use[allowed] <= preferred].tolist())
        before = last_use.copy()
        victims = reserve.take(int(rng.integers(0, len(allowed) + 1)), size, newest, preferred)
        assert (last_use == before).all()
        chosen = set(victims.tolist())
        assert len(chosen) == len(victims)
        assert chosen <= set(allowed.tolist())
        assert chosen <= settled or settled <= chosen
        last_use[victims] = -1
