"""Everything a run measures: clocks, counters, losses and memory, from the first step to the report."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import host_memory
from cachedlrm.base.units import finite, format_bytes
from cachedlrm.cache.counters import PHASES, TABLE_COUNTS, CacheCounters
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.plan.prediction import Prediction
from cachedlrm.report.environment import environment
from cachedlrm.report.live_view import RunHeader
from cachedlrm.report.metrics import Snapshot
from cachedlrm.report.record import Count, InferenceReport, Report, table_reports
from cachedlrm.run.job import Job

_WARM_UP_SHARE = 0.05  # of the steps; left out of the rate

Seconds = Annotated[float, msgspec.Meta(ge=0)]


@dataclass(kw_only=True)
class Tally:
    """What a run has counted so far, as a checkpoint keeps it: a resumed run reports the whole run.

    Attributes:
        steps, samples: trained.
        counters: of the cache.
        table_counts: [tables, 4], the `TABLE_COUNTS` of each table, group after group.
        losses: of every step; kept with ``--print-freq 1`` only.
        loss_sum, last_loss: up to the last snapshot.
        pending_losses: since then.
        auc, accuracy: of the last evaluation.
        evaluated_at: steps trained by then; None before the first.
        phase_totals: milliseconds by phase, up to the last snapshot.
        seconds: of training, without evaluation.
        warm: samples and seconds when the warm-up ended; None before.
        counters_at_snapshot, samples_at_snapshot, seconds_at_snapshot: what they were at the last snapshot.
    """

    steps: Count
    samples: Count
    counters: CacheCounters
    table_counts: list[list[Count]]
    losses: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    last_loss: float | None = None
    pending_losses: list[float] = field(default_factory=list)
    auc: float | None = None
    accuracy: float | None = None
    evaluated_at: Count | None = None
    phase_totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    seconds: Seconds = 0.0
    warm: tuple[Count, Seconds] | None = None
    counters_at_snapshot: CacheCounters = field(default_factory=CacheCounters)
    samples_at_snapshot: Count = 0
    seconds_at_snapshot: Seconds = 0.0


class Progress:
    """Collects what `train` reports. Reads the device only in `snapshot`.

    Args:
        job: the run.

    Raises:
        UserError: the checkpoint's figures do not read, or the losses of ``--print-freq`` steps do not fit into memory.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._print_freq = job.options.batches.print_freq
        self._num_steps = job.schedule.num_steps
        self._tally = self._read_tally(job.checkpoint.progress if job.checkpoint is not None else {})
        self._table_counts: NDArray[np.int64] = np.array(self._tally.table_counts, np.int64)
        pending = self._tally.pending_losses
        # A place for each step between two snapshots, so that no step waits for its loss.
        most = min(self._print_freq, self._num_steps) + min(
            job.options.optimisation.mlperf_grad_accum_iter, self._num_steps
        )
        try:
            self._pending = torch.empty(len(pending) + most, device=job.device)
        except (MemoryError, RuntimeError) as error:  # torch's allocators
            raise UserError(
                f"--print-freq {self._print_freq} keeps the losses of so many steps in memory; lower it"
            ) from error
        self._pending[: len(pending)] = torch.tensor(pending)
        self._num_pending = len(pending)
        self._inference: InferenceReport | None = None
        self._prediction: Prediction | None = None
        self._resumed_at = self._waiting_since = 0.0
        self._host_peak = self._mapped_peak = 0
        self._last_batch = job.first_batch - 1
        self._sample_memory()

    def _read_tally(self, saved: Mapping[str, Any]) -> Tally:
        """What `state` gave; a new one where that is empty."""
        num_tables = sum(map(len, self._job.architecture.groups))
        if not saved:
            nothing = [[0] * len(TABLE_COUNTS) for _ in range(num_tables)]
            return Tally(steps=0, samples=0, counters=CacheCounters(), table_counts=nothing)
        try:
            tally = msgspec.convert(saved, Tally)
            if [len(counts) for counts in tally.table_counts] != [len(TABLE_COUNTS)] * num_tables:
                raise ValueError(f"table_counts are not those of {num_tables} tables")
        except ValueError as error:
            raise UserError(f"the checkpoint's progress does not read: {error}; start the run again") from error
        if tally.warm is not None:  # the rate of this process alone: another may have had another machine
            tally.warm = (tally.samples, tally.seconds)
        return tally

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs to report the whole run, as JSON has it. Waits for the device."""
        self._stop_clock()
        pending = self._pending[: self._num_pending].tolist()
        tally = replace(self._tally, table_counts=self._table_counts.tolist(), pending_losses=pending)
        state: dict[str, Any] = msgspec.to_builtins(tally)
        return state

    @property
    def resumes(self) -> bool:
        """Whether an earlier process trained a part of the run."""
        return self._job.options.run.resume is not None

    @property
    def needs_evaluation(self) -> bool:
        """Whether an evaluation is due after the last batch trained, by this process or one before."""
        due = self._last_batch >= 0 and self._job.dataset.test is not None
        return (
            due
            and self._job.schedule.evaluates_after(self._last_batch)
            and self._tally.evaluated_at != self._tally.steps
        )

    def header(self) -> RunHeader:
        """The part of the display that does not change."""
        job, options = self._job, self._job.options
        rows, slots = job.tiers.device.table_rows, job.tiers.device.quota_slots
        lookahead = f" {options.cache.lookahead}" if options.cache.policy == "lookahead" else ""
        extra = job.tiers.device.num_slots - slots
        cache = (
            f"{slots:,} slots ({slots / rows:.2%})"
            + (f" and {extra:,} temporary ones" if extra else "")
            + f", {options.cache.policy}{lookahead}, {format_bytes(job.tiers.device.total_bytes)} on the device"
        )
        return RunHeader(
            data=options.data.data,
            model=f"{rows:,} rows in {len(job.dataset.train.table_rows)} tables, "
            f"dim {options.model.arch_sparse_feature_size}, {options.optimisation.optimizer}",
            cache="cache not used: rows are read where they are" if options.inference.inference_only else cache,
            machine=f"{self._device_name()}, {torch.get_num_threads()} threads, "
            f"prefetch depth {options.cache.prefetch_depth}",
            trains=self._num_steps > 0,
            evaluates=job.dataset.test is not None and (options.batches.test_freq or 0) > 0,
        )

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self._job.device) if self._job.device.type == "cuda" else "cpu"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Training happens inside; setup, outside, is not timed."""
        self._resumed_at = self._waiting_since = time.perf_counter()
        yield
        self._stop_clock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not training, such as evaluation: outside the time of training and its phases."""
        self._stop_clock()
        try:
            yield
        finally:
            self._resumed_at = time.perf_counter()

    def _stop_clock(self) -> None:
        """On CUDA the host runs ahead, so the time of training ends when the device is done."""
        if self._job.device.type == "cuda":
            torch.cuda.synchronize(self._job.device)
        self._tally.seconds += time.perf_counter() - self._resumed_at
        self._resumed_at = time.perf_counter()

    def received(self, batch: PreparedBatch) -> None:
        """A prepared batch has arrived; the time since the last step was spent waiting for it."""
        if self._job.device.type == "cuda":
            return  # the host may wait while the device is busy: what counts is the device's own wait
        waited = (time.perf_counter() - self._waiting_since) * 1e3
        if not self._job.options.cache.prefetch_depth:
            waited -= sum(batch.phase_ms.values())  # spent by this thread, and counted as what it was
        self._job.trainer.clock.add({"wait": waited})

    def waits(self) -> None:
        """The last batch is dealt with, logging included, and the wait for the next one begins."""
        self._waiting_since = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps issued."""
        return self._tally.steps

    @property
    def num_steps(self) -> int:
        """Steps of the run."""
        return self._num_steps

    def trained(self, batch: PreparedBatch, losses: Tensor) -> None:
        """A batch of one step, or of several whose gradients were added up, has been issued; losses [steps]."""
        tally, steps = self._tally, losses.shape[0]
        self._pending[self._num_pending : self._num_pending + steps] = losses
        self._num_pending += steps
        tally.steps += steps
        self._last_batch = batch.tensors.index
        tally.samples += batch.tensors.num_samples
        tally.counters += batch.counters
        self._table_counts += batch.table_counts
        if tally.warm is None and tally.steps >= max(1, int(self._num_steps * _WARM_UP_SHARE)):
            self._stop_clock()
            tally.warm = (tally.samples, tally.seconds)

    def evaluated(self, auc: float | None, accuracy: float | None = None) -> None:
        """The model has been evaluated."""
        tally = self._tally
        tally.auc, tally.accuracy, tally.evaluated_at = auc, accuracy, tally.steps

    def predicted(self, prediction: Prediction) -> None:
        """Takes what is expected of the run, before it trains."""
        self._prediction = prediction

    def served(self, report: InferenceReport) -> None:
        """The model has been evaluated instead of trained."""
        self._inference = report
        self.evaluated(report.served.auc, report.served.accuracy)

    @property
    def has_news(self) -> bool:
        """Whether steps were trained since the last snapshot."""
        return self._num_pending > 0

    @property
    def due(self) -> bool:
        """Whether it is time for a snapshot."""
        return self._num_pending > 0 and (self._num_pending >= self._print_freq or self._tally.steps == self._num_steps)

    def snapshot(self) -> Snapshot:
        """The run at this moment; waits for the device.

        Raises:
            UserError: a loss since the last snapshot is not finite; names the step.
        """
        self._stop_clock()
        job, tally, steps = self._job, self._tally, self._num_pending
        losses = self._take_losses()
        phases = job.trainer.clock.collect()
        for phase in PHASES:
            tally.phase_totals[phase] += phases[phase]
        recent = tally.counters - tally.counters_at_snapshot
        seconds = max(tally.seconds - tally.seconds_at_snapshot, 1e-9)
        samples = tally.samples - tally.samples_at_snapshot
        host, mapped = self._sample_memory()
        disk, disk_limit = job.trainer.cache.disk_bytes()
        snapshot = Snapshot(
            step=tally.steps,
            num_steps=self._num_steps,
            epoch=job.schedule.epoch(max(0, tally.steps - 1)),
            samples=tally.samples,
            elapsed_s=tally.seconds,
            samples_per_s=samples / seconds,
            eta_s=(self._num_steps - tally.steps) * seconds / steps,
            loss=sum(losses) / len(losses),
            auc=tally.auc,
            cache=tally.counters,
            recent=recent,
            recent_steps=steps,
            phase_ms={phase: phases[phase] / steps for phase in PHASES},
            device_bytes=self._device_peak(),
            device_limit_bytes=job.tiers.device_limit,
            host_bytes=host,
            host_limit_bytes=job.tiers.host.records,
            mapped_bytes=mapped,
            cache_slots=job.tiers.device.quota_slots,
            resident_slots=job.trainer.cache.resident_rows,
            host_records=job.trainer.cache.store_records,
            host_record_bytes=job.trainer.cache.store_bytes,
            temporary_slots=job.tiers.device.num_slots - job.tiers.device.quota_slots,
            evaluated=tally.evaluated_at is not None,
            disk_bytes=disk,
            disk_limit_bytes=disk_limit,
            prefetch_depth=job.options.cache.prefetch_depth,
        )
        tally.counters_at_snapshot = tally.counters
        tally.seconds_at_snapshot, tally.samples_at_snapshot = tally.seconds, tally.samples
        self._resumed_at = time.perf_counter()
        return snapshot

    def not_finite(self, what: str) -> UserError:
        """The error that ends a run in which ``what`` are no longer finite."""
        rate = self._job.options.optimisation.learning_rate
        return UserError(
            f"{what} became NaN or infinite by the update of step {self._tally.steps}; lower --learning-rate ({rate})"
        )

    def _take_losses(self) -> list[float]:
        losses: list[float] = self._pending[: self._num_pending].tolist()
        for number, loss in enumerate(losses):
            if not abs(loss) < float("inf"):
                step = self._tally.steps - len(losses) + number + 1
                raise UserError(
                    f"the loss became {loss} at step {step}; lower --learning-rate "
                    f"({self._job.options.optimisation.learning_rate}) or look at the data of that step"
                )
        self._num_pending = 0
        self._tally.loss_sum += sum(losses)
        self._tally.last_loss = losses[-1]
        if self._print_freq == 1:
            self._tally.losses += losses
        return losses

    def _device_peak(self) -> int:
        """Measured on CUDA; on the CPU what the step's tensors add up to."""
        if self._job.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._job.device))
        return self._job.tiers.device.total_bytes

    def _sample_memory(self) -> tuple[int, int]:
        host, mapped = host_memory()
        self._host_peak, self._mapped_peak = max(self._host_peak, host), max(self._mapped_peak, mapped)
        return host, mapped

    def report(self, arguments: Sequence[str]) -> Report:
        """The record of the run.

        Args:
            arguments: its command line.
        """
        job, tally, counters, device = self._job, self._tally, self._tally.counters, self._job.tiers.device
        self._sample_memory()
        warm_samples, warm_seconds = tally.warm or (0, 0.0)
        if warm_samples == tally.samples:  # too short a run to leave anything out
            warm_samples, warm_seconds = 0, 0.0
        seconds = tally.seconds - warm_seconds
        # A run may be resumed with --report-min, and then MIN was not counted from the beginning on.
        min_was_counted = job.options.cache.report_min and (counters.moved_rows_min or not counters.moved_rows)
        return Report(
            steps=tally.steps,
            samples=tally.samples,
            samples_per_s=(tally.samples - warm_samples) / seconds if seconds > 0 else 0.0,
            training_s=tally.seconds,
            loss_last=tally.last_loss,
            loss_mean=tally.loss_sum / tally.steps if tally.steps else None,
            auc=tally.auc,
            accuracy=finite(tally.accuracy),
            table_rows=device.table_rows,
            cache_slots=device.quota_slots,
            temporary_slots=device.num_slots - device.quota_slots,
            record_bytes=max(layout.record_bytes for layout in job.architecture.layouts),
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
            device_peak_bytes=self._device_peak(),
            device_limit_bytes=job.tiers.device_limit,
            device_bytes_breakdown=device.breakdown,
            host_peak_bytes=self._host_peak,
            host_limit_bytes=job.tiers.host.records,
            host_store_bytes=job.trainer.cache.store_bytes,
            mapped_peak_bytes=self._mapped_peak,
            phase_ms={phase: total / max(1, tally.steps) for phase, total in tally.phase_totals.items()},
            prediction=self._prediction.of_run if self._prediction else None,
            miss_ratio_curve=self._prediction.by_size if self._prediction else None,
            tables=table_reports(job.architecture, self._table_counts.tolist(), job.dataset.table_names),
            vocabulary=job.dataset.vocabulary_fingerprint,
            environment=environment(self._device_name(), arguments),
            losses=tuple(tally.losses) if self._print_freq == 1 else None,
            inference=self._inference,
        )
