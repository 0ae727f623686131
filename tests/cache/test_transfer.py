"""Rows on the move against a dictionary: whatever is evicted, staged and fetched, training sees the latest value."""

import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.streams import TrainedBatches
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.cache.transfer import Transfer
from cachedlrm.data.batch import Batch
from cachedlrm.store.records import RecordLayout
from support.models import one_group

NUM_ROWS, DIM = 30, 3
streams = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=10), min_size=1, max_size=30)


def batch_of(rows: list[int]) -> Batch:
    empty = np.zeros((0, 1), np.float32)
    return Batch(empty, np.array(rows, np.int64), np.arange(len(rows) + 1), np.zeros(0, np.float32))


def travel(
    stream, quota, policy="lru", depth=0, staging_rows=2, spare=0, think_s=0.0, optimizer="sgd", read_every=0
) -> tuple[int, CacheCounters]:
    """Adds ``batch + 1`` to each row of each batch; returns how often a row came with a value not its latest.

    Every ``read_every`` batches all rows are read while the preparation pauses.
    """
    layout = RecordLayout(DIM, optimizer)
    cache = one_group((NUM_ROWS,), layout, quota, quota + spare, CacheSettings(policy, 3, depth, staging_rows))
    group = cache.groups[0]
    latest = np.empty((NUM_ROWS, layout.width), np.float32)

    def reads_after(index: int) -> bool:
        return read_every > 0 and (index + 1) % read_every == 0

    group.init.fill(np.arange(NUM_ROWS), latest)
    if policy == "static":
        group.policy.count([])
    stale, counters = 0, CacheCounters()
    prefetcher = Prefetcher(cache.prepare(map(batch_of, stream)), depth, cache.trained, reads_after)
    try:
        for index, prepared in enumerate(prefetcher):
            assert prepared.tensors.index == index
            time.sleep(think_s)
            [update] = cache.begin(prepared)
            records = update.records
            rows = list(dict.fromkeys(stream[index]))
            stale += int((records.numpy() != latest[rows]).any(axis=1).sum())
            records += index + 1
            latest[rows] += np.float32(index + 1)
            cache.finish(prepared, [update])
            counters += prepared.counters
            assert prepared.counters.fetched_bytes == prepared.counters.fetched_rows * layout.record_bytes
            assert prepared.counters.written_back_bytes == prepared.counters.written_back_rows * layout.record_bytes
            if reads_after(index):
                assert (group.read(np.arange(NUM_ROWS)).numpy() == latest[:, :DIM]).all()
                if index % 2:
                    cache.flush()
    finally:
        prefetcher.close()
    if not stale:
        assert (group.read(np.arange(NUM_ROWS)).numpy() == latest[:, :DIM]).all()
        cache.flush()
        touched = group.book.rows()
        assert (group.records(np.arange(len(touched))) == latest[touched]).all()
        assert (group.read(np.arange(NUM_ROWS)).numpy() == latest[:, :DIM]).all()
    return stale, counters


@pytest.mark.parametrize("policy", ["lru", "lfu", "lrfu", "static", "lookahead"])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(stream=streams, quota=st.integers(1, 12), depth=st.integers(0, 4), staging_rows=st.integers(1, 5))
def test_training_sees_the_latest_values(policy, stream, quota, depth, staging_rows):
    stale, _ = travel(stream, quota, policy, depth, staging_rows, spare=10)
    assert stale == 0


@pytest.mark.parametrize("policy", ["lru", "lookahead"])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    stream=streams,
    quota=st.integers(1, 12),
    depth=st.integers(0, 4),
    optimizer=st.sampled_from(["rwsadagrad", "adagrad", "adam"]),
    read_every=st.integers(1, 5),
)
def test_reading_in_between_sees_and_changes_nothing(policy, stream, quota, depth, optimizer, read_every):
    run = partial(travel, stream, quota, policy, depth, spare=10, optimizer=optimizer)
    assert run(read_every=read_every) == run() == (0, run(staging_rows=7)[1])


# Rows leave and come back in the next batch but one, through staging buffers that do not hold a batch.
TIGHT = [[(7 * i + k) % 12 for k in range(4)] for i in range(60)]


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_tight_cache(depth):
    stale, counters = travel(TIGHT, 5, depth=depth)
    assert stale == 0
    assert counters.evicted_rows > 100
    assert counters.written_back_rows > 100
    assert counters.fetched_rows > 100


