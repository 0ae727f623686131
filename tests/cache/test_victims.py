"""The reserve of victims: which slots a scan finds, and what is left of it for later batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.policies import Lru
from cachedlrm.cache.victims import VictimReserve


class Keys:
    def __init__(self, keys: np.ndarray, known_from: int = 2**31) -> None:
        self.keys = keys
        self.known_from = known_from


def take(
    keys: np.ndarray, last_use: np.ndarray, count: int, used_slots: int, newest: int, preferred: int, share: float = 0.1
) -> list[int]:
    """The victims of a reserve that knows nothing yet."""
    reserve = VictimReserve(Keys(keys), last_use, share)
    return reserve.take(count, used_slots, newest, preferred)[0].tolist()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_victims_are_the_lowest_keys_then_the_least_recent(data):
    size = data.draw(st.integers(1, 300))
    keys = np.array(data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)), np.int32)
    last_use = np.array(data.draw(st.lists(st.integers(-1, 20), min_size=size, max_size=size)), np.int32)
    allowed = np.flatnonzero((last_use >= 0) & (last_use <= 15))
    count = data.draw(st.integers(0, len(allowed)))
    before = last_use.copy()
    victims, latest = VictimReserve(Keys(keys), last_use, reserve_share=0.1).take(count, size, 15, 15)
    assert len(set(victims.tolist())) == count
    ranks = sorted((keys[slot], before[slot]) for slot in allowed)
    assert [(keys[slot], before[slot]) for slot in victims] == ranks[:count]
    assert latest == max(before[victims], default=-1)
    assert (last_use[victims] == -1).all()
    assert (np.delete(last_use, victims) == np.delete(before, victims)).all()


@pytest.mark.parametrize("size", [5000, 200_000])
def test_a_scan_sorts_few_slots_more_than_it_was_asked_for(size):
    keys = np.random.default_rng(0).permutation(size).astype(np.int32)
    reserve = VictimReserve(Keys(keys), np.zeros(size, np.int32), reserve_share=0.0)
    wanted = size // 50
    victims, _ = reserve.take(wanted, size, 3, 3)
    assert keys[victims].tolist() == list(range(wanted))
    assert len(reserve._sorted.ranks) < 2 * wanted


def test_more_slots_below_a_threshold_than_the_sample_made_believe():
    # Every slot that the sample looks at ranks high, all others low: a pass finds more than there is room for.
    keys = np.ones(40_960, np.int32)
    keys[::10] = 9
    keys[0] = 2
    victims = take(keys, np.zeros(40_960, np.int32), 5, 40_960, 3, 3, share=0.0)
    assert victims == [1, 2, 3, 4, 5]


def test_a_reserve_outlives_a_batch():
    last_use = np.zeros(100, np.int32)
    reserve = VictimReserve(Lru(100, 1), last_use, reserve_share=0.5)
    first, _ = reserve.take(10, 100, 5, 5)
    free = last_use == -1
    last_use[:50:2] = 6  # used since: no longer candidates
    last_use[free] = -1
    reserve.used(6, np.arange(0, 50, 2))
    second, _ = reserve.take(10, 100, 5, 5)
    assert not set(first.tolist()) & set(second.tolist())
    assert not set(second.tolist()) & set(range(0, 50, 2))


def test_a_key_that_rises_takes_its_slot_back_in_the_order():
    keys, last_use = np.arange(10, dtype=np.int32), np.zeros(10, np.int32)
    reserve = VictimReserve(Keys(keys), last_use, reserve_share=0.5)
    assert reserve.take(1, 10, 0, 0)[0].tolist() == [0]
    keys[1], keys[2] = 3, 8  # among those of the reserve, and beyond them
    assert reserve.take(3, 10, 0, 0)[0].tolist() == [1, 3, 4]
    assert reserve.take(5, 10, 0, 0)[0].tolist() == [5, 6, 7, 2, 8]


def test_a_slot_used_with_a_low_key_enters_when_it_may_be_evicted():
    keys, last_use = np.arange(10, dtype=np.int32), np.zeros(10, np.int32)
    reserve = VictimReserve(Keys(keys), last_use, reserve_share=0.5)
    reserve.take(1, 10, 0, 0)
    last_use[9], keys[9] = 1, 0  # batch 1 uses slot 9, now of the lowest rank
    reserve.used(1, np.array([9]))
    assert reserve.take(1, 10, 1, 0)[0].tolist() == [1]
    assert reserve.take(2, 10, 2, 1)[0].tolist() == [9, 2]


def test_a_slot_that_a_later_scan_would_have_found_enters_too():
    keys, last_use = np.arange(10, dtype=np.int32), np.zeros(10, np.int32)
    reserve = VictimReserve(Keys(keys), last_use, reserve_share=0.3)
    assert reserve.take(1, 10, 0, 0)[0].tolist() == [0]  # a scan finds 0, 1, 2
    last_use[9], keys[9] = 1, 4  # beyond what was found
    reserve.used(1, np.array([9]))
    assert reserve.take(3, 10, 1, 0)[0].tolist() == [1, 2, 3]  # another one finds 3, 4, 5
    assert reserve.take(2, 10, 2, 1)[0].tolist() == [4, 9]


def test_keys_at_the_end_of_their_range():
    keys = np.array([2**31 - 1, 2**31 - 3, 2**31 - 1, 2**31 - 2, 0], np.int32)
    last_use = np.array([2**31 - 1, 2**31 - 1, 7, 0, 2**31 - 1], np.int32)
    newest = 2**31 - 1
    assert take(keys, last_use.copy(), 1, 5, newest, newest, share=0.0) == [4]
    assert take(keys, last_use, 5, 5, newest, newest) == [4, 1, 3, 2, 0]


def test_rows_in_flight_come_after_all_others():
    # Slot 0 has the lowest key but was used by batch 9, which is in flight; so was slot 3.
    keys = np.array([0, 5, 6, 1], np.int32)
    last_use = np.array([9, 3, 4, 9], np.int32)
    for count, victims in ((0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (4, [1, 2, 0, 3])):
        assert take(keys, last_use.copy(), count, 4, newest=9, preferred=8) == victims


def test_a_row_of_the_batch_itself_is_no_victim():
    last_use = np.array([5, 4, 5], np.int32)
    with pytest.raises(AssertionError, match="2 victims wanted, 1 found"):
        VictimReserve(Lru(3, 1), last_use).take(2, 3, newest=4, newest_preferred=4)


def test_free_slots_and_slots_never_used_are_no_victims():
    last_use = np.array([-1, 2, -1, 1, 0], np.int32)  # the last one was never used: what it holds means nothing
    assert take(np.zeros(5, np.int32), last_use.copy(), 2, 4, 3, 3) == [3, 1]
    with pytest.raises(AssertionError, match="victims wanted"):
        take(np.zeros(5, np.int32), last_use, 3, 4, 3, 3)


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
        used = np.flatnonzero(rng.random(size) < 0.2)
        risen = np.flatnonzero(rng.random(size) < 0.1)
        keys[risen] += rng.integers(0, 3, len(risen)).astype(np.int32)
        allowed = np.flatnonzero((last_use >= 0) & (last_use <= newest))
        settled = set(allowed[last_use[allowed] <= preferred].tolist())
        before = last_use.copy()
        victims, latest = reserve.take(int(rng.integers(0, len(allowed) + 1)), size, newest, preferred)
        assert latest == max(before[victims], default=-1)
        chosen = set(victims.tolist())
        assert len(chosen) == len(victims)
        assert chosen <= set(allowed.tolist())
        assert chosen <= settled or settled <= chosen
        order = sorted((slot not in settled, keys[slot], before[slot]) for slot in allowed.tolist())
        assert [(slot not in settled, keys[slot], before[slot]) for slot in victims.tolist()] == order[: len(victims)]
        last_use[used] = batch
        keys[used] = rng.integers(0, 5, len(used))
        reserve.used(batch, used)


def test_batches_without_victims_do_not_pile_up():
    last_use = np.full(8, -1, np.int32)
    reserve = VictimReserve(Keys(np.zeros(8, np.int32)), last_use)
    for batch in range(50):
        assert reserve.take(0, 8, batch - 1, batch - 4)[0].tolist() == []
        last_use[batch % 8] = batch
        reserve.used(batch, np.array([batch % 8]))
    assert len(reserve._used) == 4
    assert reserve.take(3, 8, 49, 46)[0].tolist() == [2, 3, 4]  # last used by batches 42, 43 and 44
