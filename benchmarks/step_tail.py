"""How long single steps take, the slowest of all too: python benchmarks/step_tail.py [ROUNDS] [STEPS]

The default job (`python -m cachedlrm.train --print-freq 1 --test-freq -1`, and the options in the table) with all rows
resident and with slots for 1 % of them, over a store in memory and one on disk that most records spill to, prepared by
the training thread (prefetch depth 0) and beside it (2). A step's time is the difference of ``elapsed_s`` between two
lines of metrics.jsonl, to the millisecond; it contains the writing of a line. The first 100 steps of a run, in which
the cache fills, do not count. Each round runs every job once, so that a machine whose speed drifts treats them alike.
All rows resident with depth 0 reads and writes no file and has no second thread: its tail is the machine's own.

Writes profiles/step-tail_<date>.md. With 3 rounds of 450 steps, the default: 1,050 steps of each job.
"""

import sys

import numpy as np
from measuring import Neighbours, made_by, train, write_profile

WARM_UP = 100
JOBS = {
    "--gpu-cache-ratio 1": ("--gpu-cache-ratio=1",),
    "--gpu-cache-ratio 0.01 --store host": ("--gpu-cache-ratio=0.01", "--store=host"),
    "--gpu-cache-ratio 0.01 --store lmdb --host-budget 64MiB": (
        "--gpu-cache-ratio=0.01", "--store=lmdb", "--host-budget=64MiB",
    ),
}  # fmt: skip
DEPTHS = (0, 2)


def main() -> None:
    """Runs, prints and writes the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 450
    if steps < WARM_UP + 2:
        sys.exit(f"STEPS {steps}: the first {WARM_UP} do not count; give more")
    neighbours = Neighbours()
    jobs = [(name, depth) for name in JOBS for depth in DEPTHS]
    times: dict[tuple[str, int], list[np.ndarray]] = {job: [] for job in jobs}
    last: dict[tuple[str, int], dict] = {}
    threads, losses = 0, []
    for number in range(rounds):
        for name, depth in jobs:
            report, metrics = train(
                *JOBS[name], f"--prefetch-depth={depth}", f"--steps={steps}", "--print-freq=1", "--test-freq=-1"
            )
            ends_ms = np.array([row["elapsed_s"] for row in metrics]) * 1e3
            times[name, depth].append(np.diff(ends_ms)[WARM_UP - 1 :])
            last[name, depth] = metrics[-1] | {"fetched_rows": sum(row["fetched_rows"] for row in metrics[WARM_UP:])}
            threads = report["environment"]["threads"]
            losses.append(report["losses"])
            print(f"round {number + 1}: {name}, depth {depth}: {shown(times[name, depth][-1:])}", flush=True)
    assert all(each == losses[0] for each in losses), "a run lost a bit"
    lines = [
        "| job | prefetch depth | median ms | p99 ms | p99 / median | by round | worst ms | steps above 1.5 x median | "
        "fetched a step | on disk MiB |",
        f"|---|{'---:|' * 9}",
    ]
    for (name, depth), runs in times.items():
        row = last[name, depth]
        disk = f"{row['disk_bytes'] / 2**20:,.0f}" if row["disk_bytes"] else "-"
        fetched = row["fetched_rows"] / (steps - WARM_UP)
        lines.append(f"| `{name}` | {depth} | {shown(runs)} | {fetched:,.0f} | {disk} |")
    write_profile(
        "step-tail",
        "# The slowest steps",
        f"{made_by(__file__)}, {threads} threads. {rounds} rounds of {steps} steps of every job, the first {WARM_UP} "
        f"of each left out: {rounds * (steps - WARM_UP):,} steps of each, in milliseconds of the clock, to the "
        "millisecond. Losses of all runs were equal to the last bit. Other processes used "
        f"{neighbours.processors():.2f} processors meanwhile.",
        "\n".join(lines),
    )


def shown(runs: list[np.ndarray]) -> str:
    """The cells of a line: of all steps of the runs, and p99 / median of each run."""
    steps = np.concatenate(runs)
    median, p99 = np.quantile(steps, [0.5, 0.99])
    by_round = ", ".join(f"{np.quantile(run, 0.99) / np.median(run):.2f}" for run in runs)
    slow = int((steps > 1.5 * median).sum())
    return f"{median:.1f} | {p99:.1f} | {p99 / median:.2f} | {by_round} | {steps.max():.0f} | {slow} of {len(steps)}"


if __name__ == "__main__":
    main()
