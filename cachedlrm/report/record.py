"""The record of a run: what it measured, as ``report.json`` holds it and every page shows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from cachedlrm.base.text import printable
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.options.architecture import Architecture
from cachedlrm.plan.prediction import PredictedCache, PredictedRun
from cachedlrm.report.scores import CalibrationBin, Evaluated, Scores

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A whole number from 0 on; so reading checks it."""

_UNLESS_ASKED_FOR = ("losses", "inference", "gauc")  # keys that are left out


@dataclass(frozen=True)
class TableReport:
    """The cache's work for one table.

    Attributes:
        name: in the reference's state dict, without ``.weight``.
        user_name: of the column that is looked up in it; None: it has none.
        rows: rows of the table.
        lookups, working_set_rows: see `CacheCounters`.
        hit_ratio: share of lookups that hit; None without lookups.
        touched_rows: rows that were brought in at least once: its first touches.
    """

    name: str
    rows: Count
    lookups: Count
    hit_ratio: float | None
    working_set_rows: Count
    touched_rows: Count
    user_name: str | None = None

    @property
    def title(self) -> str:
        """What people know the table by: ``user`` instead of ``emb_l.0``, ``user.weight_q`` of its quotients."""
        if self.user_name is None:
            return self.name
        return ".".join([printable(self.user_name), *self.name.split(".")[2:]])

    @property
    def missed_lookups(self) -> int:
        """Lookups that did not hit."""
        return self.lookups - round((self.hit_ratio or 0.0) * self.lookups)


@dataclass(frozen=True, kw_only=True)
class ServedModel(Scores):
    """A model and its predictions of the held-out samples, with their `Scores`.

    Attributes:
        loss: mean, of ``--loss-function``; None if it is not finite.
        samples_per_s: rate of predictions, without reading the data.
        embedding_bytes: of the tables, with pooling weights.
        mlp_bytes: of the dense part.
    """

    loss: float | None
    samples_per_s: float
    embedding_bytes: Count
    mlp_bytes: Count


@dataclass(frozen=True)
class InferenceReport:
    """The figures of ``--inference-only``.

    Attributes:
        samples: held out, evaluated.
        quantize_mlp_with_bit: bits of a weight of the MLPs, as served.
        quantize_emb_with_bit: bits of an element of the tables, as served.
        before: the model as loaded or initialised.
        after: quantised; None unless that was asked for.
    """

    samples: Count
    quantize_mlp_with_bit: Count
    quantize_emb_with_bit: Count
    before: ServedModel
    after: ServedModel | None

    @property
    def served(self) -> ServedModel:
        """The model that made the predictions."""
        return self.after or self.before


