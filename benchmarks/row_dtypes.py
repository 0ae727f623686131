"""Does a model with rows of 16 bits learn as well: python benchmarks/row_dtypes.py [SEEDS] [JOBS]

Trains the jobs below from SEEDS (default 3) seeds with rows in fp32, bf16 and fp16, with optimizer state in bf16, too,
and with rows of 16 bits that are rounded to the nearest instead of at random. The difference to fp32 is of runs of one
seed. JOBS: their first letters, default all: zsf3. Writes profiles/row-dtypes-<JOBS>_<date>.md.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import ROOT, made_by, write_profile

JOBS = {
    "z": ("zipf, the default job", []),
    "s": ("zipf, the default job with sgd", ["--optimizer=sgd"]),
    "f": ("flights", ["--data=flights"]),
    "3": (
        "row 3 of the reference's table of CPU experiments",
        [
            *["--data=reference", "--data-size=1000000", "--mini-batch-size=128", "--arch-sparse-feature-size=16"],
            *["--arch-mlp-bot=13-512-256-64-16", "--arch-mlp-top=512-256-1"],
            f"--arch-embedding-size={'-'.join(['100'] * 12 + ['1000'] * 3)}",
        ],
    ),
}
"""Name and options of each. The reference's labels are random: there is a loss, and no AUC."""

ROWS = {
    "fp32": [],
    "bf16": ["--row-dtype=bf16"],
    "fp16": ["--row-dtype=fp16"],
    "bf16, state too": ["--row-dtype=bf16", "--row-state-dtype=bf16"],
    "bf16, to the nearest": ["--row-dtype=bf16"],
    "fp16, to the nearest": ["--row-dtype=fp16"],
}


def trained(name: str, options: list[str]) -> dict:
    """The report of one run."""
    program = [str(ROOT / "benchmarks/nearest_rounding.py")] if "nearest" in name else ["-m", "cachedlrm.train"]
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory, "run")
        command = [sys.executable, *program, *options, "--ui=off", f"--run-dir={run}"]
        subprocess.run(command, cwd=ROOT, check=True)
        return json.loads((run / "report.json").read_text())


def row(name: str, reports: list[dict], of_fp32: list[dict]) -> str:
    """Of the table: what a row takes, and means over the seeds beside those of fp32."""
    cells = [name, f"{reports[0]['record_bytes']}"]
    for key in ("auc", "loss_mean"):
        if reports[0][key] is None:
            cells += ["-", "-"]
            continue
        values = [report[key] for report in reports]
        differences = [value - report[key] for value, report in zip(values, of_fp32, strict=True)]
        cells.append(f"{statistics.mean(values):.5f}")
        cells.append(f"{statistics.mean(differences):+.5f} ({min(differences):+.5f} to {max(differences):+.5f})")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Trains, prints and writes the tables."""
    num_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    jobs = sys.argv[2] if len(sys.argv) > 2 else "".join(JOBS)
    paragraphs = []
    for job in jobs:
        title, options = JOBS[job]
        lines: list[str] = []
        of_fp32: list[dict] = []
        for name, kept in ROWS.items():
            if "state" in name and job in "s3":  # sgd keeps none
                continue
            seeds = [f"--numpy-rand-seed={seed}" for seed in range(1, num_seeds + 1)]
            reports = [trained(name, [*options, *kept, seed]) for seed in seeds]
            of_fp32 = of_fp32 or reports
            lines.append(row(name, reports, of_fp32))
            print(title, lines[-1], flush=True)
        header = "| rows | bytes of a record | AUC | beside fp32 (range) | mean loss | beside fp32 (range) |"
        paragraphs += [
            f"## {title}: {of_fp32[0]['steps']:,} steps",
            "\n".join([header, "|---|--:|--:|--:|--:|--:|", *lines]),
        ]
    write_profile(
        f"row-dtypes-{jobs}",
        "# Rows of 16 bits",
        f"{made_by(__file__)}. Means over {num_seeds} seeds; the AUC is that of the last evaluation.",
        *paragraphs,
    )


if __name__ == "__main__":
    main()
