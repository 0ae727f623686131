"""Everything a run measures: clocks, counters, losses and memory, from the first step to the report."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import host_memory
from cachedlrm.cache.counters import PHASES
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.plan.prediction import Prediction
from cachedlrm.report.live_view import RunHeader
from cachedlrm.report.metrics import Snapshot
from cachedlrm.report.record import InferenceReport, Report
from cachedlrm.report.scores import SCORES, Evaluated, best_of, num_without_improvement
from cachedlrm.run.evaluation import Evaluation
from cachedlrm.run.job import Job
from cachedlrm.run.outcome import Measured, run_header, run_report
from cachedlrm.run.tally import read_tally

_WARM_UP_SHARE = 0.05  # of the steps; left out of the rate


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
        num_tables = sum(map(len, job.architecture.groups))
        self._tally = read_tally(job.checkpoint.progress if job.checkpoint is not None else {}, num_tables)
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
        self._has_unrecorded = False  # an evaluation that is in no line of metrics
        self._inference: InferenceReport | None = None
        self._prediction: Prediction | None = None
        self._resumed_at = self._waiting_since = 0.0
        self._host_peak = self._mapped_peak = 0
        self._last_batch = job.first_batch - 1
        self._sample_memory()

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
        return due and self._job.schedule.evaluates_after(self._last_batch) and not self.is_evaluated

    def header(self) -> RunHeader:
        """The part of the display that does not change."""
        return run_header(self._job)

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
        if tally.label_sum is not None:  # else an earlier version trained a part of the run
            tally.label_sum += batch.label_sum
        tally.counters += batch.counters
        self._table_counts += batch.table_counts
        if tally.warm is None and tally.steps >= max(1, int(self._num_steps * _WARM_UP_SHARE)):
            self._stop_clock()
            tally.warm = (tally.samples, tally.seconds)

    def evaluated(self, evaluation: Evaluation) -> None:
        """The model has been evaluated."""
        tally = self._tally
        if self.is_better(evaluation):
            tally.best_calibration_bins = list(evaluation.bins)
        tally.evaluations.append(self._entry(evaluation))
        tally.calibration_bins = list(evaluation.bins)
        self._has_unrecorded = True

    def is_better(self, evaluation: Evaluation) -> bool:
        """Whether an evaluation of the present state is better than all before."""
        entry = self._entry(evaluation)
        return best_of([*self._tally.evaluations, entry], self._job.options.evaluation.monitor) is entry

    def _entry(self, evaluation: Evaluation) -> Evaluated:
        return Evaluated(step=self._tally.steps, **asdict(evaluation.scores))

    @property
    def is_evaluated(self) -> bool:
        """Whether the present state is evaluated."""
        return self.evaluation is not None and self.evaluation.step == self._tally.steps

    @property
    def evaluation(self) -> Evaluated | None:
        """The last one."""
        return self._tally.evaluation

    @property
    def best(self) -> Evaluated | None:
        """The best evaluation by ``--monitor``."""
        return best_of(self._tally.evaluations, self._job.options.evaluation.monitor)

    @property
    def ends_because(self) -> str | None:
        """Why evaluations end the run; None: they do not."""
        options, evaluations = self._job.options.evaluation, self._tally.evaluations
        if options.stop_at_auc is not None:
            for one in evaluations:
                if one.auc is not None and one.auc >= options.stop_at_auc:
                    return f"AUC {one.auc:.4f} at step {one.step:,} reached --stop-at-auc {options.stop_at_auc}"
        waited = num_without_improvement(evaluations, options.monitor)
        if options.stop_after is not None and waited >= options.stop_after:
            assert self.best is not None
            return (
                f"--stop-after {options.stop_after}: no evaluation since step {self.best.step:,} has a better "
                f"{options.monitor}"
            )
        return None

    def predicted(self, prediction: Prediction) -> None:
        """Takes what is expected of the run, before it trains."""
        self._prediction = prediction

    def served(self, report: InferenceReport) -> None:
        """The model has been evaluated instead of trained."""
        self._inference = report
        self._tally.evaluations = [Evaluated(step=0, **{name: getattr(report.served, name) for name in SCORES})]

    @property
    def has_news(self) -> bool:
        """Whether steps were trained since the last snapshot."""
        return self._num_pending > 0

    @property
    def due(self) -> bool:
        """Whether it is time for a line of metrics: after ``--print-freq`` steps, an evaluation, or the last step."""
        steps, frequency = self._tally.steps, self._print_freq
        is_time = steps // frequency > self._tally.steps_at_snapshot // frequency or steps == self._num_steps
        return self._has_unrecorded or (self._num_pending > 0 and is_time)

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
            evaluation=tally.evaluation,
            best=self.best,
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
            disk_bytes=disk,
            disk_limit_bytes=disk_limit,
            prefetch_depth=job.options.cache.prefetch_depth,
            **self._rates(),
        )
        tally.counters_at_snapshot = tally.counters
        tally.seconds_at_snapshot, tally.samples_at_snapshot = tally.seconds, tally.samples
        tally.steps_at_snapshot = tally.steps
        self._has_unrecorded = False
        self._resumed_at = time.perf_counter()
        return snapshot

    def _rates(self) -> dict[str, float]:
        """Learning rates of the last step."""
        trainer, step = self._job.trainer, self._last_batch + 1
        return {"learning_rate": trainer.learning_rate(step), "dense_learning_rate": trainer.dense_learning_rate(step)}

    def not_finite(self, what: str) -> UserError:
        """The error that ends a run in which ``what`` are no longer finite."""
        return UserError(
            f"{what} became NaN or infinite by the update of step {self._tally.steps}; lower {self._rate_options()}"
        )

    def _rate_options(self) -> str:
        """Options that make steps smaller, with their values."""
        optimisation = self._job.options.optimisation
        rate, dense_rate = optimisation.learning_rate, optimisation.dense_rate.base
        of_layers = f" or --dense-learning-rate ({dense_rate})" if dense_rate != rate else ""
        return f"--learning-rate ({rate}){of_layers}"

    def _take_losses(self) -> list[float]:
        losses: list[float] = self._pending[: self._num_pending].tolist()
        for number, loss in enumerate(losses):
            if not abs(loss) < float("inf"):
                step = self._tally.steps - len(losses) + number + 1
                raise UserError(
                    f"the loss became {loss} at step {step}; lower {self._rate_options()} or look at the data of "
                    "that step"
                )
        self._num_pending = 0
        self._tally.loss_sum += sum(losses)
        self._tally.last_loss, self._tally.recent_loss = losses[-1], sum(losses) / len(losses)
        if self._print_freq == 1:
            self._tally.losses += losses
        return losses

    def recorded(self) -> None:
        """The last evaluation is in a line of metrics that an earlier process wrote."""
        self._has_unrecorded = False

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
        self._sample_memory()
        measured = Measured(
            tally=self._tally,
            table_counts=self._table_counts.tolist(),
            best=self.best,
            rates=self._rates() if self._tally.steps else {},
            ends_because=self.ends_because,
            device_peak=self._device_peak(),
            host_peak=self._host_peak,
            mapped_peak=self._mapped_peak,
            prediction=self._prediction,
            inference=self._inference,
        )
        return run_report(self._job, measured, arguments)
