"""When a run saves its state, and where a resumed one finds it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cachedlrm.base.errors import UserError
from cachedlrm.base.program import Interrupts
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.export.final_state import FILE_NAME
from cachedlrm.options.profiles import load_options
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import OTHER_RUN_DIR
from cachedlrm.run.checkpoint import keeps_log, save_checkpoint, store_folder
from cachedlrm.run.directory import RunDirectory
from cachedlrm.run.job import Job
from cachedlrm.run.progress import Progress
from cachedlrm.store.database import copy_store


class Checkpoints:
    """Saves a run's state when ``--checkpoint-every`` says so, at the end, and at an interrupt.

    Args:
        job: the run.
        progress: what it has counted.
        run: its directory.
        interrupts: signals.
    """

    def __init__(self, job: Job, progress: Progress, run: RunDirectory, interrupts: Interrupts) -> None:
        self._job = job
        self._progress = progress
        self._run = run
        self._interrupts = interrupts
        self._is_kept = keeps_log(job.options)
        self._trained = job.first_batch
        self._saved = job.first_batch
        self._has_saved = job.checkpoint is not None

    def due_after(self, batch: int) -> bool:
        """Whether a checkpoint is due after batch ``batch`` of the run, so that nothing may be prepared beyond it."""
        return self._is_kept and self._job.schedule.checkpoint_after(batch)

    @contextmanager
    def around(self, batches: Prefetcher) -> Iterator[None]:
        """Goes around the loop over ``batches``, which an interrupt ends at the next batch boundary, with a checkpoint.

        Raises:
            UserError: what the run left could not be written.
            KeyboardInterrupt: at the end, if there was a signal.
        """
        if not self._is_kept:
            yield
            return
        self._batches = batches
        with self._interrupts.held():
            yield
            if self._saved < self._trained or not self._has_saved:
                self._save()
            self._job.trainer.cache.durable_database.wait()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A signal ends the block; without checkpoints it ends the run, as it does elsewhere."""
        if not self._is_kept:
            yield
            return
        with suppress(KeyboardInterrupt), self._interrupts.let_through():
            yield

    def trained(self, batch: int) -> None:
        """Batch ``batch`` of the run is trained.

        Raises:
            UserError: an earlier checkpoint could not be written.
        """
        self._trained = batch + 1
        if not self._is_kept:
            return
        if self._interrupts.came:
            self._batches.finish()  # what is prepared is still trained: its rows are in their slots
        if self.due_after(batch):
            self._save()

    def save_now(self) -> None:
        """Saves the state after the last batch trained; returns when it is on the disk.

        Raises:
            UserError: it could not be written.
        """
        self._trained = self._job.trainer.num_batches
        self._save()
        self._job.trainer.cache.durable_database.wait()

    @property
    def is_kept(self) -> bool:
        """Whether the run keeps checkpoints."""
        return self._is_kept

    def _save(self) -> None:
        save_checkpoint(self._job.trainer, self._trained, self._saved, self._progress.state())
        self._saved, self._has_saved = self._trained, True
        self._run.keep()


def open_run(options: Resolved) -> RunDirectory:
    """The directory of a run: a new one, that of ``--resume``, or with ``--run-dir`` another with a copy of its store.

    Raises:
        UserError: it is in use, holds a run or none, or cannot be written.
    """
    resumed = options.run.resume
    if resumed is None:
        return RunDirectory.create(options.run.run_dir)
    before = load_options(resumed / "config.toml")
    if not keeps_log(before):
        raise UserError(f"--resume {resumed} kept no checkpoints: it was started without --checkpoint-every")
    if options.run.run_dir is None or options.run.run_dir.absolute() == resumed.absolute():
        return RunDirectory.reopen(resumed)
    with RunDirectory.reopen(resumed):
        return _fork(options, options.run.run_dir, store_folder(before, resumed), resumed)


def _fork(options: Resolved, run_dir: Path, store: Path, resumed: Path) -> RunDirectory:
    """A new directory that goes on where ``resumed`` is, which stays as it is."""
    target = store_folder(options, run_dir)
    if target == store:
        raise UserError(
            f"--run-dir {run_dir} would go on in the store of {resumed}; give its copy a --store-path, "
            "or leave --run-dir out to go on in place"
        )
    run = RunDirectory.create(run_dir)
    try:
        copy_store(store, target)
        metrics = resumed / "metrics.jsonl"
        kept = [*resumed.glob("best-*.safetensors"), resumed / FILE_NAME] if options.evaluation.keep_best else []
        for path in (metrics, *kept):
            if path.exists():
                shutil.copyfile(path, run.path(path.name))
    except OSError as error:
        run.abandon()
        raise UserError(f"cannot copy {resumed}: {error.strerror or error}; {OTHER_RUN_DIR}") from error
    except BaseException:
        run.abandon()
        raise
    return run
