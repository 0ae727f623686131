"""Rows on the move against a dictionary: whatever is evicted, staged and fetched, training sees the latest value."""

import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.embedding_cache import CacheSettings, EmbeddingCache
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.streams import StoppedError, TrainedBatches
from cachedlrm.cache.transfer import Transfer
from cachedlrm.data.batch import Batch
from cachedlrm.metrics import CacheCounters
from cachedlrm.store.records import RecordLayout

NUM_ROWS, DIM = 30, 3
streams = st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=10), min_size=1, max_size=30)


def batch_of(rows: list[int]) -> Batch:
    empty = np.zeros((0, 1), np.float32)
    return Batch(empty, np.array(rows, np.int64), np.arange(len(rows) + 1), np.zeros(0, np.float32))


def never(index: int) -> bool:
    return False


def travel(stream, quota, policy="lru", depth=0, staging_rows=2, spare=0, think_s=0.0) -> tuple[int, CacheCounters]:
    """Adds ``batch + 1`` to each row of each batch; returns how often a row came with a value not its latest."""
    settings_ = CacheSettings(quota, quota + spare, policy, 3, depth, staging_rows)
    cache = EmbeddingCache((NUM_ROWS,), RecordLayout(DIM, "sgd"), settings_, 5, torch.device("cpu"))
    latest = np.empty((NUM_ROWS, DIM), np.float32)
    cache.init.fill(np.arange(NUM_ROWS), latest)
    if policy == "static":
        cache.policy.count([])
    stale, counters = 0, CacheCounters()
    prefetcher = Prefetcher(cache.prepare(map(batch_of, stream)), depth, cache.trained, never)
    try:
        for index, prepared in enumerate(prefetcher):
            assert prepared.tensors.index == index
            time.sleep(think_s)
            records = cache.gather(prepared)
            rows = list(dict.fromkeys(stream[index]))
            stale += int((records.numpy() != latest[rows]).any(axis=1).sum())
            records += index + 1
            latest[rows] += np.float32(index + 1)
            cache.scatter(prepared, records)
            counters += prepared.counters
    finally:
        prefetcher.close()
    if not stale:
        assert (cache.read(np.arange(NUM_ROWS)).numpy() == latest).all()
        cache.flush()
        touched = cache.book.rows()
        assert (cache.store.records(len(touched)) == latest[touched]).all()
        assert (cache.read(np.arange(NUM_ROWS)).numpy() == latest).all()
    return stale, counters


@pytest.mark.parametrize("policy", ["lru", "lfu", "lrfu", "static", "lookahead"])
@settings(deadline=None, derandomize=True, max_examples=30)
@given(stream=streams, quota=st.integers(1, 12), depth=st.integers(0, 4), staging_rows=st.integers(1, 5))
def test_training_sees_the_latest_values(policy, stream, quota, depth, staging_rows):
    stale, _ = travel(stream, quota, policy, depth, staging_rows, spare=10)
    assert stale == 0


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


def test_nothing_is_prepared_beyond_a_pause():
    prepared: list[int] = []

    def stream():
        for index in range(8):
            prepared.append(index)
            yield batch_of([index])

    cache = EmbeddingCache((NUM_ROWS,), RecordLayout(DIM, "sgd"), CacheSettings(20, 20), 5, torch.device("cpu"))
    prefetcher = Prefetcher(cache.prepare(stream()), 3, cache.trained, lambda index: index in (2, 5))
    for batch in prefetcher:
        if batch.tensors.index in (2, 5):
            time.sleep(0.05)
            assert prepared[-1] == batch.tensors.index
        cache.scatter(batch, cache.gather(batch))
    prefetcher.close()
    assert prepared == list(range(8))


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_surfaces_in_its_place(depth):
    def stream():
        yield batch_of([1])
        yield batch_of([2])
        raise ValueError("bad sample")

    cache = EmbeddingCache((NUM_ROWS,), RecordLayout(DIM, "sgd"), CacheSettings(20, 20), 5, torch.device("cpu"))
    prefetcher = Prefetcher(cache.prepare(stream()), depth, cache.trained, never)
    seen = []

    def train():
        for batch in prefetcher:
            seen.append(batch.tensors.index)
            cache.scatter(batch, cache.gather(batch))

    with pytest.raises(ValueError, match="bad sample"):
        train()
    prefetcher.close()
    assert seen == [0, 1]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_close_ends_the_thread_wherever_it_waits(taken):
    # With two slots and one row a batch, the thread soon waits for training that never happens.
    before = threading.active_count()
    cache = EmbeddingCache((NUM_ROWS,), RecordLayout(DIM, "sgd"), CacheSettings(2, 2), 5, torch.device("cpu"))
    prefetcher = Prefetcher(cache.prepare(batch_of([i]) for i in range(20)), 4, cache.trained, lambda index: index == 4)
    for batch in prefetcher:
        if batch.tensors.index >= taken:
            break
        cache.scatter(batch, cache.gather(batch))
    time.sleep(0.02)
    prefetcher.close()
    assert threading.active_count() == before


def test_waiting_for_training_that_stops():
    trained = TrainedBatches(torch.device("cpu"), history=2)
    trained.mark(3)
    trained.wait(3)
    trained.wait(0)  # long past, beyond the history
    trained.stop()
    with pytest.raises(StoppedError):
        trained.wait(9)
