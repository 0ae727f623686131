"""What preparing a lookup costs, one-hot and multi-hot side by side: python benchmarks/preparing.py [LOOKUPS]

Criteo-Kaggle's tables (33.8 M rows) with slots for 5 % of the rows, policy lrfu: samples of one id a table, and of
MLPerf's 1 to 100 ids a table (profile dlrm-dcnv2: 214 a sample), in batches of 2,048 and 16,384. Preparing is finding
the working set and planning it, victims included; only batches that evict are counted. One thread, batch by batch in
turn; nanoseconds of processor time for each lookup, so that other processes on the machine count less. Both streams are
read until they have LOOKUPS (default 60,000,000) lookups. Writes profiles/preparing_<date>.md.
"""

import sys
import time
from collections.abc import Iterator

from measuring import described, made_by, write_profile

from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import make_policy
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.data.open import open_dataset
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request

NUM_ROWS = sum(CRITEO_KAGGLE_ROWS)
SLOTS = NUM_ROWS // 20
MLPERF = parse_command_line(["--profile=dlrm-dcnv2"])
BAGS = open_dataset(MLPERF.data.data, None, data_request(MLPERF)).train.max_lookups_per_bag
PREFETCH_DEPTH = 2


def prepared(hot: int | tuple[int, ...], size: int, num_lookups: int) -> Iterator[tuple[int, float, float, int]]:
    """Lookups, nanoseconds of working set and plan for each of them, and rows evicted, of batch after batch."""
    per_sample = hot * len(CRITEO_KAGGLE_ROWS) if isinstance(hot, int) else sum(hot)
    batches = num_lookups // (size * per_sample)
    source = ZipfSource(CRITEO_KAGGLE_ROWS, 0, 1, batches * size, hot)
    most_slots = SLOTS + size * per_sample
    policy = make_policy("lrfu", most_slots, NUM_ROWS, 0)
    book = AddressBook(NUM_ROWS, keeps_previous=policy.needs_previous)
    planner = Planner(SLOTS, most_slots, policy, PREFETCH_DEPTH, num_tables=len(CRITEO_KAGGLE_ROWS))
    for index in range(batches):
        batch = source.read(index * size, (index + 1) * size)
        started = time.thread_time_ns()
        working_set = book.working_set(index, batch.rows, batch.offsets)
        middle = time.thread_time_ns()
        planner.announce(working_set)
        plan = planner.plan(working_set)
        ended = time.thread_time_ns()
        lookups = len(batch.rows)
        yield lookups, (middle - started) / lookups, (ended - middle) / lookups, plan.counters.evicted_rows


def in_turn(size: int, num_lookups: int) -> dict[str, list[tuple[int, float, float, int]]]:
    """Batches that evict, as `prepared` has them; the stream with fewer lookups so far is next."""
    streams = {"one-hot": prepared(1, size, num_lookups), "multi-hot": prepared(BAGS, size, num_lookups)}
    done = dict.fromkeys(streams, 0)
    found: dict[str, list[tuple[int, float, float, int]]] = {name: [] for name in streams}
    while streams:
        name = min(streams, key=done.__getitem__)
        measured = next(streams[name], None)
        if measured is None:
            del streams[name]
            continue
        done[name] += measured[0]
        found[name] += [measured] if measured[-1] else []
    return found


def main() -> None:
    """Measures, prints and writes the table."""
    num_lookups = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000_000
    made = made_by(__file__)
    in_turn(64, 1_000_000)  # compiles
    lines = [
        "| samples a batch | ids | lookups a batch | rows evicted | batches | working set | plan | together | mean |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for size in (2048, 16384):
        for name, batches in in_turn(size, num_lookups).items():
            lookups, working_set, plan, evicted = zip(*batches, strict=True)
            together = [sum(both) for both in zip(working_set, plan, strict=True)]
            times = " | ".join(described(each, 1) for each in (working_set, plan, together))
            moved = sum(evicted) / len(evicted)
            mean = f"{sum(together) / len(together):.1f}"
            lines.append(f"| {size:,} | {name} | {lookups[0]:,} | {moved:,.0f} | {len(batches)} | {times} | {mean} |")
            print(lines[-1], flush=True)
    write_profile(
        "preparing",
        "# What preparing a lookup costs",
        f"{made}. Criteo-Kaggle's 26 tables, slots for 5 % of the rows, policy lrfu, prefetch depth {PREFETCH_DEPTH}; "
        f"one-hot and MLPerf's bags, {sum(BAGS)} ids a sample. Batches that evict, in one thread, in turn; nanoseconds "
        "of processor time for each lookup, median (p10-p90), and the mean of all, as few batches scan for victims.",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