@dataclass(frozen=True, kw_only=True)
class Report(Scores):
    """A run that ended. The fields are the keys of ``report.json``; those with a default are not in older ones.

    The `Scores` are those of the state that the run left: of its last evaluation, or with ``--keep-best`` of the best.

    Attributes:
        steps, samples: trained.
        samples_per_s: the rate after the first 5 % of the steps, without setup and evaluation.
        training_s: seconds of training, without setup and evaluation.
        loss_last: of the last step.
        loss_mean: over all steps.
        learning_rate, dense_learning_rate: of rows and of layers, at the last step; None without one.
        loss_recent: mean over the steps of the last line of metrics.
        loss_of_mean: that of predicting the mean label for every sample trained; None unless losses are
            cross-entropies.
        evaluated_step: step of the evaluation that the scores are of; None without one.
        best_step: of the best evaluation by ``--monitor``.
        stopped: why the run ended before its last step; None: it did not.
        evaluations: all of them, by step.
        calibration_bins: predicted beside observed, of the evaluation that the scores are of.
        table_rows: of all tables.
        cache_slots: rows the device may keep.
        temporary_slots: beyond those, for a batch that needs more rows.
        record_bytes: of one row's record, of the widest table.
        row_dtype: how weights of rows are kept, ``fp32``, ``bf16`` or ``fp16``.
        table_bytes: of all rows with their optimizer state.
        lookups, working_set_rows: see `CacheCounters`.
        first_touch_rows, fetched_rows, evicted_rows, written_back_rows: the same.
        fetched_bytes, written_back_bytes: the same.
        hit_ratio: share of lookups that hit.
        unique_hit_ratio: share of working-set rows that were resident.
        moved_rows_min: rows that Belady's MIN would bring in; None unless it was counted from the first step on.
        device_peak_bytes: measured on CUDA; on the CPU what the tensors of a step add up to.
        device_limit_bytes: the budget, or the memory that was free at the start.
        device_bytes_breakdown: bytes of a step's tensors, by purpose.
        host_peak_bytes: of the process, anonymous memory (rss - shared).
        host_limit_bytes: the most that records on the host may take.
        host_store_bytes: of records on the host at the end.
        mapped_peak_bytes: of the process's mapped pages.
        phase_ms: mean milliseconds a step, by phase; the prefetch thread, if there is one, spends those of plan, evict
            and admit.
        prediction: what was expected of the run.
        miss_ratio_curve: what was expected of other sizes of the cache.
        tables: the cache's work table by table.
        vocabulary: fingerprint of what the rows stand for; None: not on record.
        environment: see `cachedlrm.report.environment.environment`.
        losses: of each step, with ``--print-freq 1``.
        inference: of a model that was served instead of trained.
    """

    steps: Count
    samples: Count
    samples_per_s: float | None
    training_s: float
    loss_last: float | None
    loss_mean: float | None
    learning_rate: float | None = None
    dense_learning_rate: float | None = None
    loss_recent: float | None = None
    loss_of_mean: float | None = None
    evaluated_step: Count | None = None
    best_step: Count | None = None
    stopped: str | None = None
    evaluations: tuple[Evaluated, ...] = ()
    calibration_bins: tuple[CalibrationBin, ...] = ()
    table_rows: Count
    cache_slots: Count
    temporary_slots: Count
    record_bytes: Count
    row_dtype: str = "fp32"
    table_bytes: Count
    lookups: Count
    hit_ratio: float
    working_set_rows: Count
    unique_hit_ratio: float
    first_touch_rows: Count
    fetched_rows: Count
    evicted_rows: Count
    written_back_rows: Count
    fetched_bytes: Count
    written_back_bytes: Count
    moved_rows_min: Count | None
    device_peak_bytes: Count
    device_limit_bytes: Count
    device_bytes_breakdown: dict[str, Count]
    host_peak_bytes: Count
    host_limit_bytes: Count | None = None
    host_store_bytes: Count
    mapped_peak_bytes: Count
    phase_ms: dict[str, float]
    prediction: PredictedRun | None = None
    miss_ratio_curve: tuple[PredictedCache, ...] | None = None
    tables: tuple[TableReport, ...] = ()
    vocabulary: str | None = None
    environment: dict[str, str | int | None]
    losses: tuple[float | None, ...] | None = None
    inference: InferenceReport | None = None

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation."""
        return next((one for one in self.evaluations if one.step == self.best_step), None)

    @property
    def counters(self) -> CacheCounters:
        """The cache's work."""
        return CacheCounters(
            lookups=self.lookups,
            hit_lookups=round(self.hit_ratio * self.lookups),
            working_set_rows=self.working_set_rows,
            resident_rows=round(self.unique_hit_ratio * self.working_set_rows),
            first_touch_rows=self.first_touch_rows,
            fetched_rows=self.fetched_rows,
            evicted_rows=self.evicted_rows,
            written_back_rows=self.written_back_rows,
            fetched_bytes=self.fetched_bytes,
            written_back_bytes=self.written_back_bytes,
            moved_rows_min=self.moved_rows_min or 0,
        )

    @property
    def step_ms(self) -> float:
        """Milliseconds that a step of training took."""
        return self.training_s * 1e3 / max(1, self.steps)

    @property
    def moved_bytes(self) -> int:
        """Bytes of rows fetched and written back."""
        return self.fetched_bytes + self.written_back_bytes

    @property
    def moved_bytes_per_step(self) -> float:
        """The same, by step."""
        return self.moved_bytes / max(1, self.steps)


def report_values(report: Report) -> dict[str, object]:
    """The object of ``report.json``."""
    values: dict[str, object] = msgspec.to_builtins(report)
    return {key: value for key, value in values.items() if value is not None or key not in _UNLESS_ASKED_FOR}


def report_json(report: Report) -> str:
    """The text of ``report.json``, where NaN and infinities are null."""
    return msgspec.json.format(msgspec.json.encode(report_values(report)), indent=2).decode() + "\n"


def read_report(text: str) -> Report:
    """The inverse, also of reports that an earlier version wrote; keys that it does not know are left out.

    Raises:
        ValueError: it is no report; names the key.
    """
    return msgspec.json.decode(text.encode(), type=Report)


def table_reports(
    architecture: Architecture, counts: Sequence[Sequence[int]], user_names: Sequence[str] | None = None
) -> tuple[TableReport, ...]:
    """The tables of all features, in the order of the features.

    Args:
        architecture: of the model.
        counts: the `cachedlrm.cache.counters.TABLE_COUNTS` of each table, group after group.
        user_names: of the features, if they have any.
    """
    names = [table.name for group in architecture.groups for table in group]
    counts_of = dict(zip(names, counts, strict=True))
    reports = []
    for embedding in architecture.embeddings:
        for table in embedding.tables:
            lookups, hits, working_set_rows, touched_rows = counts_of[table.name]
            name, hit_ratio = table.name.removesuffix(".weight"), hits / lookups if lookups else None
            user_name = None if user_names is None else user_names[embedding.number]
            reports.append(
                TableReport(name, table.num_rows, lookups, hit_ratio, working_set_rows, touched_rows, user_name)
            )
    return tuple(reports)
