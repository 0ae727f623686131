"""``report.json`` and ``report.md``: what a run measured, with fixed keys, and the same for people."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from cachedlrm import __version__
from cachedlrm.budget import format_bytes
from cachedlrm.config import Options
from cachedlrm.metrics import CacheCounters, MetricsRow

_COURSE_ROWS = 20


@dataclass(frozen=True)
class RunTotals:
    """A finished run's figures; the keys of ``report.json`` say what they mean (see `build_report`)."""

    options: Options
    steps: int
    samples: int
    samples_per_s: float
    training_s: float
    loss_last: float | None
    loss_mean: float | None
    auc: float | None
    losses: list[float] | None
    table_rows: int
    cache_slots: int
    temporary_slots: int
    record_bytes: int
    counters: CacheCounters
    device_name: str
    threads: int
    device_peak_bytes: int
    device_limit_bytes: int
    device_bytes_breakdown: dict[str, int]
    host_peak_bytes: int
    host_store_bytes: int
    mapped_peak_bytes: int
    phase_ms: dict[str, float]


def build_report(totals: RunTotals, arguments: Sequence[str]) -> dict[str, object]:
    """The object of ``report.json``.

    ``samples_per_s`` is the rate after the first 5 % of the steps, without setup and evaluation; ``hit_ratio`` is over
    lookups, ``unique_hit_ratio`` over working-set rows; ``device_peak_bytes`` is measured on CUDA and accounted on the
    CPU; ``host_peak_bytes`` is anonymous memory (rss - shared), ``mapped_peak_bytes`` mapped pages; ``phase_ms`` are
    means per step, those of plan, evict and admit spent by the prefetch thread when there is one.

    Args:
        totals: the run.
        arguments: its command line.
    """
    counters = totals.counters
    report: dict[str, object] = {
        "steps": totals.steps,
        "samples": totals.samples,
        "samples_per_s": totals.samples_per_s,
        "training_s": totals.training_s,
        "loss_last": totals.loss_last,
        "loss_mean": totals.loss_mean,
        "auc": totals.auc,
        "table_rows": totals.table_rows,
        "cache_slots": totals.cache_slots,
        "temporary_slots": totals.temporary_slots,
        "record_bytes": totals.record_bytes,
        "lookups": counters.lookups,
        "hit_ratio": counters.hit_ratio,
        "working_set_rows": counters.working_set_rows,
        "unique_hit_ratio": counters.unique_hit_ratio,
        "first_touch_rows": counters.first_touch_rows,
        "fetched_rows": counters.fetched_rows,
        "evicted_rows": counters.evicted_rows,
        "written_back_rows": counters.written_back_rows,
        "moved_rows_min": None,
        "device_peak_bytes": totals.device_peak_bytes,
        "device_limit_bytes": totals.device_limit_bytes,
        "device_bytes_breakdown": totals.device_bytes_breakdown,
        "host_peak_bytes": totals.host_peak_bytes,
        "host_store_bytes": totals.host_store_bytes,
        "mapped_peak_bytes": totals.mapped_peak_bytes,
        "phase_ms": totals.phase_ms,
        "environment": _environment(totals, arguments),
    }
    if totals.losses is not None:
        report["losses"] = totals.losses
    return report


