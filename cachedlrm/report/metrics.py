"""What a run counts and measures: one definition each."""

import json
import math
import operator
from dataclasses import dataclass, fields
from typing import NamedTuple

PHASES = ("plan", "wait", "evict", "admit", "forward", "backward", "dense_step", "row_step")

PREPARING_PHASES = ("plan", "evict", "admit")
"""Those that make a batch's rows ready; a prefetch thread spends them beside the others."""

TABLE_COUNTS = ("lookups", "hit_lookups", "working_set_rows", "first_touch_rows")
"""What is also counted table by table: columns of the arrays [tables, 4] int64, named as in `CacheCounters`."""


def waiting_phases(prefetch_depth: int | None) -> tuple[str, ...]:
    """Phases in which the training thread does not train for want of rows; where it prepares them itself, those too."""
    return ("wait",) if prefetch_depth != 0 else ("wait", *PREPARING_PHASES)


MetricsRow = dict[str, float | int | None]


class Span(NamedTuple):
    """A piece of a thread's work.

    Attributes:
        name: a phase, or ``read`` for reading samples.
        start: seconds, of `time.perf_counter`.
        end: the same.
    """

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class CacheCounters:
    """The cache's work, over one batch or summed over many.

    Attributes:
        lookups: lookups in all bags.
        hit_lookups: lookups whose row was resident when the batch's plan was made; first touches are misses, and so is
            every further lookup of a missing row in the same batch.
        working_set_rows: unique rows of each batch.
        resident_rows: those of them that were resident when the plan was made.
        first_touch_rows: rows created by init.
        fetched_rows: rows read from a lower tier.
        evicted_rows: rows that left the device.
        written_back_rows: rows copied down; every trained row is dirty, so as many as were evicted.
        fetched_bytes: bytes of the fetched rows' records.
        written_back_bytes: bytes of the written-back rows' records.
        moved_rows_min: what `moved_rows` would be under Belady's MIN with all rows of a batch resident together, on the
            stream up to here; 0 where nobody asked.
    """

    lookups: int = 0
    hit_lookups: int = 0
    working_set_rows: int = 0
    resident_rows: int = 0
    first_touch_rows: int = 0
    fetched_rows: int = 0
    evicted_rows: int = 0
    written_back_rows: int = 0
    fetched_bytes: int = 0
    written_back_bytes: int = 0
    moved_rows_min: int = 0

    def __add__(self, other: "CacheCounters") -> "CacheCounters":
        return CacheCounters(*map(operator.add, _values(self), _values(other)))

    def __sub__(self, other: "CacheCounters") -> "CacheCounters":
        return CacheCounters(*map(operator.sub, _values(self), _values(other)))

    def as_json(self) -> dict[str, float | int]:
        """What ``report.json`` and ``cachedlrm.simulate`` say of them, by key."""
        return {
            "lookups": self.lookups,
            "hit_ratio": self.hit_ratio,
            "working_set_rows": self.working_set_rows,
            "unique_hit_ratio": self.unique_hit_ratio,
            "first_touch_rows": self.first_touch_rows,
            "fetched_rows": self.fetched_rows,
            "evicted_rows": self.evicted_rows,
            "written_back_rows": self.written_back_rows,
            "fetched_bytes": self.fetched_bytes,
            "written_back_bytes": self.written_back_bytes,
        }

    @property
    def moved_rows(self) -> int:
        """Rows brought in, created or fetched."""
        return self.first_touch_rows + self.fetched_rows

    @property
    def moved_of_min(self) -> float | None:
        """Rows brought in for each that MIN brings in; None where nobody asked."""
        return self.moved_rows / self.moved_rows_min if self.moved_rows_min else None

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that hit; 0 without lookups."""
        return self.hit_lookups / self.lookups if self.lookups else 0.0

    @property
    def unique_hit_ratio(self) -> float:
        """Share of working-set rows that were resident; 0 without any."""
        return self.resident_rows / self.working_set_rows if self.working_set_rows else 0.0


_values = operator.attrgetter(*(field.name for field in fields(CacheCounters)))  # twice a step: not by reflection


def with_bytes(counters: CacheCounters, record_bytes: int) -> CacheCounters:
    """Counters of rows with records of one size, and their bytes."""
    return counters + CacheCounters(
        fetched_bytes=counters.fetched_rows * record_bytes,
        written_back_bytes=counters.written_back_rows * record_bytes,
    )


@dataclass(frozen=True)
class TableCounters:
    """The cache's work for one table, over a run.

    Attributes:
        name: in the reference's state dict, without ``.weight``.
        rows: rows of the table.
        lookups, hit_lookups, working_set_rows: see `CacheCounters`.
        touched_rows: rows that were brought in at least once; their first touches.
    """

    name: str
    rows: int
    lookups: int
    hit_lookups: int
    working_set_rows: int
    touched_rows: int

    @property
    def hit_ratio(self) -> float | None:
        """Share of lookups that hit; None without lookups."""
        return self.hit_lookups / self.lookups if self.lookups else None

    @property
    def missed_lookups(self) -> int:
        """Lookups that did not hit."""
        return self.lookups - self.hit_lookups


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment: all that a display or a line of metrics needs. "Recent" is since the last snapshot.

    Attributes:
        step: steps trained.
        num_steps: steps of the run.
        epoch: from 0.
        samples: samples trained.
        elapsed_s: seconds of training, evaluation and setup excluded.
        samples_per_s: recent.
        eta_s: seconds of training left at the recent rate.
        loss: recent mean.
        auc: of the last evaluation; None before the first, and where held-out labels are not 0 and 1, both.
        cache: counters of the run.
        recent: recent counters.
        recent_steps: steps since the last snapshot.
        phase_ms: recent mean per step, by phase.
        device_bytes: the most in use so far, measured on CUDA; on the CPU what a step is accounted for.
        device_limit_bytes: the budget, or the memory that was free at the start.
        host_bytes: anonymous resident memory of the process now.
        host_limit_bytes: ``--host-budget``, or the memory that was free at the start: the most that records may take.
        mapped_bytes: mapped pages in memory now.
        cache_slots: rows the cache may keep.
        resident_slots: rows it keeps.
        host_records: records in the host store; None where nobody counted them.
        host_record_bytes: theirs.
        temporary_slots: beyond ``cache_slots``, for a batch that needs more rows.
        evaluated: whether there has been an evaluation.
        disk_bytes: of the store's file; None without one.
        disk_limit_bytes: those and what is free beside it.
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
    auc: float | None
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
    evaluated: bool = False
    disk_bytes: int | None = None
    disk_limit_bytes: int | None = None
    prefetch_depth: int | None = None

    @property
    def own_phases(self) -> tuple[str, ...]:
        """Phases of the training thread; what the prefetch thread does comes on top."""
        beside = set(PREPARING_PHASES) - set(waiting_phases(self.prefetch_depth))
        return tuple(phase for phase in PHASES if phase not in beside)

    @property
    def waited_share(self) -> float:
        """Recent share of waiting for rows in what the training thread did."""
        waiting = waiting_phases(self.prefetch_depth)
        spent = sum(self.phase_ms.get(phase, 0.0) for phase in self.own_phases)
        return sum(self.phase_ms.get(phase, 0.0) for phase in waiting) / spent if spent > 0 else 0.0


def finite(value: float | None) -> float | None:
    """The value, or None for NaN and infinities, for which JSON has no number."""
    return value if value is not None and math.isfinite(value) else None


def metrics_row(snapshot: Snapshot) -> MetricsRow:
    """One line of ``metrics.jsonl``. Counters and milliseconds are recent ones, ``*_total`` those of the run."""
    recent = snapshot.recent
    row: MetricsRow = {
        "step": snapshot.step,
        "epoch": snapshot.epoch,
        "samples": snapshot.samples,
        "elapsed_s": round(snapshot.elapsed_s, 3),
        "loss": snapshot.loss,
        "auc": snapshot.auc,
        "samples_per_s": round(snapshot.samples_per_s, 1),
        "hit_ratio": recent.hit_ratio,
        "unique_hit_ratio": recent.unique_hit_ratio,
        "hit_ratio_total": snapshot.cache.hit_ratio,
        "lookups": recent.lookups,
        "working_set_rows": recent.working_set_rows,
        "first_touch_rows": recent.first_touch_rows,
        "fetched_rows": recent.fetched_rows,
        "evicted_rows": recent.evicted_rows,
        "written_back_rows": recent.written_back_rows,
        "fetched_bytes": recent.fetched_bytes,
        "written_back_bytes": recent.written_back_bytes,
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
        ValueError: it is none.
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
