"""What a run is, for the display before it trains, and what came of it, for the reports."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cachedlrm.base.units import finite, format_bytes
from cachedlrm.options.torchrec import in_its_words
from cachedlrm.plan.prediction import Prediction
from cachedlrm.report.environment import environment
from cachedlrm.report.live_view import RunHeader
from cachedlrm.report.record import InferenceReport, Report, table_reports
from cachedlrm.report.scores import SCORES, Evaluated
from cachedlrm.run.job import Job
from cachedlrm.run.scoring import entropy_of
from cachedlrm.run.tally import Tally


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `cachedlrm.run.progress.Progress` knows at the end of a run.

    Attributes:
        tally: counted over all processes of the run.
        table_counts: [tables, 4], the `cachedlrm.cache.counters.TABLE_COUNTS` of each table, group after group.
        best: the best evaluation.
        ends_because: why evaluations end the run; None: they do not.
        rates: learning rates of the last step, as the report calls them; empty without one.
        device_peak: bytes.
        host_peak: bytes.
        mapped_peak: bytes.
        prediction: of the run, if it was asked for.
        inference: of a model that was served instead of trained.
    """

    tally: Tally
    table_counts: list[list[int]]
    best: Evaluated | None
    ends_because: str | None
    rates: dict[str, float]
    device_peak: int
    host_peak: int
    mapped_peak: int
    prediction: Prediction | None
    inference: InferenceReport | None


def run_header(job: Job) -> RunHeader:
    """The part of the display that does not change."""
    options = job.options
    rows, slots = job.tiers.device.table_rows, job.tiers.device.quota_slots
    lookahead = f" {options.cache.lookahead}" if options.cache.policy == "lookahead" else ""
    extra = job.tiers.device.num_slots - slots
    kept = "" if options.optimisation.row_dtype == "fp32" else f" in {options.optimisation.row_dtype}"
    cache = (
        f"{slots:,} slots ({slots / rows:.2%})"
        + (f" and {extra:,} temporary ones" if extra else "")
        + f", {options.cache.policy}{lookahead}, {format_bytes(job.tiers.device.total_bytes)} on the device"
    )
    return RunHeader(
        data=options.data.data,
        model=f"{rows:,} rows in {len(job.dataset.train.table_rows)} tables, "
        f"dim {options.model.arch_sparse_feature_size}{kept}, {options.optimisation.names}",
        cache="cache not used: rows are read where they are" if options.inference.inference_only else cache,
        machine=f"{_device_name(job)}, {torch.get_num_threads()} threads, "
        f"prefetch depth {options.cache.prefetch_depth}",
        trains=job.schedule.num_steps > 0,
        evaluates=job.dataset.test is not None and (options.batches.test_freq or 0) > 0,
    )


def _device_name(job: Job) -> str:
    return torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu"


def run_report(job: Job, measured: Measured, arguments: Sequence[str]) -> Report:
    """The record of a run.

    Args:
        job: the run.
        measured: what came of it.
        arguments: its command line.
    """
    tally, counters, device = measured.tally, measured.tally.counters, job.tiers.device
    warm_samples, warm_seconds = tally.warm or (0, 0.0)
    if warm_samples == tally.samples:  # too short a run to leave anything out
        warm_samples, warm_seconds = 0, 0.0
    seconds = tally.seconds - warm_seconds
    ended = measured.ends_because
    keeps_best = job.options.evaluation.keep_best and measured.best is not None
    evaluation, best = (measured.best if keeps_best else tally.evaluation), measured.best
    bins = tally.best_calibration_bins if keeps_best else tally.calibration_bins
    # A run may be resumed with --report-min, and then MIN was not counted from the beginning on.
    min_was_counted = job.options.cache.report_min and (counters.moved_rows_min or not counters.moved_rows)
    return Report(
        steps=tally.steps,
        samples=tally.samples,
        samples_per_s=(tally.samples - warm_samples) / seconds if seconds > 0 else 0.0,
        training_s=tally.seconds,
        loss_last=tally.last_loss,
        loss_mean=tally.loss_sum / tally.steps if tally.steps else None,
        loss_recent=tally.recent_loss,
        loss_of_mean=_loss_of_mean(job, tally),
        **measured.rates,
        **({} if evaluation is None else {name: finite(getattr(evaluation, name)) for name in SCORES}),
        evaluated_step=None if evaluation is None else evaluation.step,
        best_step=None if best is None else best.step,
        stopped=in_its_words(arguments, ended) if ended and tally.steps < job.schedule.num_steps else None,
        evaluations=tuple(tally.evaluations),
        calibration_bins=tuple(bins),
        table_rows=device.table_rows,
        cache_slots=device.quota_slots,
        temporary_slots=device.num_slots - device.quota_slots,
        record_bytes=max(layout.record_bytes for layout in job.architecture.layouts),
        row_dtype=job.options.optimisation.row_dtype,
        table_bytes=job.tiers.table_bytes,
        lookups=counters.lookups,
        hit_ratio=counters.hit_ratio,
        working_set_rows=counters.working_set_rows,
        unique_hit_ratio=counters.unique_hit_ratio,
        first_touch_rows=counters.first_touch_rows,
        fetched_rows=counters.fetched_rows,
        evicted_rows=counters.evicted_rows,
        written_back_rows=counters.written_back_rows,
        fetched_bytes=counters.fetched_bytes,
        written_back_bytes=counters.written_back_bytes,
        moved_rows_min=counters.moved_rows_min if min_was_counted else None,
        device_peak_bytes=measured.device_peak,
        device_limit_bytes=job.tiers.device_limit,
        device_bytes_breakdown=device.breakdown,
        host_peak_bytes=measured.host_peak,
        host_limit_bytes=job.tiers.host.records,
        host_store_bytes=job.trainer.cache.store_bytes,
        mapped_peak_bytes=measured.mapped_peak,
        phase_ms={phase: total / max(1, tally.steps) for phase, total in tally.phase_totals.items()},
        prediction=measured.prediction.of_run if measured.prediction else None,
        miss_ratio_curve=measured.prediction.by_size if measured.prediction else None,
        tables=table_reports(job.architecture, measured.table_counts, job.dataset.table_names),
        vocabulary=job.dataset.vocabulary_fingerprint,
        environment=environment(_device_name(job), arguments),
        losses=tuple(tally.losses) if job.options.batches.print_freq == 1 else None,
        inference=measured.inference,
    )


def _loss_of_mean(job: Job, tally: Tally) -> float | None:
    """The loss of predicting the mean label for every sample trained, where losses are cross-entropies."""
    if job.options.model.loss_function != "bce" or not tally.samples or tally.label_sum is None:
        return None
    return entropy_of(tally.label_sum / tally.samples)
