"""What planning a batch costs: python benchmarks/planner.py [BATCHES]

The default stream (2,048 samples of 26 lookups), planned by every policy at 1 % and 5 % in one thread; only batches
that evict are counted. Milliseconds of processor time, so that other processes on the machine do not count: finding the
working set (which does not depend on the cache), and planning it (announcing and victims included). Prints also the
memory of what the planner keeps, by table row and by row touched, and writes profiles/planner_<date>.md.
"""

import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import numpy as np
from measuring import described, made_by, write_profile

from cachedlrm.base.machine import host_memory
from cachedlrm.cache.lookup_counts import add_lookups
from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import Lookahead, Oracle, Policy, Static, make_policy
from cachedlrm.cache.working_set import AddressBook, WorkingSet
from cachedlrm.data.batch import Batch
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource

POLICIES = ("lru", "lfu", "lrfu", "static", "lookahead", "oracle")
RATIOS = (0.01, 0.05)
BATCH, WINDOW, PREFETCH_DEPTH = 2048, 200, 2
NUM_ROWS = sum(CRITEO_KAGGLE_ROWS)


def inform(policy: Policy, batches: list[Batch], folder: Path) -> None:
    """Gives policies what they read ahead."""
    if isinstance(policy, Static):
        book = AddressBook(NUM_ROWS, keeps_previous=False)
        policy.count(book.working_set(index, b.rows, b.offsets) for index, b in enumerate(batches))
    if isinstance(policy, Lookahead):
        counts = np.zeros(NUM_ROWS, np.uint16)
        for batch in batches:
            add_lookups(batch.rows, counts, 1)
        policy.take_counts(counts)
    if isinstance(policy, Oracle):
        from cachedlrm.cache.next_use import NextUses, NextUseWriter  # noqa: PLC0415 - only here

        writer = NextUseWriter(folder, NUM_ROWS)
        for index in reversed(range(len(batches))):
            writer.add(index, batches[index].rows)
        writer.close()
        policy.know(NextUses(folder))


def measure(name: str, ratio: float, batches: list[Batch], folder: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Milliseconds of working sets and plans of the batches that evict [n], and rows evicted."""
    quota = int(ratio * NUM_ROWS)
    policy = make_policy(name, quota + 26 * BATCH, NUM_ROWS, WINDOW)
    inform(policy, batches, folder)
    planner = Planner(quota, quota + 26 * BATCH, policy, PREFETCH_DEPTH)
    book = AddressBook(NUM_ROWS, keeps_previous=policy.needs_previous)
    found, planned, evicted = [], [], 0
    waiting: deque[WorkingSet] = deque()
    for index, batch in enumerate(batches):
        started = time.thread_time()
        working_set = book.working_set(index, batch.rows, batch.offsets)
        middle = time.thread_time()
        planner.announce(working_set)
        waiting.append(working_set)
        if len(waiting) <= planner.window:
            continue
        plan = planner.plan(waiting.popleft())
        if plan.counters.evicted_rows:
            found.append((middle - started) * 1e3)
            planned.append((time.thread_time() - middle) * 1e3)
            evicted += plan.counters.evicted_rows
    return np.array(found), np.array(planned), evicted


def spread(times: np.ndarray) -> str:
    """Median, p10-p90 and p99."""
    return f"{described(times)}, {np.percentile(times, 99):.2f}"


def row_bytes() -> tuple[float, float]:
    """Bytes of memory that a planner takes for a table row not touched, and more for one that is (policy lrfu)."""
    rows, step = 4_000_000, 50_000
    before = host_memory()[0]
    policy = make_policy("lrfu", 60_000, rows, 0)
    planner, book = Planner(1000, 60_000, policy, 0), AddressBook(rows, keeps_previous=False)
    book._address_of[:] = 0  # backs every page of the map, as rows touched here and there do
    mapped, started = host_memory()[0], 0
    for index, first in enumerate(range(0, rows, step)):
        working_set = book.working_set(index, np.arange(first, first + step), np.arange(step + 1))
        planner.announce(working_set)
        planner.plan(working_set)
        if first == 5 * step:  # kernels are loaded, and a batch's memory is taken
            started = host_memory()[0]
    return (mapped - before) / rows, (host_memory()[0] - started) / (rows - 6 * step)


def main() -> None:
    """Measures, prints and writes the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1200
    source = ZipfSource(CRITEO_KAGGLE_ROWS, 13, 123, BATCH * count, 1)
    batches = [source.read(index * BATCH, (index + 1) * BATCH) for index in range(count)]
    made, (untouched, touched) = made_by(__file__), row_bytes()
    lines = [
        "| cache | policy | batches | rows evicted a batch | plan with victims | working set |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for ratio in RATIOS:
            for name in POLICIES:
                measure(name, ratio, batches[: WINDOW + 5], Path(folder, "warm-up"))
                found, planned, evicted = measure(name, ratio, batches, Path(folder, "next_uses"))
                lines.append(
                    f"| {ratio:.0%} | {name} | {len(planned)} | {evicted / max(1, len(planned)):,.0f} "
                    f"| {spread(planned)} | {spread(found)} |"
                )
                print(lines[-1], flush=True)
    write_profile(
        "planner",
        "# The planner",
        f"{made}. {count} batches of the default stream, 53,248 lookups each; those that evict, in one thread, "
        "processor time in milliseconds: median (p10-p90), p99. Window of lookahead "
        f"{WINDOW}, prefetch depth {PREFETCH_DEPTH}.",
        f"Host memory: {untouched:.1f} bytes a table row (the map from row to address; static and lookahead have two "
        f"of counts beside that), and {touched:.1f} more for each row touched (lrfu).",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
