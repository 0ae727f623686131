"""``report.json`` and ``report.md``: what a run measured, with fixed keys, and the same for people."""

import os
import platform
import shlex
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
from cachedlrm.inference_report import InferenceReport
from cachedlrm.live_view import format_seconds, sparkline
from cachedlrm.metrics import PREPARING_PHASES, CacheCounters, MetricsRow, finite
from cachedlrm.prediction import Prediction
from cachedlrm.text import as_utf8

_COURSE_ROWS = 20
_CURVE_WIDTH = 80
_COURSE = {
    "step": ("step", ","),
    "loss": ("loss", ".5f"),
    "auc": ("AUC", ".4f"),
    "hit_ratio": ("hit ratio", ".2%"),
    "samples_per_s": ("samples/s", ",.0f"),
    "fetched_rows": ("rows fetched", ","),
    "written_back_rows": ("rows written back", ","),
    "wait_ms": ("wait, ms a step", ".2f"),
}
"""Columns of the course: keys of a line of metrics, their titles and formats."""


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
    table_bytes: int
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
    accuracy: float | None = None
    inference: InferenceReport | None = None
    prediction: Prediction | None = None


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
        "samples_per_s": finite(totals.samples_per_s),
        "training_s": totals.training_s,
        "loss_last": finite(totals.loss_last),
        "loss_mean": finite(totals.loss_mean),
        "auc": finite(totals.auc),
        "accuracy": finite(totals.accuracy),
        "table_rows": totals.table_rows,
        "cache_slots": totals.cache_slots,
        "temporary_slots": totals.temporary_slots,
        "record_bytes": totals.record_bytes,
        "table_bytes": totals.table_bytes,
        "lookups": counters.lookups,
        "hit_ratio": counters.hit_ratio,
        "working_set_rows": counters.working_set_rows,
        "unique_hit_ratio": counters.unique_hit_ratio,
        "first_touch_rows": counters.first_touch_rows,
        "fetched_rows": counters.fetched_rows,
        "evicted_rows": counters.evicted_rows,
        "written_back_rows": counters.written_back_rows,
        "fetched_bytes": counters.fetched_bytes,
        "written_back_bytes": counters.written_back_bytes,
        "moved_rows_min": counters.moved_rows_min if totals.options.cache.report_min else None,
        "device_peak_bytes": totals.device_peak_bytes,
        "device_limit_bytes": totals.device_limit_bytes,
        "device_bytes_breakdown": totals.device_bytes_breakdown,
        "host_peak_bytes": totals.host_peak_bytes,
        "host_store_bytes": totals.host_store_bytes,
        "mapped_peak_bytes": totals.mapped_peak_bytes,
        "phase_ms": totals.phase_ms,
        "prediction": totals.prediction.as_json() if totals.prediction is not None else None,
        "miss_ratio_curve": totals.prediction.curve_as_json() if totals.prediction is not None else None,
        "environment": _environment(totals, arguments),
    }
    if totals.losses is not None:
        report["losses"] = [finite(loss) for loss in totals.losses]
    if totals.inference is not None:
        report["inference"] = totals.inference.as_json()
    return report


