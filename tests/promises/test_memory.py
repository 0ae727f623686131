"""Memory follows the rows touched, not the tables."""

import subprocess
import sys

import numpy as np
import pytest

from cachedlrm.base.machine import host_memory
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.planner import BYTES_PER_SLOT
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.batch import Batch
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.store.records import RecordLayout
from support.models import one_group

MIB = 1 << 20


def touch(cache: EmbeddingCache, num_rows: int, num_lookups: int, num_batches: int) -> None:
    """Batches of random rows come and go untrained."""
    rng = np.random.default_rng(0)
    empty, labels = np.zeros((0, 1), np.float32), np.zeros(0, np.float32)
    offsets = np.arange(num_lookups + 1)
    stream = (Batch(empty, rng.integers(0, num_rows, num_lookups), offsets, labels) for _ in range(num_batches))
    for batch in cache.prepare(stream):
        cache.finish(batch, cache.begin(batch))


def test_tables_of_96_gb_cost_4_bytes_a_row_and_the_rows_touched():
    table_rows = parse_command_line(["--profile", "criteo-1tb"]).model.arch_embedding_size
    layout = RecordLayout(128, "sgd")
    assert sum(table_rows) * layout.record_bytes > 96e9
    small = one_group((900,), layout, 200, settings=CacheSettings(prefetch_depth=0))
    touch(small, 900, 100, 20)  # compiles the kernels, which takes memory once
    start = host_memory()[0]
    cache = one_group(
        table_rows, layout, 20_000, settings=CacheSettings(prefetch_depth=0), store_rows=10_000_000, seed=1
    )
    assert host_memory()[0] - start < 50 * MIB
    touch(cache, sum(table_rows), 10_000, 20)
    touched = cache.groups[0].book.num_addresses
    assert touched > 190_000
    used = host_memory()[0] - start
    assert used < 4 * sum(table_rows) + touched * (layout.record_bytes + 50) + 20_000 * layout.record_bytes + 50 * MIB
    assert cache.device_bytes["slab"] == 20_000 * layout.record_bytes


_SLOTS = """
import sys
import numpy as np, psutil
from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import make_policy
from cachedlrm.cache.working_set import AddressBook

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

def run(num_slots, size):
    num_rows = num_slots + 100 * size
    policy = make_policy("lru", num_slots + size, num_rows, 0)
    planner = Planner(num_slots, num_slots + size, policy, 2)
    book = AddressBook(num_rows, keeps_previous=False)
    evicted = 0
    for index in range(num_rows // size):
        rows = np.arange(index * size, (index + 1) * size)
        working_set = book.working_set(index, rows, np.arange(size + 1))
        planner.announce(working_set)
        evicted += len(planner.plan(working_set).evict_slots)
    return evicted

run(3000, 300)  # compiles
before = psutil.Process().memory_info().rss
print(run(int(sys.argv[1]), 20_000), peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_slot_takes_what_a_plan_counts():
    sizes = 2_000_000, 6_000_000
    runs = [subprocess.check_output([sys.executable, "-c", _SLOTS, str(size)], text=True).split() for size in sizes]
    assert all(int(evicted) > 1_500_000 for evicted, _ in runs), "of the larger, too, two scans for victims"
    of_row = 4 + 8 + 4  # maps to addresses, back and to slots
    of_slot = (int(runs[1][1]) - int(runs[0][1])) / (sizes[1] - sizes[0]) - of_row
    assert 0.85 * BYTES_PER_SLOT < of_slot <= BYTES_PER_SLOT


def test_ten_thousand_steps_grow_nothing():
    table_rows = (3000, 50)
    cache = one_group(table_rows, RecordLayout(8, "adagrad"), 600, settings=CacheSettings(prefetch_depth=0))
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 3050, (64, 200))
    empty, labels, offsets = np.zeros((0, 1), np.float32), np.zeros(0, np.float32), np.arange(201)
    stream = (Batch(empty, pool[step % 64], offsets, labels) for step in range(10_000))
    evicted = 0
    for batch in cache.prepare(stream):
        cache.finish(batch, cache.begin(batch))
        evicted += batch.counters.evicted_rows
        if batch.tensors.index == 1000:
            before = host_memory()[0]
    assert evicted > 100_000
    assert host_memory()[0] - before < 8 * MIB
