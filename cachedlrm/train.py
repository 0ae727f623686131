"""``python -m cachedlrm.train``: trains a DLRM whose embedding tables exceed the device.

Reads top to bottom: `main` turns arguments into an exit status, `train` prepares a run and reports it,
`_train_steps` is the loop.
"""

import os
import sys

from cachedlrm.base.program import Interrupts, end_program, recognised, run_program, start_program

if __name__ == "__main__":
    start_program()

# Idle OpenMP threads that spin for work take the processor from the prefetch thread, which then stalls torch's
# operators in turn. Read once, when torch loads the OpenMP runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Tensors of two MiB and more in huge pages: the system fills fewer pages with zeros when a step takes its memory anew.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Needed by --deterministic on CUDA, and read once too.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from functools import partial

import numpy as np

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import aligned
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.data.batch import Dataset
from cachedlrm.data.open import open_dataset
from cachedlrm.export.final_state import FILE_NAME, most_bytes
from cachedlrm.options.architecture import describe
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.profiles import to_toml
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import CUT_METRICS_FILE
from cachedlrm.options.torchrec import in_its_words
from cachedlrm.plan.id_pass import discard_next_uses
from cachedlrm.plan.prediction import predict
from cachedlrm.report.console import Console, open_console
from cachedlrm.report.html import run_page
from cachedlrm.report.markdown import report_markdown
from cachedlrm.report.metrics import evaluation_values, metrics_row
from cachedlrm.report.record import report_json
from cachedlrm.report.runs import Run
from cachedlrm.report.tensorboard import Scalars
from cachedlrm.report.verdict import worse_than_mean
from cachedlrm.report.words import one_line
from cachedlrm.run.best import FinalStates
from cachedlrm.run.directory import RunDirectory
from cachedlrm.run.evaluation import check_monitor
from cachedlrm.run.inference import check_inference, run_inference
from cachedlrm.run.job import Job, build_job
from cachedlrm.run.preflight import check_outputs, save_models, short_of_space
from cachedlrm.run.progress import Progress
from cachedlrm.run.saving import Checkpoints, open_run
from cachedlrm.run.trace import TRACE_FILE, StepTrace
from cachedlrm.store.spool import TEMPORARY_FILE


def main(arguments: Sequence[str]) -> int:
    """Trains as the arguments say; the exit status: 0 done, 2 the user's input is wrong, 130 interrupted."""
    return run_program(
        lambda interrupts: train(arguments, interrupts),
        interrupted="interrupted before the first step; nothing was written",
        worded=partial(in_its_words, arguments),
    )


def train(arguments: Sequence[str], interrupts: Interrupts) -> None:
    """One run, from arguments to a report.

    Raises:
        UserError: the input is wrong; what shows before the first step leaves nothing behind.
        KeyboardInterrupt: a signal asked for an end; the step in progress was finished.
    """
    _refuse_several_processes(os.environ)
    options = parse_command_line(arguments)
    dataset = open_dataset(options.data.data, options.data.test_data, data_request(options))
    resolved = resolve(options, dataset)
    check_inference(resolved, dataset)
    check_monitor(resolved, dataset)
    check_outputs(resolved)
    config = to_toml(resolved)
    with (
        open_run(resolved) as run,
        closing(open_console(resolved.run.ui)) as console,
        closing(_build_job(resolved, dataset, run, console)) as job,
    ):
        progress = Progress(job)
        with closing(_RunLog(job, progress, run, console)) as recorder:
            try:
                with recognised():
                    run.write_text("config.toml", config)
                    console.start(progress.header())
                    if progress.resumes:
                        recorder.say_where_it_starts()
                    _say_first(job, run, console)
                    job.inform_policies(run.path("."), lambda share: console.busy(0, "reading the ids", share))
                    _predict(job, progress, console)
                    states = FinalStates(job, progress, run)
                    _train_steps(job, recorder, states, interrupts)
                    if not job.trainer.is_finite():
                        raise progress.not_finite("parameters")
                    if resolved.inference.inference_only:
                        _serve(job, progress, run, console)
                    summary = _save(arguments, job, recorder, states, config)
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(str(error) or recorder.interrupted()) from error
            finally:
                discard_next_uses(run.path("."))
            trace = run.path(TRACE_FILE)
            where = f"\ntrace: {trace}, for https://ui.perfetto.dev" if trace.exists() else ""
            console.finish(f"{summary}\nreport: {run.path('report.html')}, and report.md as text{where}")


def _build_job(options: Resolved, dataset: Dataset, run: RunDirectory, console: Console) -> Job:
    return build_job(options, dataset, run.path("."), partial(console.busy, 0, "counting the rows of batches"))


