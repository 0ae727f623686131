"""What a run measures of itself: clocks, counters, losses and memory, from the first step to the report."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import host_memory
from cachedlrm.base.units import format_bytes
from cachedlrm.cache.counters import PHASES, TABLE_COUNTS, CacheCounters
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.plan.prediction import Prediction
from cachedlrm.report.inference_report import InferenceReport
from cachedlrm.report.live_view import RunHeader
from cachedlrm.report.metrics import Snapshot
from cachedlrm.report.totals import RunTotals, by_table
from cachedlrm.run.job import Job

_SAVED = (
    "steps",
    "samples",
    "counters",
    "counters_at_snapshot",
    "table_counts",
    "losses",
    "loss_sum",
    "last_loss",
    "evaluated",
    "evaluated_at",
    "auc",
    "accuracy",
    "phase_totals",
    "seconds",
    "seconds_at_snapshot",
    "samples_at_snapshot",
    "warm",
)
"""What a checkpoint keeps of `Progress`."""

_NUMBERS = ("steps", "samples", "samples_at_snapshot", "seconds", "seconds_at_snapshot")

_WARM_UP_SHARE = 0.05  # of the steps; left out of the rate


class Progress:
    """Collects what `train` reports. Reads the device only in `snapshot`.

    Args:
        job: the run.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._print_freq = job.options.batches.print_freq
        self._num_steps = job.schedule.num_steps
        # One slot a step between two snapshots, so that no step waits for its loss.
        most = min(self._print_freq, self._num_steps) + min(
            job.options.optimisation.mlperf_grad_accum_iter, self._num_steps
        )
        saved = dict(job.checkpoint.progress) if job.checkpoint is not None else {}
        pending = [loss for loss in saved.pop("pending_losses", []) if isinstance(loss, float)]
        try:
            self._pending = torch.empty(len(pending) + most, device=job.device)
        except (MemoryError, RuntimeError) as error:  # torch's allocators
            raise UserError(
                f"--print-freq {self._print_freq} keeps the losses of so many steps in memory; lower it"
            ) from error
        self._pending[: len(pending)] = torch.tensor(pending)
        self._num_pending = len(pending)
        self._losses: list[float] = []
        self._loss_sum = 0.0
        self._last_loss: float | None = None
        self._steps = self._samples = 0
        self._counters = self._counters_at_snapshot = CacheCounters()
        num_tables = sum(map(len, job.architecture.groups))
        self._table_counts = np.zeros((num_tables, len(TABLE_COUNTS)), np.int64)
        self._evaluated = False
        self._auc: float | None = None
        self._accuracy: float | None = None
        self._inference: InferenceReport | None = None
        self._prediction: Prediction | None = None
        self._phase_totals = dict.fromkeys(PHASES, 0.0)
        self._seconds = 0.0  # of training, without evaluation
        self._resumed_at = 0.0
        self._seconds_at_snapshot = 0.0
        self._samples_at_snapshot = 0
        self._warm: tuple[int, float] | None = None  # samples and seconds when the warm-up ended
        self._waiting_since = 0.0
        self._host_peak = self._mapped_peak = 0
        self._evaluated_at: int | None = None  # steps trained by then
        self._last_batch = job.first_batch - 1
        if saved:
            self._restore(saved)
        self._sample_memory()

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs to report the whole run; as JSON. Waits for the device."""
        self._stop_clock()
        return {name: _as_json(getattr(self, f"_{name}")) for name in _SAVED} | {
            "pending_losses": self._pending[: self._num_pending].tolist()
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        """Takes over what `state` gave.

        Raises:
            UserError: it is not that.
        """
        try:
            for name in _SAVED:
                value = saved[name]
                if name.startswith("counters"):
                    value = CacheCounters(**{key: int(count) for key, count in value.items()})
                if name == "table_counts":
                    value = self._read_table_counts(value)
                if name in _NUMBERS and not (isinstance(value, int | float) and value >= 0):
                    raise ValueError(f"{name} is {value}")
                setattr(self, f"_{name}", value)
            if self._warm is not None:  # the rate of this process alone: another may have had another machine
                self._warm = (self._samples, self._seconds)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"the checkpoint's progress does not read: {error!r}; start the run again") from error

    def _read_table_counts(self, value: object) -> NDArray[np.int64]:
        counts = np.array(value)
        if counts.shape != self._table_counts.shape or counts.dtype != np.int64 or counts.min() < 0:
            raise ValueError(f"table_counts are not those of {len(self._table_counts)} tables")
        return counts

    @property
    def resumes(self) -> bool:
        """Whether an earlier process trained a part of the run."""
        return self._job.options.run.resume is not None

    @property
    def needs_evaluation(self) -> bool:
        """Whether an evaluation is due after the last batch trained, by this process or one before."""
        due = self._last_batch >= 0 and self._job.dataset.test is not None
        return due and self._job.schedule.evaluates_after(self._last_batch) and self._evaluated_at != self._steps

    def header(self) -> RunHeader:
        """What the display says once."""
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
        """The time of training lies inside, setup outside."""
        self._resumed_at = self._waiting_since = time.perf_counter()
        yield
        self._stop_clock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Evaluation: not part of training's time or of its phases."""
        self._stop_clock()
        try:
            yield
        finally:
            self._resumed_at = time.perf_counter()

    def _stop_clock(self) -> None:
        """On CUDA the host runs ahead, so the time of training ends when the device is done."""
        if self._job.device.type == "cuda":
            torch.cuda.synchronize(self._job.device)
        self._seconds += time.perf_counter() - self._resumed_at
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
        """Everything else about the last batch is done, logging included; the next batch is wanted."""
        self._waiting_since = time.perf_counter()

    @property
    def steps(self) -> int:
        """Steps issued."""
        return self._steps

    def trained(self, batch: PreparedBatch, losses: Tensor) -> None:
        """A batch of one step, or of several whose gradients were added up, has been issued; losses [steps]."""
        steps = losses.shape[0]
        self._pending[self._num_pending : self._num_pending + steps] = losses
        self._num_pending += steps
        self._steps += steps
        self._last_batch = batch.tensors.index
        self._samples += batch.tensors.num_samples
        self._counters += batch.counters
        self._table_counts += batch.table_counts
        if self._warm is None and self._steps >= max(1, int(self._num_steps * _WARM_UP_SHARE)):
            self._stop_clock()
            self._warm = (self._samples, self._seconds)

    def evaluated(self, auc: float | None, accuracy: float | None = None) -> None:
        """The model has been evaluated."""
        self._evaluated, self._auc, self._accuracy = True, auc, accuracy
        self._evaluated_at = self._steps

    def predicted(self, prediction: Prediction) -> None:
        """Before training, this was expected of the run."""
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
        return self._num_pending > 0 and (self._num_pending >= self._print_freq or self._steps == self._num_steps)

    def snapshot(self) -> Snapshot:
        """Where the run stands; waits for the device.

        Raises:
            UserError: a loss since the last snapshot is not finite; names the step.
        """
        self._stop_clock()
        job, steps = self._job, self._num_pending
        losses = self._take_losses()
        phases = job.trainer.clock.collect()
        for phase in PHASES:
            self._phase_totals[phase] += phases[phase]
        recent = self._counters - self._counters_at_snapshot
        seconds = max(self._seconds - self._seconds_at_snapshot, 1e-9)
        samples = self._samples - self._samples_at_snapshot
        host, mapped = self._sample_memory()
        disk, disk_limit = job.trainer.cache.disk_bytes()
        snapshot = Snapshot(
            step=self._steps,
            num_steps=self._num_steps,
            epoch=job.schedule.epoch(max(0, self._steps - 1)),
            samples=self._samples,
            elapsed_s=self._seconds,
            samples_per_s=samples / seconds,
            eta_s=(self._num_steps - self._steps) * seconds / steps,
            loss=sum(losses) / len(losses),
            auc=self._auc,
            cache=self._counters,
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
            evaluated=self._evaluated,
            disk_bytes=disk,
            disk_limit_bytes=disk_limit,
            prefetch_depth=job.options.cache.prefetch_depth,
        )
        self._counters_at_snapshot = self._counters
        self._seconds_at_snapshot, self._samples_at_snapshot = self._seconds, self._samples
        self._resumed_at = time.perf_counter()
        return snapshot

    def not_finite(self, what: str) -> UserError:
        """The error that ends a run whose ``what`` are not numbers any more."""
        rate = self._job.options.optimisation.learning_rate
        return UserError(
            f"{what} became NaN or infinite by the update of step {self._steps}; lower --learning-rate ({rate})"
        )

    def _take_losses(self) -> list[float]:
        losses: list[float] = self._pending[: self._num_pending].tolist()
        for number, loss in enumerate(losses):
            if not abs(loss) < float("inf"):
                step = self._steps - len(losses) + number + 1
                raise UserError(
                    f"the loss became {loss} at step {step}; lower --learning-rate "
                    f"({self._job.options.optimisation.learning_rate}) or look at the data of that step"
                )
        self._num_pending = 0
        self._loss_sum += sum(losses)
        self._last_loss = losses[-1]
        if self._print_freq == 1:
            self._losses += losses
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

    def totals(self) -> RunTotals:
        """What the report is made of."""
        job = self._job
        self._sample_memory()
        warm_samples, warm_seconds = self._warm or (0, 0.0)
        if warm_samples == self._samples:  # too short a run to leave anything out
            warm_samples, warm_seconds = 0, 0.0
        seconds = self._seconds - warm_seconds
        return RunTotals(
            options=job.options,
            steps=self._steps,
            samples=self._samples,
            samples_per_s=(self._samples - warm_samples) / seconds if seconds > 0 else 0.0,
            training_s=self._seconds,
            loss_last=self._last_loss,
            loss_mean=self._loss_sum / self._steps if self._steps else None,
            auc=self._auc,
            losses=self._losses if self._print_freq == 1 else None,
            table_rows=job.tiers.device.table_rows,
            cache_slots=job.tiers.device.quota_slots,
            temporary_slots=job.tiers.device.num_slots - job.tiers.device.quota_slots,
            record_bytes=max(layout.record_bytes for layout in job.architecture.layouts),
            table_bytes=job.tiers.table_bytes,
            counters=self._counters,
            tables=by_table(job.architecture, self._table_counts.tolist()),
            device_name=self._device_name(),
            threads=torch.get_num_threads(),
            device_peak_bytes=self._device_peak(),
            device_limit_bytes=job.tiers.device_limit,
            device_bytes_breakdown=job.tiers.device.breakdown,
            host_peak_bytes=self._host_peak,
            host_limit_bytes=job.tiers.host.records,
            host_store_bytes=job.trainer.cache.store_bytes,
            mapped_peak_bytes=self._mapped_peak,
            phase_ms={phase: total / max(1, self._steps) for phase, total in self._phase_totals.items()},
            accuracy=self._accuracy,
            inference=self._inference,
            prediction=self._prediction,
        )

    def summary(self) -> str:
        """The run in one line."""
        totals = self.totals()
        if totals.inference is not None:
            return totals.inference.summary()
        if not totals.steps:
            return "no step was trained; the model was built and initialised"
        auc = "" if totals.auc is None else f", AUC {totals.auc:.4f}"
        loss = "" if totals.loss_mean is None else f", mean loss {totals.loss_mean:.5f}"
        ratio = totals.counters.moved_of_min
        of_min = "" if ratio is None else f", {ratio:.3f} of the rows that MIN moves"
        return (
            f"{totals.steps:,} steps, {totals.samples_per_s:,.0f} samples/s{loss}{auc}, "
            f"{totals.counters.hit_ratio:.2%} hits{of_min}"
        )


def _as_json(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return asdict(value) if isinstance(value, CacheCounters) else value
