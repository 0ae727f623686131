"""What benchmarks share: a run of the program, spreads, who else used the machine, and where figures go."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import torch

from cachedlrm.report.environment import commit, cpu_model

ROOT = Path(__file__).resolve().parents[1]


def train(*options: str) -> tuple[dict, list[dict]]:
    """The report and the metrics of one run of the program, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        return train_into(Path(directory, "run"), *options)


def train_into(run: Path, *options: str, prefix: Sequence[str] = ()) -> tuple[dict, list[dict]]:
    """The same, leaving the run directory; ``prefix`` is a command that starts the program."""
    subprocess.run(
        [*prefix, sys.executable, "-m", "cachedlrm.train", *options, "--ui=off", f"--run-dir={run}"],
        cwd=ROOT,
        check=True,
    )
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return json.loads((run / "report.json").read_text()), metrics


def described(values: Sequence[float], digits: int = 2) -> str:
    """Median (p10-p90)."""
    low, high = np.quantile(values, [0.1, 0.9])
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


class Neighbours:
    """How much of the machine other processes used since this object was made; those of this one excluded."""

    def __init__(self) -> None:
        self._started, self._others = time.perf_counter(), _others_seconds()

    def processors(self) -> float:
        """Processors that they kept busy, on average; what a host took from a virtual machine counts too.

        To a few hundredths, as clocks of processor time tick; own processes count once they have ended.
        """
        return max(0.0, (_others_seconds() - self._others) / (time.perf_counter() - self._started))


def _others_seconds() -> float:
    machine, own = psutil.cpu_times(), os.times()
    busy = sum(machine[:8]) - machine.idle - getattr(machine, "iowait", 0.0)  # beyond are guests, counted in user
    return busy - (own.user + own.system + own.children_user + own.children_system)


def made_by(script: str, arguments: Sequence[str] | None = None) -> str:
    """Command, date, commit and machine of figures that are being made, as a sentence begins.

    Args:
        script: the benchmark's own ``__file__``.
        arguments: None: those the program was called with; else those to show, where a folder of this machine says
            nothing to others or a part of the call made the figures.
    """
    shown = sys.argv[1:] if arguments is None else arguments
    command = " ".join(["python", f"benchmarks/{Path(script).name}", *shown])
    return (
        f"`{command}` on {_today()}, commit {commit()}, {cpu_model()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}"
    )


def write_profile(name: str, *paragraphs: str) -> None:
    """Prints the paragraphs and writes them to profiles/<name>_<date>.md."""
    text = "\n\n".join(paragraphs) + "\n"
    (ROOT / "profiles" / f"{name}_{_today()}.md").write_text(text)
    print(text)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
