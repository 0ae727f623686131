"""facebookresearch/dlrm's table of CPU experiments: python benchmarks/reference_table.py [CHECKOUT] [SHARE] [ROWS]

Four command lines with an identical stream of batches, run here in full. With a checkout of the reference (and
tensorboard installed for it) each is also run there, on SHARE of its samples (default 0.02), in turn with ours, and its
time for the rest is extrapolated: its time is proportional to its batches. ROWS: how many of the four, default all.
Writes profiles/reference-table_<date>.md.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from measuring import made_by, train, write_profile

SMALL = ["--arch-sparse-feature-size=2", "--arch-mlp-bot=4-3-2", "--arch-mlp-top=4-2-1", "--arch-embedding-size=4-3-2"]
LARGE = [
    "--arch-sparse-feature-size=16",
    "--arch-mlp-bot=13-512-256-64-16",
    "--arch-mlp-top=512-256-1",
    f"--arch-embedding-size={'-'.join(['100'] * 12 + ['1000'] * 3)}",
]


@dataclass(frozen=True)
class Row:
    """One experiment."""

    samples: int
    batch: int
    epochs: int
    architecture: list[str]

    def arguments(self, samples: int) -> list[str]:
        """The command line for so many samples."""
        sizes = [f"--data-size={samples}", f"--mini-batch-size={self.batch}", f"--nepochs={self.epochs}"]
        return [*sizes, "--print-freq=1024", *self.architecture]


ROWS = [
    Row(1_000_000, 1000, 10, SMALL),
    Row(1_000_000, 100, 1, SMALL),
    Row(1_000_000, 128, 1, LARGE),
    Row(10_000_000, 128, 1, LARGE),
]


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of a command, its start included."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return time.perf_counter() - started


def ours(row: Row) -> tuple[float, dict]:
    """Seconds of the whole experiment here, and its report."""
    started = time.perf_counter()
    report, _ = train("--data=reference", *row.arguments(row.samples))
    return time.perf_counter() - started, report


def theirs(row: Row, checkout: Path, share: float) -> float:
    """Seconds of the whole experiment there, extrapolated from the difference of two shares of it."""
    batches = max(20, int(row.samples / row.batch * share))
    program = [sys.executable, str(checkout / "dlrm_s_pytorch.py")]
    few, many = (
        seconds([*program, *row.arguments(number * row.batch)], checkout) for number in (batches // 10, batches)
    )
    per_batch = (many - few) / ((batches - batches // 10) * row.epochs)
    return few + per_batch * row.epochs * (row.samples / row.batch - batches // 10)


def main() -> None:
    """Runs, prints and writes the table."""
    checkout = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
    share = float(sys.argv[2]) if len(sys.argv) > 2 else 0.02
    num_rows = int(sys.argv[3]) if len(sys.argv) > 3 else len(ROWS)
    made = made_by(__file__, ["CHECKOUT"] * bool(checkout) + sys.argv[2:])
    lines = []
    for row in ROWS[:num_rows]:
        reference = theirs(row, checkout, share) if checkout else None
        took, report = ours(row)
        ratio = f"{reference:,.0f} | {reference / took:.1f}" if reference else "- | -"
        step_ms = report["training_s"] * 1e3 / report["steps"]
        shape = re.sub("--arch-", "", " ".join(row.architecture[1:3]))
        lines.append(
            f"| {row.samples:,} | {row.batch} | {row.epochs} | {shape} | {took:.1f} | {step_ms:.3f} | {ratio} |"
        )
        print(lines[-1], flush=True)
    write_profile(
        "reference-table",
        "# facebookresearch/dlrm's table of CPU experiments",
        f"{made}. The batches, initial weights and losses are the reference's own. Seconds are those of the whole "
        "command; the reference's are extrapolated from a share of the batches, in turn with ours.",
        "| samples | batch | epochs | layers | seconds | ms a step | reference, seconds | times faster |\n"
        "|---:|---:|---:|---|---:|---:|---:|---:|\n" + "\n".join(lines),
    )


if __name__ == "__main__":
    main()
