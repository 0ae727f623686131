"""Rows moved by every policy against Belady's MIN: python benchmarks/policies.py [LIBCACHESIM_DIRECTORY]

Runs the planner over the default stream and the flights, at 1 %, 2 % and 5 %, without training, and writes
profiles/policies_<date>.md. With the directory of ``pip install --target LIBCACHESIM_DIRECTORY libcachesim`` (apart, as
it changes pinned packages) the online policies of that library run on the same rows: one request for each unique row of
a batch, so that one row leaves for each that comes, and not before a whole batch as here.
"""

import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from measuring import made_by, write_profile

from cachedlrm.data.open import open_dataset
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.schedule import Schedule
from cachedlrm.plan.simulation import Curve, miss_ratio_curve
from cachedlrm.simulate import parse_simulation

STREAMS = {
    "zipf, 400 batches of 2,048": ["--data=zipf", "--steps=400", "--cache-ratios=0.01,0.02"],
    "zipf, 1,000 batches of 2,048: an epoch": ["--data=zipf", "--steps=1000", "--cache-ratios=0.01,0.02,0.05"],
    "flights, an epoch": ["--data=flights", "--cache-ratios=0.01,0.02,0.05"],
}
POLICIES = {
    "oracle": [],
    "lookahead 200, rows not counted": ["--count-rows=False"],
    "lookahead 200": [],
    "lookahead 400": ["--lookahead=400"],
    "lookahead 800": ["--lookahead=800"],
    "static": [],
    "lrfu": [],
    "lfu": [],
    "lru": [],
}
ONLINE = ("LRU", "LFU", "ARC", "LIRS", "S3FIFO", "Sieve", "WTinyLFU")
REQUEST = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])


def simulate(arguments: list[str], policy: str) -> tuple[Curve, float]:
    """The curve of one of `POLICIES`, and the seconds it took."""
    options, simulation = parse_simulation(
        [*arguments, "--report-min", f"--policy={policy.split(maxsplit=1)[0]}", *POLICIES[policy]]
    )
    dataset = open_dataset(options.data.data, None, data_request(options))
    started = time.perf_counter()
    curve = miss_ratio_curve(resolve(options, dataset), dataset, simulation.cache_ratios)
    return curve, time.perf_counter() - started


def requests(arguments: list[str]) -> Iterator[np.ndarray]:
    """The unique rows of each batch."""
    options, _ = parse_simulation(arguments)
    dataset = open_dataset(options.data.data, None, data_request(options))
    for batch in Schedule(resolve(options, dataset), dataset.train).batches():
        rows, first = np.unique(batch.rows, return_index=True)
        yield rows[np.argsort(first)]


def online(trace: np.ndarray, slots: list[int]) -> dict[str, list[int]]:
    """Rows that libcachesim's policies move, by policy and size."""
    import libcachesim  # noqa: PLC0415 - optional, from a directory of its own

    moved = {}
    with tempfile.NamedTemporaryFile(suffix=".oracleGeneral.bin") as file:
        records = np.zeros(len(trace), REQUEST)
        records["time"], records["id"], records["size"] = np.arange(len(trace)) // 1000, trace + 1, 1
        records["next"] = -1
        records.tofile(file)
        file.flush()
        for name in ONLINE:
            moved[name] = []
            for size in slots:
                reader = libcachesim.TraceReader(
                    trace=file.name,
                    trace_type=libcachesim.TraceType.ORACLE_GENERAL_TRACE,
                    reader_init_params=libcachesim.ReaderInitParam(ignore_obj_size=False),
                )
                cache = getattr(libcachesim, name)(cache_size=size, hashpower=22)
                moved[name].append(round(cache.process_trace(reader)[0] * len(trace)))
            print(name, moved[name], flush=True)
    return moved


def section(title: str, arguments: list[str], with_online: bool) -> str:
    """The tables of one stream."""
    curves = {}
    for policy in POLICIES:
        curves[policy], seconds = simulate(arguments, policy)
        print(title, policy, [f"{p.counters.moved_of_min:.4f}" for p in curves[policy].points], f"{seconds:.0f} s")
    points = curves["oracle"].points
    lookups, unique = points[0].counters.lookups, points[0].counters.working_set_rows
    text = (
        f"## {title.capitalize()}\n\n{lookups:,} lookups, {unique / curves['oracle'].num_steps:,.0f} unique rows a "
        f"batch, {points[0].counters.first_touch_rows:,} first touches. Rows moved, first touches included, for each "
        "that MIN moves (rows evicted):\n\n"
    )
    text += "| policy |" + "".join(f" {p.ratio:.0%}: {p.cache_slots:,} slots |" for p in points)
    text += "\n|---|" + "---:|" * len(points)
    text += "\n| MIN: rows moved |" + "".join(f" {p.counters.moved_rows_min:,} |" for p in points)
    for policy in POLICIES:
        text += f"\n| {policy} |"
        text += "".join(
            f" {p.counters.moved_of_min:.4f} ({p.counters.evicted_rows:,}) |" for p in curves[policy].points
        )
    if with_online:
        moved = online(np.concatenate(list(requests(arguments))), [p.cache_slots for p in points])
        for name in sorted(moved, key=lambda name: moved[name][0]):
            ratios = (count / p.counters.moved_rows_min for count, p in zip(moved[name], points, strict=True))
            text += f"\n| libcachesim {name} |" + "".join(f" {ratio:.4f} |" for ratio in ratios)
    return text


def main() -> None:
    """Measures, prints and writes the tables."""
    with_online = len(sys.argv) > 1
    if with_online:
        sys.path.append(sys.argv[1])
    made = made_by(__file__, ["LIBCACHESIM_DIRECTORY"] if with_online else [])
    write_profile(
        "policies",
        "# Policies and the physical limit",
        f"{made}. Prefetch depth 2. MIN: Belady's, with all rows of a batch resident together, from an empty cache. "
        "libcachesim's policies get the unique rows of each batch one by one.",
        *(section(title, arguments, with_online) for title, arguments in STREAMS.items()),
    )


if __name__ == "__main__":
    main()