def _refuse_several_processes(environment: Mapping[str, str]) -> None:
    """Ends what ``torchrun`` started more than once: every process would train the same run in the same directory.

    Args:
        environment: of this process.

    Raises:
        UserError: it is one of several.
    """
    count = environment.get("WORLD_SIZE", "1")
    if "RANK" in environment and count.isdecimal() and int(count) > 1:
        raise UserError(
            f"torchrun started {count} processes and a run is one: start python -m cachedlrm.train without torchrun; "
            "for more than one machine holds, go on in TorchRec (python -m cachedlrm.export --format torchrec)"
        )


class _RunLog:
    """Where a run's metrics go: the display, ``metrics.jsonl``, TensorBoard and, in the end, the report.

    Args:
        job: the run.
        progress: what is measured.
        run: the directory.
        console: the display.
    """

    def __init__(self, job: Job, progress: Progress, run: RunDirectory, console: Console) -> None:
        self.progress = progress
        self.run = run
        self.console = console
        self.rows, self._num_cut = run.read_metrics(progress.steps) if progress.resumes else ([], 0)
        self.scalars = Scalars(run.path("."), self.rows, progress.steps) if job.options.run.tensorboard else None

    def record(self) -> None:
        """Takes a snapshot; the host waits for the device."""
        if not self.progress.has_news:
            self._complete_last_line()
            return
        snapshot = self.progress.snapshot()
        self.rows.append(metrics_row(snapshot))
        self.run.append_metrics(self.rows[-1])
        if self.scalars is not None:
            self.scalars.add(self.rows[-1])
        self.console.update(snapshot)

    def _complete_last_line(self) -> None:
        """Adds an evaluation to the line of its step, which an earlier process wrote."""
        steps = self.progress.steps
        is_there = bool(self.rows) and self.rows[-1]["step"] == steps
        row = (self.rows.pop() if is_there else {"step": steps}) | evaluation_values(self.progress.evaluation)
        self.rows.append(row)
        self.run.append_metrics(row, replaces_last=is_there)
        self.progress.recorded()

    def say_where_it_starts(self) -> None:
        """Tells of a resumed run how far it was, and what becomes of what it measured beyond that."""
        steps, total = self.progress.steps, self.progress.num_steps
        where = f"goes on after step {steps:,} of {total:,}, its last checkpoint"
        if not steps:
            where = f"{self.run.path('.')} has no checkpoint of a step: starts at step 1 of {total:,}"
        elif steps == total:
            where = f"all {total:,} steps are trained"
        kept = ""
        if self._num_cut:
            kept = f"; lines of metrics beyond it, {self._num_cut:,}, are kept in {self.run.path(CUT_METRICS_FILE)}"
        self.console.message(where + kept)

    def interrupted(self) -> str:
        """Records the steps since the last snapshot; says what an interrupted run leaves behind."""
        if self.progress.has_news and not self.run.keeps:
            with suppress(UserError):  # the interrupt is what ends this run
                self.record()
        when = f"after step {self.progress.steps}" if self.progress.steps else "before the first step"
        if self.run.keeps:
            return f"interrupted {when}; go on with --resume {self.run.path('.')}"
        kept = "nothing was written"
        if (report := self.run.path("report.md")).exists():
            has_final = self.run.path(FILE_NAME).exists()
            kept = f"{report} is written" + ("" if has_final else f", {FILE_NAME} is not")
        elif self.run.has_results:
            kept = f"{self.run.path('metrics.jsonl')} keeps the metrics"
            if self.run.path(FILE_NAME).exists():
                kept += f" and {FILE_NAME} the state of the best evaluation"
        return f"interrupted {when}; {kept}"

    def close(self) -> None:
        """Nothing more will be recorded."""
        if self.scalars is not None:
            self.scalars.close()


def _say_first(job: Job, run: RunDirectory, console: Console) -> None:
    """Tells the user what matters before the first step."""
    if job.options.run.debug_mode:
        console.message(aligned(describe(job.architecture, job.dataset.table_names)))
    for note in (*job.dataset.notes, *filter(None, [job.note])):
        console.message(note)
    samples, source = job.schedule.num_steps * job.options.batches.mini_batch_size, job.dataset.train
    num_lookups = samples * sum(source.max_lookups_per_bag)
    final, temporary = most_bytes(job.trainer.cache, job.options, num_lookups)
    copies = 2 if job.options.evaluation.keep_best else 1  # one replaces the other
    files = {run.path(FILE_NAME): copies * final}
    if temporary:
        files[job.trainer.cache.durable_database.path / TEMPORARY_FILE] = temporary
    for warning in short_of_space(files):
        console.message(warning)


