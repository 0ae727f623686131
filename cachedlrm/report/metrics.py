"""A run at one moment, and a line of ``metrics.jsonl``."""

import json
from dataclasses import dataclass

from cachedlrm.base.units import finite
from cachedlrm.cache.counters import PHASES, PREPARING_PHASES, CacheCounters
from cachedlrm.report.scores import SCORES, Evaluated


def waiting_phases(prefetch_depth: int | None) -> tuple[str, ...]:
    """Phases in which the training thread lacks rows: it waits, or prepares them itself."""
    return ("wait",) if prefetch_depth != 0 else ("wait", *PREPARING_PHASES)


MetricsRow = dict[str, float | int | None]


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment: everything that a display or a line of metrics needs. Recent means since the last snapshot.

    Attributes:
        step: steps trained.
        num_steps: steps of the run.
        epoch: from 0.
        samples: samples trained.
        elapsed_s: seconds of training, evaluation and setup excluded.
        samples_per_s: recent.
        eta_s: seconds of training left at the recent rate.
        loss: recent mean.
        learning_rate, dense_learning_rate: of rows and of layers, at the last step.
        evaluation: the last one; None before the first.
        best: the best one by ``--monitor``.
        cache: counters of the whole run.
        recent: recent counters.
        recent_steps: steps since the last snapshot.
        phase_ms: recent mean per step, by phase.
        device_bytes: the most in use so far, measured on CUDA; on the CPU what the tensors of a step add up to.
        device_limit_bytes: the budget, or the memory that was free at the start.
        host_bytes: anonymous resident memory of the process now.
        host_limit_bytes: ``--host-budget``, or the memory that was free at the start: the most that records may take.
        mapped_bytes: mapped pages in memory now.
        cache_slots: rows the cache may keep.
        resident_slots: rows it keeps.
        host_records: records in the host store; None if they are not counted.
        host_record_bytes: bytes of those records.
        temporary_slots: beyond ``cache_slots``, for a batch that needs more rows.
        disk_bytes: size of the store's file; None without one.
        disk_limit_bytes: that size and the space still free on its disk.
        prefetch_depth: batches prepared ahead; 0: the training thread prepares each itself.
    """

    step: int
    num_steps: int
    epoch: int
    samples: int
    elapsed_s: float
    samples_per_s: float
    eta_s: float
    loss: float
    evaluation: Evaluated | None
    best: Evaluated | None
    cache: CacheCounters
    recent: CacheCounters
    recent_steps: int
    phase_ms: dict[str, float]
    device_bytes: int
    device_limit_bytes: int
    host_bytes: int
    host_limit_bytes: int
    mapped_bytes: int
    cache_slots: int
    resident_slots: int
    host_records: int | None = None
    host_record_bytes: int = 0
    temporary_slots: int = 0
    disk_bytes: int | None = None
    disk_limit_bytes: int | None = None
    prefetch_depth: int | None = None
    learning_rate: float | None = None
    dense_learning_rate: float | None = None

    @property
    def evaluation_here(self) -> Evaluated | None:
        """The evaluation after the last step of this snapshot, if there was one."""
        return self.evaluation if self.evaluation is not None and self.evaluation.step == self.step else None

    @property
    def own_phases(self) -> tuple[str, ...]:
        """Phases of the training thread; those of the prefetch thread come on top."""
        beside = set(PREPARING_PHASES) - set(waiting_phases(self.prefetch_depth))
        return tuple(phase for phase in PHASES if phase not in beside)

    @property
    def waited_share(self) -> float:
        """Recent share of the training thread's time that it waited for rows."""
        waiting = waiting_phases(self.prefetch_depth)
        spent = sum(self.phase_ms.get(phase, 0.0) for phase in self.own_phases)
        return sum(self.phase_ms.get(phase, 0.0) for phase in waiting) / spent if spent > 0 else 0.0


def evaluation_values(evaluation: Evaluated | None) -> MetricsRow:
    """What a line of ``metrics.jsonl`` has of an evaluation after its step; null without one, and no ``gauc``."""
    values = {name: None if evaluation is None else finite(getattr(evaluation, name)) for name in SCORES}
    return {name: value for name, value in values.items() if name != "gauc" or value is not None}


def metrics_row(snapshot: Snapshot) -> MetricsRow:
    """One line of ``metrics.jsonl``. Counters and milliseconds are recent ones, ``*_total`` those of the run."""
    recent = snapshot.recent
    row: MetricsRow = {
        "step": snapshot.step,
        "epoch": snapshot.epoch,
        "samples": snapshot.samples,
        "elapsed_s": round(snapshot.elapsed_s, 3),
        "loss": snapshot.loss,
        "learning_rate": snapshot.learning_rate,
        "dense_learning_rate": snapshot.dense_learning_rate,
        **evaluation_values(snapshot.evaluation_here),
        "samples_per_s": round(snapshot.samples_per_s, 1),
        **recent.as_json(),
        "hit_ratio_total": snapshot.cache.hit_ratio,
        **{f"{phase}_ms": round(milliseconds, 4) for phase, milliseconds in snapshot.phase_ms.items()},
        "device_bytes": snapshot.device_bytes,
        "host_bytes": snapshot.host_bytes,
        "mapped_bytes": snapshot.mapped_bytes,
        "disk_bytes": snapshot.disk_bytes,
        "resident_slots": snapshot.resident_slots,
    }
    return {key: finite(value) for key, value in row.items()}


def parse_metrics_row(line: bytes) -> MetricsRow:
    """A line of ``metrics.jsonl``.

    Raises:
        ValueError: it is not one.
    """
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("it has no step")
    for key, value in row.items():
        if value is not None and (type(value) not in (int, float) or not abs(value) < 1 << 63):  # NaN is not, either
            raise ValueError(f"its {key} is no number")
    return row
