"""``report.json``: what a run measured, with fixed keys."""

import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch

from cachedlrm import __version__
from cachedlrm.base.text import as_utf8
from cachedlrm.base.units import finite
from cachedlrm.cache.counters import CacheCounters, TableCounters
from cachedlrm.options.architecture import Architecture
from cachedlrm.options.resolved import Resolved
from cachedlrm.plan.prediction import Prediction
from cachedlrm.report.environment import commit, cpu_model
from cachedlrm.report.inference_report import InferenceReport


@dataclass(frozen=True)
class RunTotals:
    """A finished run's figures; the keys of ``report.json`` say what they mean (see `build_report`)."""

    options: Resolved
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
    tables: tuple[TableCounters, ...]
    device_name: str
    threads: int
    device_peak_bytes: int
    device_limit_bytes: int
    device_bytes_breakdown: dict[str, int]
    host_peak_bytes: int
    host_limit_bytes: int
    host_store_bytes: int
    mapped_peak_bytes: int
    phase_ms: dict[str, float]
    accuracy: float | None = None
    inference: InferenceReport | None = None
    prediction: Prediction | None = None


def by_table(architecture: Architecture, counts: Sequence[Sequence[int]]) -> tuple[TableCounters, ...]:
    """The tables of all features, in the order of the features.

    Args:
        architecture: of the model.
        counts: the `TABLE_COUNTS` of each table, group after group.
    """
    names = [table.name for group in architecture.groups for table in group]
    counts_of = dict(zip(names, counts, strict=True))
    return tuple(
        TableCounters(table.name.removesuffix(".weight"), table.num_rows, *counts_of[table.name])
        for embedding in architecture.embeddings
        for table in embedding.tables
    )


def build_report(totals: RunTotals, arguments: Sequence[str]) -> dict[str, object]:
    """The object of ``report.json``.

    ``samples_per_s`` is the rate after the first 5 % of the steps, without setup and evaluation; ``hit_ratio`` is over
    lookups, ``unique_hit_ratio`` over working-set rows; ``device_peak_bytes`` is measured on CUDA and accounted on the
    CPU; ``host_peak_bytes`` is anonymous memory (rss - shared), ``mapped_peak_bytes`` mapped pages; ``phase_ms`` are
    means per step, those of plan, evict and admit spent by the prefetch thread when there is one; ``tables`` are the
    same counters table by table, a ``hit_ratio`` there null without lookups.

    Args:
        totals: the run.
        arguments: its command line.
    """
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
        **totals.counters.as_json(),
        "moved_rows_min": _moved_rows_min(totals),
        "device_peak_bytes": totals.device_peak_bytes,
        "device_limit_bytes": totals.device_limit_bytes,
        "device_bytes_breakdown": totals.device_bytes_breakdown,
        "host_peak_bytes": totals.host_peak_bytes,
        "host_limit_bytes": totals.host_limit_bytes,
        "host_store_bytes": totals.host_store_bytes,
        "mapped_peak_bytes": totals.mapped_peak_bytes,
        "phase_ms": totals.phase_ms,
        "prediction": totals.prediction.as_json() if totals.prediction is not None else None,
        "miss_ratio_curve": totals.prediction.curve_as_json() if totals.prediction is not None else None,
        "tables": [_table(table) for table in totals.tables],
        "environment": _environment(totals, arguments),
    }
    if totals.losses is not None:
        report["losses"] = [finite(loss) for loss in totals.losses]
    if totals.inference is not None:
        report["inference"] = totals.inference.as_json()
    return report


def _moved_rows_min(totals: RunTotals) -> int | None:
    """None where MIN was not counted, or not from the beginning on: a run may be resumed with ``--report-min``."""
    counters = totals.counters
    was_counted = totals.options.cache.report_min and (counters.moved_rows_min or not counters.moved_rows)
    return counters.moved_rows_min if was_counted else None


def _table(table: TableCounters) -> dict[str, object]:
    return {
        "name": table.name,
        "rows": table.rows,
        "lookups": table.lookups,
        "hit_ratio": table.hit_ratio,
        "working_set_rows": table.working_set_rows,
        "touched_rows": table.touched_rows,
    }


def _environment(totals: RunTotals, arguments: Sequence[str]) -> dict[str, object]:
    """What is needed to repeat the run elsewhere."""
    return {
        "command": " ".join(["python -m cachedlrm.train", *(shlex.quote(as_utf8(text)) for text in arguments)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
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
