"""Which steps ``--profile-trace`` traces, and when the trace is written."""

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import Self

from torch.autograd.profiler import record_function

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import replacing
from cachedlrm.base.program import Interrupts
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.options.run_files import OTHER_RUN_DIR
from cachedlrm.report.console import Console
from cachedlrm.run.directory import RunDirectory
from cachedlrm.run.job import Job
from cachedlrm.run.profiler import PhaseRanges, Trace
from cachedlrm.run.progress import Progress

TRACE_FILE = "trace.json"

_WARM_UP_SHARE, _LONGEST_WARM_UP = 0.05, 100  # steps that this process trains before the trace


class StepTrace:
    """Traces some steps of a run. Leaving ``with`` writes what an early end left; without the option nothing happens.

    Nothing is asked of the prefetch thread: it goes on while the trace begins, ends and is written.

    Args:
        job: the run.
        progress: whose clocks stop for the trace's beginning and end.
        run: where the trace goes.
        console: told of it.
        interrupts: signals; they wait for the profiler.
    """

    def __init__(
        self, job: Job, progress: Progress, run: RunDirectory, console: Console, interrupts: Interrupts
    ) -> None:
        self._job = job
        self._progress = progress
        self._run = run
        self._console = console
        self._interrupts = interrupts
        left = job.schedule.num_steps - progress.steps
        self._num_steps = min(job.options.run.profile_trace, left)
        warm_up = min(max(1, int(left * _WARM_UP_SHARE)), _LONGEST_WARM_UP, left - self._num_steps)
        self._warm_at = progress.steps + warm_up
        self._trace: Trace | None = None  # until it is written
        self._traced: Generator[PreparedBatch] | None = None
        self._before = self._num_traced = 0

    def steps(self, batches: Prefetcher) -> Iterator[PreparedBatch]:
        """The batches; those of the steps to trace are awaited and trained within ranges."""
        if not self._num_steps:
            return iter(batches)
        self._batches = batches
        self._traced = self._steps(iter(batches), batches.runs_ahead)
        return self._traced

    def range(self, name: str) -> AbstractContextManager[object]:
        """A range of the training thread, while the trace lasts."""
        return record_function(name) if self._trace is not None and self._trace.lasts else nullcontext()

    def _steps(self, batches: Iterator[PreparedBatch], run_ahead: bool) -> Generator[PreparedBatch]:
        while self._progress.steps < self._warm_at:
            if (batch := next(batches, None)) is None:
                return
            yield batch
        trace = self._start()
        while self._progress.steps < self._before + self._num_steps:
            name = f"step {self._progress.steps + 1}"  # its first, if gradients of several are added up
            with record_function(name):
                # What is prepared in this thread has spans of its own.
                with record_function("wait") if run_ahead else nullcontext():
                    batch = next(batches, None)
                if batch is None:
                    trace.drop(name)
                    return
                trace.add(batch.spans)
                yield batch
        self._stop(trace)
        for batch in batches:
            trace.add(batch.spans)  # prepared, or begun, while the trace lasted
            yield batch
            if not trace.lasted_until(batch.spans[-1].end):
                break
        self._write(trace)
        yield from batches

    def _start(self) -> Trace:
        with self._interrupts.held(), self._progress.paused():
            trace = Trace(self._job.device)
            trace.start()
            self._trace, self._job.trainer.clock.ranges = trace, PhaseRanges()
            self._before = self._progress.steps
        self._progress.waits()
        return trace

    def _stop(self, trace: Trace) -> None:
        clock = self._job.trainer.clock
        with self._interrupts.held(), self._progress.paused():  # the device has finished, too
            ranges, clock.ranges = clock.ranges, None
            if ranges is not None:  # else a second signal ended an earlier call
                ranges.enter(None)  # where an error ended a step
            trace.stop()
            self._num_traced = self._progress.steps - self._before
        self._progress.waits()

    def _write(self, trace: Trace) -> None:
        self._trace = None
        with (
            self._interrupts.held(),
            self._progress.paused(),
            replacing(self._run.path(TRACE_FILE), OTHER_RUN_DIR) as path,
        ):
            trace.write(path, self._batches.native_id)
        self._progress.waits()
        self._console.message(f"trace of {self._num_traced} steps: {self._run.path(TRACE_FILE)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._traced is not None:
            self._traced.close()  # ends the ranges around a step that did not end
        if self._trace is None:
            return
        # What ends this run matters more than a trace that cannot be written.
        with self._interrupts.held(), suppress(UserError) if kind else nullcontext():
            if self._trace.lasts:
                self._stop(self._trace)
            if self._num_traced:
                self._write(self._trace)
