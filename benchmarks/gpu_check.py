"""GPU tests, exactness and a short measured run under an emulated 4 GiB card; writes profiles/*.md.

``make gpu-check`` runs it. Without a CUDA device it writes a report that says what was not run.
"""

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
CARD_BYTES = 4 << 30
STEPS = 400
# One process a run: the memory fraction and the peak are a process's own.
MEASURE = """
import sys, torch
from cachedlrm.train import main
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(min(1.0, float(sys.argv[1]) / total))
sys.exit(main(sys.argv[2:]))
"""


def run(*command: str) -> tuple[int, str]:
    """Exit status and output of a command in the repository's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def measured_runs() -> list[str]:
    """Rows of a table: cache ratio, rate, waiting, hit ratio, bytes."""
    lines = []
    for ratio in ("0.01", "0.05", "1.0"):
        with tempfile.TemporaryDirectory() as directory:
            options = ["--gpu-cache-ratio", ratio, "--gpu-budget", "4GiB", "--steps", str(STEPS), "--test-freq", "-1"]
            options += ["--optimizer", "sgd"]  # with optimizer state the resident run would not fit the card
            options += ["--device", "cuda", "--ui", "off", "--run-dir", f"{directory}/run"]
            status, output = run(sys.executable, "-c", MEASURE, str(CARD_BYTES), *options)
            if status:
                lines.append(f"| {ratio} | failed: {' '.join(output.split())[-300:]} | | | | |")
                continue
            report = json.loads(Path(directory, "run", "report.json").read_text())
        peak = report["device_peak_bytes"] / 2**20
        lines.append(
            f"| {ratio} | {report['samples_per_s']:,.0f} | {report['phase_ms']['wait']:.2f} "
            f"| {report['hit_ratio']:.2%} | {report['fetched_rows']:,} | {peak:,.0f} MiB |"
        )
    return lines


def main() -> int:
    """Writes the report; 1 if a test failed."""
    now = datetime.now(UTC)
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12")[1].strip()
    has_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if has_gpu else "no-cuda"
    status, output = run(sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_cuda.py")
    summary = output.strip().splitlines()[-1] if output.strip() else "no output"
    lines = [
        "# GPU check",
        f"`make gpu-check` on {now:%Y-%m-%d %H:%M} UTC, commit {commit}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, device: {device}.",
        "## GPU tests and exactness with deterministic algorithms",
        f"`pytest -m gpu tests/test_cuda.py`: {summary}",
    ]
    if has_gpu:
        lines += [
            f"## {STEPS} steps of the default job under an emulated 4 GiB card",
            "\n".join(
                [
                    "| cache ratio | samples/s | wait ms per step | hit ratio | rows fetched | device peak |",
                    "|---|---:|---:|---:|---:|---:|",
                    *measured_runs(),
                ]
            ),
        ]
    else:
        lines.append(
            "**Not run:** this machine has no CUDA device, so all GPU tests were skipped and nothing was measured."
        )
        status = 0
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    path = ROOT / "profiles" / f"criteo-kaggle_{name}_{now:%Y-%m-%d}.md"
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    print(f"{summary}\nreport: {path}")
    return 1 if status else 0


if __name__ == "__main__":
    sys.exit(main())
