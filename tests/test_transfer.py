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
