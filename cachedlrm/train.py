"""``python -m cachedlrm.train``: trains a DLRM whose embedding tables exceed the device.

Reads top to bottom: `main` turns arguments into an exit status, `train` prepares a run and reports it,
`_train_steps` is the loop.
"""

import os

# Idle OpenMP threads that spin for work take the processor from the prefetch thread, which then stalls torch's
# operators in turn. Read once, when torch loads the OpenMP runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Needed by --deterministic on CUDA, and read once too.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from types import FrameType

from cachedlrm.architecture import describe
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.command_line import parse_command_line, to_toml
from cachedlrm.console import Console, aligned, open_console
from cachedlrm.data.open import open_dataset
from cachedlrm.errors import UserError
from cachedlrm.final_state import FILE_NAME, save_final_state
from cachedlrm.inference import check_inference, run_inference
from cachedlrm.job import Job, build_job, data_request, resolve
from cachedlrm.metrics import MetricsRow, metrics_row
from cachedlrm.outputs import check_outputs, save_models
from cachedlrm.progress import Progress
from cachedlrm.report import build_report, report_markdown
from cachedlrm.run_directory import RunDirectory

_INTERRUPTED = 130


def main(arguments: Sequence[str]) -> int:
    """Trains as the arguments say; the exit status: 0 done, 2 the user's input is wrong, 130 interrupted."""
    try:
        train(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the run directory keeps the metrics so far", file=sys.stderr)
        return _INTERRUPTED
    return 0


def train(arguments: Sequence[str]) -> None:
    """One run, from arguments to a report.

    Raises:
        UserError: the input is wrong; what shows before the first step leaves nothing behind.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step in progress was finished.
    """
    options = parse_command_line(arguments)
    dataset = open_dataset(options.data.data, options.data.test_data, data_request(options))
    options = resolve(options, dataset)
    check_inference(options, dataset)
    check_outputs(options)
    job = build_job(options, dataset)
    progress = Progress(job)
    config = to_toml(options)
    with RunDirectory.create(options.run.run_dir) as run, closing(open_console(options.run.ui)) as console:
        run.write_text("config.toml", config)
        console.start(progress.header())
        if options.run.debug_mode:
            console.message(aligned(describe(job.architecture)))
        if job.note is not None:
            console.message(job.note)
        rows = _train_steps(job, progress, run, console)
        if options.inference.inference_only:
            _serve(job, progress, run)
        is_loaded = options.inference.load_model is not None
        save_final_state(run.path(FILE_NAME), job.trainer.cache, job.trainer.model, all_rows=is_loaded)
        totals = progress.totals()
        save_models(job, totals, run.path("model.onnx"))
        report = build_report(totals, arguments)
        run.write_json("report.json", report)
        run.write_text("report.md", report_markdown(totals, report, rows, config))
        console.finish(f"{progress.summary()}\nreport: {run.path('report.md')}")


def _train_steps(job: Job, progress: Progress, run: RunDirectory, console: Console) -> list[MetricsRow]:
    """The loop; returns the lines of metrics. The host waits for the device only to log and to evaluate."""
    trainer, schedule, test = job.trainer, job.schedule, job.dataset.test

    def evaluates_after(index: int) -> bool:
        return test is not None and schedule.evaluates_after(index)

    rows: list[MetricsRow] = []
    prepared = trainer.cache.prepare(schedule.batches())
    depth = job.options.cache.prefetch_depth
    with (
        closing(Prefetcher(prepared, depth, trainer.cache.trained, pause_after=evaluates_after)) as batches,
        _interruptible() as interrupted,
        progress.running(),
    ):
        for batch in batches:
            progress.received(batch)
            losses = trainer.step(batch)
            progress.trained(batch, losses)
            if evaluates_after(batch.tensors.index):
                with progress.paused():  # synchronises
                    _evaluate(job, progress, run)
            if progress.due:
                snapshot = progress.snapshot()  # synchronises
                rows.append(metrics_row(snapshot))
                run.append_metrics(rows[-1])
                console.update(snapshot)
            console.advance(progress.steps)
            if interrupted():
                raise KeyboardInterrupt
            progress.waits()
    return rows


def _evaluate(job: Job, progress: Progress, run: RunDirectory) -> None:
    """Evaluates on the held-out samples."""
    assert job.dataset.test is not None
    evaluation = job.trainer.evaluate(job.dataset.test, job.options.batches.test_mini_batch_size)
    progress.evaluated(evaluation.auc, evaluation.accuracy)
    if job.options.run.save_predictions:
        run.write_array("predictions.npy", evaluation.predictions)


def _serve(job: Job, progress: Progress, run: RunDirectory) -> None:
    """Evaluates the model as it is to be served."""
    report, predictions = run_inference(job)
    progress.served(report)
    if job.options.run.save_predictions:
        run.write_array("predictions.npy", predictions)


@contextmanager
def _interruptible() -> Iterator["_Interrupted"]:
    """While inside, SIGINT and SIGTERM are noted, so that the step in progress is finished."""
    interrupted = _Interrupted()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, interrupted.note) for number in signals]
    try:
        yield interrupted
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


class _Interrupted:
    """Whether a signal came; a second one interrupts at once."""

    def __init__(self) -> None:
        self._came = False

    def note(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            raise KeyboardInterrupt
        self._came = True

    def __call__(self) -> bool:
        return self._came


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