def _predict(job: Job, progress: Progress, console: Console) -> None:
    """Predicts the run, for the report to compare."""
    if job.options.cache.predict and job.schedule.num_steps:
        doing = "planning the first batches"
        console.busy(progress.steps, doing)
        tell = partial(console.busy, progress.steps, doing)
        prediction = predict(job.options, job.dataset, job.tiers, tell=tell)
        progress.predicted(prediction)
        console.message(prediction.summary())


def _train_steps(job: Job, recorder: _RunLog, states: FinalStates, interrupts: Interrupts) -> None:
    """The loop. The host waits for the device only to log, to evaluate and to save."""
    trainer, schedule, test = job.trainer, job.schedule, job.dataset.test
    progress, console = recorder.progress, recorder.console
    checkpoints = Checkpoints(job, progress, recorder.run, interrupts)

    def pauses_after(index: int) -> bool:
        return (test is not None and schedule.evaluates_after(index)) or checkpoints.due_after(index)

    def settle() -> None:
        """Does what is due after the last batch trained."""
        if progress.needs_evaluation:
            with checkpoints.interruptible(), trace.range("evaluate"):
                _evaluate(job, recorder)
        if progress.due and not progress.needs_evaluation:
            with interrupts.held():  # no line is lost or written twice
                recorder.record()  # synchronises
        if states.owes:
            console.busy(progress.steps, "keeping the best state")
            with interrupts.held(), progress.paused():
                states.keep(checkpoints.save_now if checkpoints.is_kept else None)
        if progress.is_evaluated and progress.ends_because:
            batches.finish()

    prepared = trainer.cache.prepare(schedule.batches(job.first_batch), job.first_batch)
    depth = job.options.cache.prefetch_depth
    with (
        closing(Prefetcher(prepared, depth, trainer.cache.trained, pauses_after)) as batches,
        progress.running(),
        checkpoints.around(batches),
        StepTrace(job, progress, recorder.run, console, interrupts) as trace,
    ):
        settle()  # what an interrupt left undone
        for batch in trace.steps(batches):
            with interrupts.held():  # a step that has begun is finished
                progress.received(batch)
                progress.trained(batch, trainer.step(batch))
            settle()
            checkpoints.trained(batch.tensors.index)
            console.advance(progress.steps)
            progress.waits()


def _evaluate(job: Job, recorder: _RunLog) -> None:
    """Evaluates on the held-out samples."""
    assert job.dataset.test is not None
    progress, run = recorder.progress, recorder.run
    tell = partial(recorder.console.busy, progress.steps, "evaluating")
    with progress.paused():  # synchronises
        evaluation = job.trainer.evaluate(
            job.dataset.test,
            job.options.batches.test_mini_batch_size,
            job.group_by,
            job.options.cache.prefetch_depth,
            tell,
        )
        if not np.isfinite(evaluation.predictions).all():
            raise progress.not_finite("predictions of held-out samples")
        is_kept = not job.options.evaluation.keep_best or progress.is_better(evaluation)
        if job.options.run.save_predictions and is_kept:
            run.write_array("predictions.npy", evaluation.predictions)
    progress.evaluated(evaluation)


def _serve(job: Job, progress: Progress, run: RunDirectory, console: Console) -> None:
    """Evaluates the model as it is to be served."""
    console.busy(progress.steps, "evaluating")
    report, predictions = run_inference(job)
    progress.served(report)
    if job.options.run.save_predictions:
        run.write_array("predictions.npy", predictions)


def _save(arguments: Sequence[str], job: Job, recorder: _RunLog, states: FinalStates, config: str) -> str:
    """The files of a finished run, small ones first: where a disk is full, what was measured is not lost.

    Returns:
        The run in one line.
    """
    run, report = recorder.run, recorder.progress.report(arguments)
    shown = Run(str(run.path(".")), report, recorder.rows, job.options, config)
    run.write_text("report.json", report_json(report))
    run.write_text("report.md", report_markdown(shown))
    run.write_text("report.html", run_page(shown))
    recorder.console.busy(recorder.progress.steps, f"writing {FILE_NAME}")
    try:
        states.finish()
        save_models(job, report, run.path("model.onnx"), states.tables)
    except UserError as error:
        raise UserError(f"{error}; {run.path('report.md')} is there") from error
    verdict = worse_than_mean(shown)
    return one_line(report) + (f"\n{verdict}" if verdict else "")


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