def _environment(totals: RunTotals, arguments: Sequence[str]) -> dict[str, object]:
    """What is needed to repeat the run elsewhere."""
    return {
        "command": " ".join(["python -m cachedlrm.train", *arguments]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cachedlrm": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": totals.device_name,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": totals.threads,
    }


def _commit() -> str | None:
    """Commit of the checkout the package lies in, marked if files differ from it; None outside one."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report_markdown(totals: RunTotals, report: Mapping[str, object], rows: Sequence[MetricsRow], config: str) -> str:
    """``report.md``.

    Args:
        totals: the run.
        report: its ``report.json``.
        rows: its ``metrics.jsonl``.
        config: its ``config.toml``.
    """
    environment = report["environment"]
    assert isinstance(environment, dict)
    sections = [
        "# Training report",
        _summary(totals),
        "## Cache traffic\n\n" + _traffic(totals),
        "## Memory\n\n" + _memory(totals),
        "## Where a step's time goes\n\n" + _phases(totals),
        "## Course of the run\n\n" + _course(rows),
        "## To repeat it\n\n" + _table(("", ""), [(key, str(value)) for key, value in environment.items()]),
        f"```toml\n{config.strip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(totals: RunTotals) -> str:
    counters, share = totals.counters, totals.cache_slots / totals.table_rows
    if not totals.steps:
        return "No step was trained: the model was built and initialised."
    learned = "" if totals.auc is None else f", and ranks held-out samples with an AUC of {totals.auc:.4f}"
    moved = (counters.fetched_rows + counters.written_back_rows) * totals.record_bytes
    return (
        f"The model was trained on {totals.samples:,} samples in {totals.steps:,} steps at {totals.samples_per_s:,.0f} "
        f"samples/s{learned}. Its tables have {totals.table_rows:,} rows; the device kept at most "
        f"{totals.cache_slots:,} of them ({share:.2%}), and {counters.hit_ratio:.1%} of lookups found their row there. "
        f"{format_bytes(moved)} of rows moved between device and store, {format_bytes(moved // totals.steps)} a step, "
        f"and training waited {totals.phase_ms['wait']:.2f} ms a step for rows. Results do not depend on the cache: an "
        "uncached run gives the same bits."
    )


def _traffic(totals: RunTotals) -> str:
    counters, steps = totals.counters, max(1, totals.steps)
    counts = {
        "lookups": counters.lookups,
        "of these on rows resident when planned": counters.hit_lookups,
        "working-set rows": counters.working_set_rows,
        "of these resident when planned": counters.resident_rows,
        "first touches (created, not fetched)": counters.first_touch_rows,
        "rows fetched from the store": counters.fetched_rows,
        "rows evicted": counters.evicted_rows,
        "rows written back": counters.written_back_rows,
    }
    return _table(("", "run", "per step"), [(name, f"{n:,}", f"{n / steps:,.1f}") for name, n in counts.items()])


def _memory(totals: RunTotals) -> str:
    device = [
        (f"device: {name.replace('_', ' ')}", format_bytes(n)) for name, n in totals.device_bytes_breakdown.items()
    ]
    tables = totals.table_rows * totals.record_bytes
    return _table(
        ("", ""),
        [
            ("all tables with optimizer state", format_bytes(tables)),
            *device,
            ("device: peak", format_bytes(totals.device_peak_bytes)),
            ("device: budget or free memory", format_bytes(totals.device_limit_bytes)),
            ("host: records in the store", format_bytes(totals.host_store_bytes)),
            ("host: peak of anonymous memory", format_bytes(totals.host_peak_bytes)),
            ("host: peak of mapped pages", format_bytes(totals.mapped_peak_bytes)),
        ],
    )


def _phases(totals: RunTotals) -> str:
    total = sum(totals.phase_ms.values()) or 1.0
    rows = [
        (phase, f"{value:.3f}", f"{value / total:.1%}", "█" * round(40 * value / total))
        for phase, value in totals.phase_ms.items()
    ]
    note = "plan, evict and admit run in the prefetch thread, beside the others, unless the prefetch depth is 0."
    return _table(("phase", "ms per step", "share", ""), rows) + f"\n\n{note}"


def _course(rows: Sequence[MetricsRow]) -> str:
    """At most `_COURSE_ROWS` lines of the metrics, evenly spaced, the last among them."""
    if not rows:
        return "No step was trained."
    picked = sorted({round(i * (len(rows) - 1) / (_COURSE_ROWS - 1)) for i in range(_COURSE_ROWS)})
    keys = ("step", "loss", "auc", "hit_ratio", "samples_per_s", "fetched_rows", "written_back_rows", "wait_ms")
    return _table(keys, [tuple(_cell(rows[index][key]) for key in keys) for index in picked])


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.4f}" if isinstance(value, float) and abs(value) < 100 else f"{value:,.0f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = "|".join(["---", *["---:"] * (len(header) - 1)])
    lines = [f"| {' | '.join(header)} |", f"|{align}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
