"""The counts and measurements of a run so far, as a checkpoint keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from cachedlrm.base.errors import UserError
from cachedlrm.cache.counters import PHASES, TABLE_COUNTS, CacheCounters
from cachedlrm.report.record import Count
from cachedlrm.report.scores import CalibrationBin, Evaluated

Seconds = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(kw_only=True)
class Tally:
    """The counts of a run so far: a resumed run reports the whole run.

    Attributes:
        steps, samples: trained.
        counters: of the cache.
        table_counts: [tables, 4], the `TABLE_COUNTS` of each table, group after group.
        losses: of every step; kept with ``--print-freq 1`` only.
        loss_sum, last_loss: up to the last snapshot.
        recent_loss: mean over the steps between the last two snapshots.
        label_sum: of all samples trained; None if an earlier version trained a part of them.
        pending_losses: since then.
        evaluations: all of them, by step.
        calibration_bins: of the last evaluation.
        best_calibration_bins: of the best one.
        phase_totals: milliseconds by phase, up to the last snapshot.
        seconds: of training, without evaluation.
        warm: samples and seconds when the warm-up ended; None before.
        counters_at_snapshot, samples_at_snapshot, seconds_at_snapshot, steps_at_snapshot: what they were at the last
            snapshot.
    """

    steps: Count
    samples: Count
    counters: CacheCounters
    table_counts: list[list[Count]]
    losses: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    last_loss: float | None = None
    recent_loss: float | None = None
    label_sum: float | None = 0.0
    pending_losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    calibration_bins: list[CalibrationBin] = field(default_factory=list)
    best_calibration_bins: list[CalibrationBin] = field(default_factory=list)
    phase_totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    seconds: Seconds = 0.0
    warm: tuple[Count, Seconds] | None = None
    counters_at_snapshot: CacheCounters = field(default_factory=CacheCounters)
    samples_at_snapshot: Count = 0
    seconds_at_snapshot: Seconds = 0.0
    steps_at_snapshot: Count = 0

    @property
    def evaluation(self) -> Evaluated | None:
        """The last one."""
        return self.evaluations[-1] if self.evaluations else None


def read_tally(saved: Mapping[str, Any], num_tables: int) -> Tally:
    """The `Tally` that a checkpoint keeps; a new one if it keeps none.

    Args:
        saved: as JSON has it.
        num_tables: of the run.

    Raises:
        UserError: it does not read.
    """
    if not saved:
        nothing = [[0] * len(TABLE_COUNTS) for _ in range(num_tables)]
        return Tally(steps=0, samples=0, counters=CacheCounters(), table_counts=nothing)
    try:
        tally = msgspec.convert({**saved, **_of_before(saved)}, Tally)
        if [len(counts) for counts in tally.table_counts] != [len(TABLE_COUNTS)] * num_tables:
            raise ValueError(f"table_counts are not those of {num_tables} tables")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the checkpoint's progress does not read: {error}; start the run again") from error
    if tally.warm is not None:  # the rate of this process alone: another may have had another machine
        tally.warm = (tally.samples, tally.seconds)
    return tally


def _of_before(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Present values for those of the version that kept the last evaluation alone."""
    if "evaluations" in saved:
        return {}
    recorded = saved["steps"] - len(saved["pending_losses"])
    values: dict[str, Any] = {"label_sum": None, "steps_at_snapshot": recorded}
    if saved.get("evaluated_at") is not None:
        evaluation = {"step": saved["evaluated_at"], "auc": saved.get("auc"), "accuracy": saved.get("accuracy")}
        values["evaluations"] = [evaluation]
    return values
