"""How long single steps take, the slowest of all too: python benchmarks/step_tail.py [ROUNDS] [STEPS]

The default job (`python -m cachedlrm.train --print-freq 1 --test-freq -1`, and the options in the table) with all rows
resident and with slots for 1 % of them, over a store in memory and over one on disk that most records spill to; batches
are prepared by the training thread (prefetch depth 0) or beside it (2). A step's time is the difference of
``elapsed_s`` between two lines of metrics.jsonl, to the millisecond; writing a line is part of it. The first 100 steps
of a run, in which the cache fills, do not count. Each round runs every job once, so that a machine whose speed drifts
treats them alike. All rows resident with depth 0 is without a second thread and without a store: its tail is that of
the machine and of torch.

Writes profiles/step-tail_<date>.md. With 3 rounds of 450 steps, the default: 1,050 steps of each job.
"""

import itertools
import sys
from dataclasses import dataclass, field

import numpy as np
from measuring import Neighbours, made_by, train, write_profile

WARM_UP = 100
JOBS = (
    "--gpu-cache-ratio=1",
    "--gpu-cache-ratio=0.01 --store=host",
    "--gpu-cache-ratio=0.01 --store=lmdb --host-budget=16MiB",
)
DEPTHS = (0, 2)


@dataclass
class Runs:
    """What the runs of a job did after their warm-up.

    Attributes:
        times: milliseconds of each step of each run.
        others: processors that other processes used, run by run.
        fetched_rows: by a step of the last run.
        disk_bytes: of the store at the end of it; None: not on disk.
        losses: of the last run, all steps.
    """

    times: list[np.ndarray] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    fetched_rows: float = 0.0
    disk_bytes: int | None = None
    losses: list[float] = field(default_factory=list)

    def add(self, options: list[str]) -> int:
        """One more; the number of its threads."""
        neighbours = Neighbours()
        report, metrics = train(*options, "--print-freq=1", "--test-freq=-1")
        self.others.append(neighbours.processors())
        ends_ms = np.array([row["elapsed_s"] for row in metrics]) * 1e3
        self.times.append(np.diff(ends_ms)[WARM_UP - 1 :])
        self.fetched_rows = float(np.mean([row["fetched_rows"] for row in metrics[WARM_UP:]]))
        self.disk_bytes = metrics[-1]["disk_bytes"]
        self.losses = report["losses"]
        return report["environment"]["threads"]

    def cells(self) -> str:
        """Those of its line."""
        steps = np.concatenate(self.times)
        median, p99 = np.quantile(steps, [0.5, 0.99])
        by_round = ", ".join(f"{np.quantile(run, 0.99) / np.median(run):.2f}" for run in self.times)
        slow = int((steps > 1.5 * median).sum())
        disk = "-" if self.disk_bytes is None else f"{self.disk_bytes / 2**20:,.0f}"
        return (
            f"{median:.1f} | {p99:.1f} | {p99 / median:.2f} | {by_round} | {steps.max():.0f} | {slow} of "
            f"{len(steps):,} | {self.fetched_rows:,.0f} | {disk} | {np.mean(self.others):.2f}"
        )


def main() -> None:
    """Runs, prints and writes the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 450
    if steps <= WARM_UP:
        sys.exit(f"STEPS {steps}: the first {WARM_UP} do not count; give more")
    made, threads = made_by(__file__), 0
    jobs = {job: Runs() for job in itertools.product(JOBS, DEPTHS)}
    for number in range(rounds):
        for (options, depth), runs in jobs.items():
            threads = runs.add([*options.split(), f"--prefetch-depth={depth}", f"--steps={steps}"])
            assert runs.losses == jobs[JOBS[0], 0].losses, "a run lost a bit"
            print(
                f"round {number + 1} of {rounds}: {options}, depth {depth}: {runs.times[-1].mean():.1f} ms", flush=True
            )
    lines = [
        "| options | prefetch depth | median ms | p99 ms | p99 / median | by round | worst ms | above 1.5 x median | "
        "rows fetched a step | MiB on disk | processors of others |",
        f"|---|{'---:|' * 10}",
        *(f"| `{options}` | {depth} | {runs.cells()} |" for (options, depth), runs in jobs.items()),
    ]
    write_profile(
        "step-tail",
        "# The slowest steps",
        f"{made}, {threads} threads. Runs of the default job, {rounds} rounds of {steps} steps of each in turn, "
        f"the first {WARM_UP} of a run left out: {rounds * (steps - WARM_UP):,} steps of each, wall time to the ms. "
        "Losses of all runs were equal to the last bit. Processors of others: what other processes used meanwhile.",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