def test_without_read_after_rows_come_back_stale(monkeypatch):
    monkeypatch.setattr(Transfer, "_finish_write_backs", lambda self, through_plan: None)
    stale, _ = travel(TIGHT, 5, staging_rows=64)
    assert stale > 0


def test_without_evict_after_rows_leave_before_they_are_trained(monkeypatch):
    monkeypatch.setattr(TrainedBatches, "wait", lambda self, index: None)
    stale, _ = travel(TIGHT, 5, depth=4, think_s=0.005)
    assert stale > 0


def later(method, by: int):
    """A method that is told a number too small."""
    return lambda self, index: method(self, index - by)


def test_read_after_one_plan_too_early_is_noticed(monkeypatch):
    monkeypatch.setattr(Transfer, "_finish_write_backs", later(Transfer._finish_write_backs, 1))
    stale, _ = travel(TIGHT, 5, staging_rows=64)
    assert stale > 0


def test_evict_after_one_batch_too_early_is_noticed(monkeypatch):
    monkeypatch.setattr(TrainedBatches, "wait", later(TrainedBatches.wait, 1))
    stale, _ = travel(TIGHT, 5, depth=4, think_s=0.005)
    assert stale > 0


@pytest.mark.parametrize("staging_rows", [1, 3, 64])
@pytest.mark.parametrize("policy", ["lru", "lfu", "lrfu", "static", "lookahead"])
def test_a_slow_trainer(policy, staging_rows):
    stale, counters = travel(TIGHT[:25], 5, policy, depth=4, staging_rows=staging_rows, think_s=0.001)
    assert stale == 0
    assert min(counters.evicted_rows, counters.written_back_rows, counters.fetched_rows) > 30


@pytest.mark.parametrize("depth", [0, 3])
def test_a_full_store_is_the_users_error_in_the_consumer(depth):
    # Every touched row comes down in the end, so the third one is refused when it is touched.
    settings_ = CacheSettings("lru", 0, depth, 1)
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 2, settings=settings_, store_rows=2)
    stream = map(batch_of, [[0], [1], [2], [3], [4], [5], [6], [7], [8]])
    prefetcher = Prefetcher(cache.prepare(stream), depth, cache.trained, lambda index: False)
    seen = []

    def train():
        for prepared in prefetcher:
            seen.append(prepared.tensors.index)
            cache.finish(prepared, cache.begin(prepared))

    with pytest.raises(UserError, match="--host-budget"):
        train()
    prefetcher.close()
    assert seen == [0, 1]


def test_a_store_too_small_for_the_touched_rows_ends_training_not_saving():
    # Three rows, all resident to the end, and a store for two.
    settings_ = CacheSettings("lru", 0, 0, 4)
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 20, settings=settings_, store_rows=2)
    prepared = cache.prepare(map(batch_of, [[0], [1], [2]]))
    for _ in range(2):
        batch = next(prepared)
        cache.finish(batch, cache.begin(batch))
    with pytest.raises(UserError, match="--host-budget"):
        next(prepared)


def test_reading_rows_of_every_kind():
    # Rows 0 and 1 are below, 2 and 3 resident, 4 announced but not planned yet, all others never seen; twice each.
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "adagrad"), 2, settings=CacheSettings("lookahead", 1, 0, 1))
    group = cache.groups[0]
    initial = np.empty((NUM_ROWS, 2 * DIM), np.float32)
    group.init.fill(np.arange(NUM_ROWS), initial)
    prepared = cache.prepare(map(batch_of, [[0, 1], [2, 3], [4]]))
    for index in range(2):
        batch = next(prepared)
        [update] = cache.begin(batch)
        update.records += 10.0 * (index + 1)
        cache.finish(batch, [update])
    rows = np.array([4, 0, 29, 2, 2, 1, 3, 0, 4, 7])
    expected = initial[rows, :DIM] + np.array([0, 10, 0, 20, 20, 10, 20, 10, 0, 0], np.float32)[:, None]
    assert (group.read(rows).numpy() == expected).all()
    assert group.read(np.empty(0, np.int64)).shape == (0, DIM)


def test_bytes_on_the_device_are_those_of_the_tensors():
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "adam"), 6, 8, CacheSettings("lru", 0, 0, 16))
    assert cache.device_bytes == {"slab": 8 * 9 * 4, "staging": 0, "working_set": 0}
    cache.begin(next(cache.prepare([batch_of([1, 2, 3, 4])])))
    assert cache.device_bytes["working_set"] == 5 * 9 * 4  # a quarter more than needed
