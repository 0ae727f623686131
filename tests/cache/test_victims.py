"""The reserve of victims: which slots a scan finds, and what is left of it for later batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache import victims as victims_module
from cachedlrm.cache.victims import FREE, VictimReserve, rank_of


class Slots:
    """Keys and last uses of slots, as a policy has them; last use -1: free."""

    known_from = 2**31

    def __init__(self, keys: np.ndarray, last_use: np.ndarray) -> None:
        self.ranks = np.where(last_use < 0, FREE, keys.astype(np.int64) << 32 | last_use)

    def use(self, batch: int, slots: list[int], keys: list[int]) -> None:
        for slot, key in zip(slots, keys, strict=True):
            self.ranks[slot] = rank_of(np.int32(key), batch)


def take(
    keys: np.ndarray, last_use: np.ndarray, count: int, used_slots: int, newest: int, preferred: int, share: float = 0.1
) -> list[int]:
    """The victims of a reserve that knows nothing yet."""
    reserve = VictimReserve(Slots(keys, last_use), share)
    return reserve.take(count, used_slots, newest, preferred)[0].tolist()


def ten_slots(share: float) -> tuple[Slots, VictimReserve]:
    """Keys 0 to 9, all used last by batch 0."""
    slots = Slots(np.arange(10), np.zeros(10, np.int64))
    return slots, VictimReserve(slots, share)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data())
def test_victims_are_the_lowest_keys_then_the_least_recent(data):
    size = data.draw(st.integers(1, 300))
    keys = np.array(data.draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)), np.int32)
    last_use = np.array(data.draw(st.lists(st.integers(-1, 20), min_size=size, max_size=size)), np.int32)
    allowed = np.flatnonzero((last_use >= 0) & (last_use <= 15))
    count = data.draw(st.integers(0, len(allowed)))
    slots = Slots(keys, last_use)
    before = slots.ranks.copy()
    victims, latest = VictimReserve(slots, reserve_share=0.1).take(count, size, 15, 15)
    assert len(set(victims.tolist())) == count
    ranks = sorted((keys[slot], last_use[slot]) for slot in allowed)
    assert [(keys[slot], last_use[slot]) for slot in victims] == ranks[:count]
    assert latest == max(last_use[victims], default=-1)
    assert (slots.ranks[victims] == FREE).all()
    assert (np.delete(slots.ranks, victims) == np.delete(before, victims)).all()


@pytest.mark.parametrize("size", [5000, 200_000])
def test_a_scan_sorts_few_slots_more_than_it_was_asked_for(size):
    keys = np.random.default_rng(0).permutation(size).astype(np.int32)
    reserve = VictimReserve(Slots(keys, np.zeros(size, np.int32)), reserve_share=0.0)
    wanted = size // 50
    victims, _ = reserve.take(wanted, size, 3, 3)
    assert keys[victims].tolist() == list(range(wanted))
    assert len(reserve._sorted.ranks) < 2 * wanted


def test_a_batch_that_takes_more_than_a_reserve_scans_once(monkeypatch):
    scanned, scan = [], victims_module._below
    monkeypatch.setattr(victims_module, "_below", lambda *given: scanned.append(1) or scan(*given))
    for seed in range(10):
        keys = np.random.default_rng(seed).permutation(200_000).astype(np.int32)
        victims, _ = VictimReserve(Slots(keys, np.zeros(200_000, np.int32))).take(30_000, 200_000, 3, 3)
        assert keys[victims].tolist() == list(range(30_000))
    assert len(scanned) == 10


def test_more_slots_below_a_threshold_than_the_sample_made_believe():
    # Every slot that the sample looks at ranks high, all others low: a pass finds more than there is room for.
    keys = np.ones(40_960, np.int32)
    keys[::10] = 9
    keys[0] = 2
    victims = take(keys, np.zeros(40_960, np.int32), 5, 40_960, 3, 3, share=0.0)
    assert victims == [1, 2, 3, 4, 5]


def test_a_reserve_outlives_a_batch():
    slots = Slots(np.zeros(100, np.int32), np.zeros(100, np.int32))
    reserve = VictimReserve(slots, reserve_share=0.5)
    first, _ = reserve.take(10, 100, 5, 5)
    used = [slot for slot in range(0, 50, 2) if slots.ranks[slot] != FREE]
    slots.use(6, used, [0] * len(used))  # no longer candidates
    reserve.used(6, np.array(used), np.zeros(len(used), np.int32))
    second, _ = reserve.take(10, 100, 5, 5)
    assert not set(first.tolist()) & set(second.tolist())
    assert not set(second.tolist()) & set(used)


def test_a_key_that_rises_takes_its_slot_back_in_the_order():
    slots, reserve = ten_slots(share=0.5)
    assert reserve.take(1, 10, 0, 0)[0].tolist() == [0]
    slots.use(0, [1, 2], [3, 8])  # among those of the reserve, and beyond them
    assert reserve.take(3, 10, 0, 0)[0].tolist() == [1, 3, 4]
    assert reserve.take(5, 10, 0, 0)[0].tolist() == [5, 6, 7, 2, 8]


def test_a_slot_used_with_a_low_key_enters_when_it_may_be_evicted():
    slots, reserve = ten_slots(share=0.5)
    reserve.take(1, 10, 0, 0)
    slots.use(1, [9], [0])  # now of the lowest rank
    reserve.used(1, np.array([9]), np.array([0], np.int32))
    assert reserve.take(1, 10, 1, 0)[0].tolist() == [1]
    assert reserve.take(2, 10, 2, 1)[0].tolist() == [9, 2]


def test_a_slot_whose_key_rose_before_it_may_be_evicted_enters_with_its_new_key():
    slots, reserve = ten_slots(share=0.5)
    reserve.take(1, 10, 0, 0)
    slots.use(1, [8, 9], [0, 0])
    reserve.used(1, np.array([8, 9]), np.array([0, 0], np.int32))
    slots.use(1, [8, 9], [3, 9])  # the next use becomes known
    assert reserve.take(4, 10, 2, 1)[0].tolist() == [1, 2, 3, 8]


def test_a_slot_that_a_later_scan_would_have_found_enters_too():
    slots, reserve = ten_slots(share=0.3)
    assert reserve.take(1, 10, 0, 0)[0].tolist() == [0]  # a scan finds 0, 1, 2
    slots.use(1, [9], [4])  # beyond what was found
    reserve.used(1, np.array([9]), np.array([4], np.int32))
    assert reserve.take(3, 10, 1, 0)[0].tolist() == [1, 2, 3]  # another one finds 3, 4, 5
    assert reserve.take(2, 10, 2, 1)[0].tolist() == [4, 9]


def test_keys_at_the_end_of_their_range():
    keys = np.array([2**31 - 1, 2**31 - 3, 2**31 - 1, 2**31 - 2, 0], np.int32)
    last_use = np.array([2**31 - 1, 2**31 - 1, 7, 0, 2**31 - 1], np.int32)
    newest = 2**31 - 1
    assert take(keys, last_use, 1, 5, newest, newest, share=0.0) == [4]
    assert take(keys, last_use, 5, 5, newest, newest) == [4, 1, 3, 2, 0]


def test_rows_in_flight_come_after_all_others():
    # Slot 0 has the lowest key but was used by batch 9, which is in flight; so was slot 3.
    keys = np.array([0, 5, 6, 1], np.int32)
    last_use = np.array([9, 3, 4, 9], np.int32)
    for count, victims in ((0, []), (1, [1]), (2, [1, 2]), (3, [1, 2, 0]), (4, [1, 2, 0, 3])):
        assert take(keys, last_use, count, 4, newest=9, preferred=8) == victims


def test_a_row_of_the_batch_itself_is_no_victim():
    last_use = np.array([5, 4, 5], np.int32)
    with pytest.raises(AssertionError, match="2 victims wanted, 1 found"):
        take(np.zeros(3, np.int32), last_use, 2, 3, newest=4, preferred=4)


def test_free_slots_and_slots_never_used_are_no_victims():
    last_use = np.array([-1, 2, -1, 1, 0], np.int32)  # the last one was never used: what it holds means nothing
    assert take(np.zeros(5, np.int32), last_use, 2, 4, 3, 3) == [3, 1]
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
    slots = Slots(keys, last_use)
    reserve = VictimReserve(slots, share)
    for batch in range(40):
        newest, preferred = batch - 1, batch - 1 - in_flight
        risen = np.flatnonzero((rng.random(size) < 0.1) & (last_use >= 0))
        keys[risen] += rng.integers(0, 3, len(risen)).astype(np.int32)
        slots.ranks[risen] = keys[risen].astype(np.int64) << 32 | last_use[risen]
        allowed = np.flatnonzero((last_use >= 0) & (last_use <= newest))
        settled = set(allowed[last_use[allowed] <= preferred].tolist())
        victims, latest = reserve.take(int(rng.integers(0, len(allowed) + 1)), size, newest, preferred)
        assert latest == max(last_use[victims], default=-1)
        chosen = set(victims.tolist())
        assert len(chosen) == len(victims)
        assert chosen <= set(allowed.tolist())
        assert chosen <= settled or settled <= chosen
        order = sorted((slot not in settled, keys[slot], last_use[slot]) for slot in allowed.tolist())
        assert [(slot not in settled, keys[slot], last_use[slot]) for slot in victims.tolist()] == order[: len(victims)]
        assert (slots.ranks[victims] == FREE).all()
        used = np.flatnonzero(rng.random(size) < 0.2)
        last_use[victims], last_use[used] = -1, batch
        keys[used] = rng.integers(0, 5, len(used))
        slots.use(batch, used.tolist(), keys[used].tolist())
        reserve.used(batch, used, keys[used])


def test_batches_without_victims_do_not_pile_up():
    slots = Slots(np.zeros(8, np.int32), np.full(8, -1, np.int32))
    reserve = VictimReserve(slots)
    for batch in range(50):
        assert reserve.take(0, 8, batch - 1, batch - 4)[0].tolist() == []
        slots.use(batch, [batch % 8], [0])
        reserve.used(batch, np.array([batch % 8]), np.zeros(1, np.int32))
    assert len(reserve._used) == 4
    assert reserve.take(3, 8, 49, 46)[0].tolist() == [2, 3, 4]  # last used by batches 42, 43 and 44
