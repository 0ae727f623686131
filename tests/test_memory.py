"""Memory follows the rows touched, not the tables."""

import numpy as np
import torch

from cachedlrm.cache.embedding_cache import CacheSettings, EmbeddingCache
from cachedlrm.config import parse_command_line
from cachedlrm.data.batch import Batch
from cachedlrm.metrics import host_memory
from cachedlrm.store.records import RecordLayout

MIB = 1 << 20


def test_tables_of_96_gb_cost_4_bytes_a_row_and_the_rows_touched():
    table_rows = parse_command_line(["--profile", "criteo-1tb"]).model.arch_embedding_size
    layout = RecordLayout(128, "sgd")
    assert sum(table_rows) * layout.record_bytes > 96e9
    start = host_memory()[0]
    settings = CacheSettings(quota_slots=20_000, num_slots=20_000, prefetch_depth=0, store_rows=10_000_000)
    cache = EmbeddingCache(table_rows, layout, settings, seed=1, device=torch.device("cpu"))
    assert host_memory()[0] - start < 50 * MIB
    rng = np.random.default_rng(0)
    empty, labels = np.zeros((0, 1), np.float32), np.zeros(0, np.float32)
    offsets = np.arange(10_001)
    stream = (Batch(empty, rng.integers(0, sum(table_rows), 10_000), offsets, labels) for _ in range(20))
    for batch in cache.prepare(stream):
        cache.scatter(batch, cache.gather(batch))
    touched = cache.book.num_addresses
    assert touched > 190_000
    used = host_memory()[0] - start
    assert used < 4 * sum(table_rows) + touched * (layout.record_bytes + 50) + 20_000 * layout.record_bytes + 50 * MIB
    assert cache.device_bytes["slab"] == 20_000 * layout.record_bytes


def test_ten_thousand_steps_grow_nothing():
    table_rows = (3000, 50)
    cache = EmbeddingCache(
        table_rows, RecordLayout(8, "adagrad"), CacheSettings(600, 600, prefetch_depth=0), 1, torch.device("cpu")
    )
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 3050, (64, 200))
    empty, labels, offsets = np.zeros((0, 1), np.float32), np.zeros(0, np.float32), np.arange(201)
    stream = (Batch(empty, pool[step % 64], offsets, labels) for step in range(10_000))
    evicted = 0
    for batch in cache.prepare(stream):
        cache.scatter(batch, cache.gather(batch))
        evicted += batch.counters.evicted_rows
        if batch.tensors.index == 1000:
            before = host_memory()[0]
    assert evicted > 100_000
    assert host_memory()[0] - before < 8 * MIB