def _environment(totals: RunTotals, arguments: Sequence[str]) -> dict[str, object]:
    """What is needed to repeat the run elsewhere."""
    return {
        "command": " ".join(["python -m cachedlrm.train", *(shlex.quote(as_utf8(text)) for text in arguments)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cachedlrm": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": totals.device_name,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": totals.threads,
    }


def _commit() -> str | None:
    """Commit of the checkout the package lies in, marked if files differ from it; None outside one.

    A package installed into somebody's project lies in that project's checkout without being part of it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    # Without optional locks a run never gets in the way of the user's own git commands.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    described = ""
    try:
        for command in (
            ["ls-files", "--error-unmatch", Path(__file__).name],
            ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        ):
            done = subprocess.run(
                [*git, *command], capture_output=True, text=True, timeout=5, check=True, env=environment
            )
            described = done.stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return described


def cpu_model() -> str:
    """What the processor calls itself; on Linux from ``/proc/cpuinfo``."""
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
    if totals.inference is not None:
        header, *lines = totals.inference.rows()
        sections = ["# Inference report", _table(header, lines)]
    else:
        sections = [
            "# Training report",
            _summary(totals),
            "## Result\n\n" + _result(totals),
            "## Cache traffic\n\n" + _traffic(totals),
            *(["## Prediction and measurement\n\n" + _prediction(totals)] if totals.prediction is not None else []),
            "## Memory\n\n" + _memory(totals),
            "## Where a step's time goes\n\n" + _phases(totals),
            "## Course of the run\n\n" + _course(rows),
        ]
    sections += [
        "## To repeat it\n\n" + _table(("", ""), [(key, _escaped(value)) for key, value in environment.items()]),
        f"```toml\n{config.strip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _summary(totals: RunTotals) -> str:
    counters, share = totals.counters, totals.cache_slots / totals.table_rows
    if not totals.steps:
        return "No step was trained: the model was built and initialised."
    learned = "" if totals.auc is None else f", and ranks held-out samples with an AUC of {totals.auc:.4f}"
    temporary = ""
    if totals.temporary_slots:
        temporary = f", and up to {totals.temporary_slots:,} more while a batch needed them"
    moved = counters.fetched_bytes + counters.written_back_bytes
    return (
        f"The model was trained on {totals.samples:,} samples in {totals.steps:,} steps at {totals.samples_per_s:,.0f} "
        f"samples/s{learned}. Its tables have {totals.table_rows:,} rows; the device kept at most "
        f"{totals.cache_slots:,} of them ({share:.2%}){temporary}, and {counters.hit_ratio:.1%} of lookups found their "
        f"row there. {format_bytes(moved)} of rows moved between device and store, "
        f"{format_bytes(moved // totals.steps)} a step, and training waited {totals.phase_ms['wait']:.2f} ms a step "
        "for rows. Results do not depend on the cache: an uncached run gives the same bits."
    )


def _result(totals: RunTotals) -> str:
    rows = {
        "steps": f"{totals.steps:,}",
        "samples": f"{totals.samples:,}",
        "training time, without setup and evaluation": format_seconds(totals.training_s),
        "samples per second, after the first 5 % of the steps": f"{totals.samples_per_s:,.0f}",
        "loss, mean over the run": _number(totals.loss_mean, ".5f"),
        "loss of the last step": _number(totals.loss_last, ".5f"),
        "AUC on held-out samples": _number(totals.auc, ".4f"),
        "hit ratio over lookups": f"{totals.counters.hit_ratio:.2%}",
        "hit ratio over working-set rows": f"{totals.counters.unique_hit_ratio:.2%}",
    }
    if (of_min := totals.counters.moved_of_min) is not None:
        rows["rows brought in, of the fewest possible (Belady's MIN)"] = f"{of_min:.3f}"
    return _table(("", ""), list(rows.items()))


def _traffic(totals: RunTotals) -> str:
    counters, steps = totals.counters, max(1, totals.steps)
    counts = {
        "lookups": counters.lookups,
        "of these on rows resident when planned": counters.hit_lookups,
        "working-set rows": counters.working_set_rows,
        "of these resident when planned": counters.resident_rows,
        "first touches (created, not fetched)": counters.first_touch_rows,
        "rows fetched from the store": counters.fetched_rows,
        "rows brought in, created or fetched": counters.moved_rows,
        **({"the fewest possible (Belady's MIN)": counters.moved_rows_min} if counters.moved_rows_min else {}),
        "rows evicted": counters.evicted_rows,
        "rows written back": counters.written_back_rows,
    }
    return _table(("", "run", "per step"), [(name, f"{n:,}", f"{n / steps:,.1f}") for name, n in counts.items()])


def _prediction(totals: RunTotals) -> str:
    prediction, counters, steps = totals.prediction, totals.counters, max(1, totals.steps)
    assert prediction is not None
    chosen, rate = prediction.chosen, prediction.samples_per_s_at_most
    measured_bytes = (counters.fetched_bytes + counters.written_back_bytes) // steps
    rows = [
        ("hit ratio over lookups", f"{chosen.hit_ratio:.2%}", f"{counters.hit_ratio:.2%}"),
        (
            "rows created a step",
            f"{chosen.per_step(chosen.first_touch_rows):,.1f}",
            f"{counters.first_touch_rows / steps:,.1f}",
        ),
        (
            "rows fetched a step",
            f"{chosen.per_step(chosen.fetched_rows):,.1f}",
            f"{counters.fetched_rows / steps:,.1f}",
        ),
        ("moved a step", format_bytes(int(chosen.moved_bytes_per_step)), format_bytes(measured_bytes)),
        ("samples/s", "-" if rate is None else f"at most {rate:,.0f}", f"{totals.samples_per_s:,.0f}"),
    ]
    note = (
        f"Predicted from the ids of {prediction.sampled_batches:,} of {prediction.num_batches:,} batches; the rate is "
        "what the described hardware bounds, whatever trains on it."
    )
    return _table(("", "predicted", "measured"), rows) + f"\n\n{note}"


def _memory(totals: RunTotals) -> str:
    device = [
        (f"device: {name.replace('_', ' ')}", format_bytes(n)) for name, n in totals.device_bytes_breakdown.items()
    ]
    return _table(
        ("", ""),
        [
            ("all tables with optimizer state", format_bytes(totals.table_bytes)),
            *device,
            ("device: peak", format_bytes(totals.device_peak_bytes)),
            ("device: budget or free memory", format_bytes(totals.device_limit_bytes)),
            ("host: records in the store", format_bytes(totals.host_store_bytes)),
            ("host: peak of anonymous memory", format_bytes(totals.host_peak_bytes)),
            ("host: peak of mapped pages", format_bytes(totals.mapped_peak_bytes)),
        ],
    )


def _phases(totals: RunTotals) -> str:
    """Shares are of the time a step took, so those of another thread come on top of a hundred percent."""
    step_ms = totals.training_s * 1e3 / max(1, totals.steps)
    rows = []
    for phase, milliseconds in totals.phase_ms.items():
        share = milliseconds / step_ms if step_ms > 0 else 0.0
        rows.append((phase.replace("_", " "), f"{milliseconds:.3f}", f"{share:.1%}", "█" * round(40 * min(1.0, share))))
    beside = totals.options.cache.prefetch_depth != 0
    where = "run in the prefetch thread, beside the others" if beside else "run in the training thread, as all others"
    note = f"A step took {step_ms:.3f} ms. {', '.join(PREPARING_PHASES[:-1])} and {PREPARING_PHASES[-1]} {where}."
    return _table(("phase", "ms per step", "share of a step", ""), rows) + f"\n\n{note}"


def _course(rows: Sequence[MetricsRow]) -> str:
    """Curves of the whole run, and at most `_COURSE_ROWS` lines of the metrics, evenly spaced, the last among them."""
    if not rows:
        return "No step was trained."
    picked = sorted({round(i * (len(rows) - 1) / (_COURSE_ROWS - 1)) for i in range(_COURSE_ROWS)})
    table = _table(
        [title for title, _ in _COURSE.values()],
        [[_number(rows[index].get(key), form) for key, (_, form) in _COURSE.items()] for index in picked],
    )
    return "\n".join(["```text", *(_curve(rows, key) for key in ("loss", "auc", "hit_ratio")), "```", "", table])


def _curve(rows: Sequence[MetricsRow], key: str) -> str:
    title, form = _COURSE[key]
    values = [value for row in rows if (value := row.get(key)) is not None]
    if not values:
        return f"{title:<10} no value"
    ends = f"{_number(values[0], form)} to {_number(values[-1], form)}"
    return f"{title:<10} {ends:<20} {sparkline(values, _CURVE_WIDTH)}"


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _escaped(value: object) -> str:
    """A cell of a table keeps its one line and its column."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = "|".join(["---", *["---:"] * (len(header) - 1)])
    lines = [f"| {' | '.join(header)} |", f"|{align}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
