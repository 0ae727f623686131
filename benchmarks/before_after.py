"""This checkout beside another one, in turn: python benchmarks/before_after.py CHECKOUT [ROUNDS]

CHECKOUT is a clone of this repository at another commit, with its own .venv. The default job at 5 % and with all rows
resident, and the first two rows of facebookresearch/dlrm's table of CPU experiments. Writes
profiles/before-after_<date>.md: medians over ROUNDS (default 5) runs of the milliseconds of a step, without setup, and
of the seconds of the whole command; losses must be equal.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import ROOT, made_by, write_profile
from reference_table import ROWS

JOBS = {
    "default job, 5 % cache": ["--gpu-cache-ratio=0.05", "--steps=150", "--test-freq=-1"],
    "default job, all rows resident": ["--steps=150", "--test-freq=-1"],
    "default job, 5 % cache, sgd": ["--gpu-cache-ratio=0.05", "--optimizer=sgd", "--steps=150", "--test-freq=-1"],
    **{
        f"reference table, row {number}": ["--data=reference", *row.arguments(row.samples)]
        for number, row in enumerate(ROWS[:2], 1)
    },
}

HEADER = "| | ms a step before | after | ratio | s of the command before | after | ratio |"


def run(checkout: Path, options: list[str]) -> tuple[float, float, float]:
    """Milliseconds of a step, seconds of the command, and the last loss."""
    with tempfile.TemporaryDirectory() as directory:
        python = checkout / ".venv" / "bin" / "python"
        command = [python if python.exists() else sys.executable, "-m", "cachedlrm.train", *options, "--ui=off"]
        started = time.perf_counter()
        subprocess.run([*command, f"--run-dir={directory}/run"], cwd=checkout, check=True)
        seconds = time.perf_counter() - started
        report = json.loads(Path(directory, "run", "report.json").read_text())
    return report["training_s"] * 1e3 / report["steps"], seconds, report["loss_last"]


def main() -> None:
    """Measures and writes the table."""
    other, rounds = Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 5
    commit = subprocess.run(
        ["git", "-C", other, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    lines = []
    for name, options in JOBS.items():
        runs = [(run(other, options), run(ROOT, options)) for _ in range(rounds)]
        losses = [(one[2], two[2]) for one, two in runs]
        assert len(set(itertools.chain(*losses))) == 1, f"{name}: losses differ: {losses}"
        before, after = (
            [statistics.median(one[kind] for one in side) for kind in (0, 1)] for side in zip(*runs, strict=True)
        )
        ratios = [statistics.median(pair[1][kind] / pair[0][kind] for pair in runs) for kind in (0, 1)]
        lines.append(
            f"| {name} | {before[0]:.3f} | {after[0]:.3f} | {ratios[0]:.3f} | {before[1]:.1f} | {after[1]:.1f} | "
            f"{ratios[1]:.3f} |"
        )
        print(lines[-1], flush=True)
    write_profile(
        "before-after",
        "# Before and after",
        f"{made_by(__file__, ['CHECKOUT', str(rounds)])}. Before: commit {commit}. Runs in turn, medians of {rounds}; "
        "a ratio is the median of the ratios of two runs one after the other. The last losses were equal.",
        "\n".join([HEADER, "|---|---:|---:|---:|---:|---:|---:|", *lines]),
    )


if __name__ == "__main__":
    main()
