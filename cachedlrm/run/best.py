"""``--keep-best``: the state of the best evaluation is the run's final state.

It is written when it is found, as ``final.safetensors``, so it is there whenever the process ends. A run that keeps a
log must go on, after ``kill -9`` at any instant, with the file of the best evaluation that its checkpoint knows: it
writes the new file beside the old one, saves a checkpoint that knows it, and only then replaces the old one.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from cachedlrm.base.files import writing
from cachedlrm.export.final_state import FILE_NAME, load_final_state, save_final_state, saved_step
from cachedlrm.export.full_tables import FullTable, TouchedRecords, current_records, full_tables
from cachedlrm.options.run_files import OTHER_RUN_DIR
from cachedlrm.run.directory import RunDirectory
from cachedlrm.run.job import Job
from cachedlrm.run.progress import Progress


class FinalStates:
    """Writes the final state of a run, at its end or with ``--keep-best`` at each better evaluation.

    Args:
        job: the run.
        progress: which knows the best evaluation.
        run: the directory.
    """

    def __init__(self, job: Job, progress: Progress, run: RunDirectory) -> None:
        self._job = job
        self._progress = progress
        self._path = run.path(FILE_NAME)
        self._keeps_best = job.options.evaluation.keep_best
        if self._keeps_best and progress.resumes:
            self._recover()

    def _beside(self, step: int) -> Path:
        """The file of a best evaluation that is not yet the final state."""
        return self._path.with_name(f"best-{step}.safetensors")

    def _recover(self) -> None:
        """Leaves the state of the best evaluation that the checkpoint knows, and no other."""
        best = self._progress.best
        with writing(self._path, OTHER_RUN_DIR):
            if best is not None and saved_step(self._beside(best.step)) == best.step:
                os.replace(self._beside(best.step), self._path)
            for path in self._path.parent.glob("best-*.safetensors"):
                path.unlink()

    @property
    def owes(self) -> bool:
        """Whether the rows are now those of the best evaluation, and not kept yet."""
        if not self._keeps_best or not self._progress.is_evaluated:
            return False
        return self._progress.best is self._progress.evaluation and not self.has_best

    @property
    def has_best(self) -> bool:
        """Whether the file holds the state of the best evaluation."""
        best = self._progress.best
        return self._keeps_best and best is not None and saved_step(self._path) == best.step

    def keep(self, checkpoint: Callable[[], None] | None) -> None:
        """Keeps the present state. Call it while nothing is in flight.

        Args:
            checkpoint: saves one that lasts; None: the run keeps none.

        Raises:
            UserError: it could not be written.
        """
        if checkpoint is None:
            self._write(self._path)
            return
        beside = self._beside(self._progress.steps)
        self._write(beside)
        checkpoint()
        with writing(self._path, OTHER_RUN_DIR):
            os.replace(beside, self._path)

    def finish(self) -> None:
        """Writes the state after the last step, unless that of the best evaluation is kept.

        Raises:
            UserError: it could not be written.
        """
        if not self.has_best:
            self._write(self._path)

    def tables(self) -> list[FullTable]:
        """All tables of the final state; the layers and their optimizer become those of that state.

        Call it after `finish`; the run trains no more.
        """
        job, trainer = self._job, self._job.trainer
        if not self.has_best or saved_step(self._path) == self._progress.steps:
            return full_tables(job.architecture, current_records(trainer.cache))
        state = load_final_state(self._path.parent, job.options, job.architecture)
        trainer.model.load_state_dict({name: torch.from_numpy(array) for name, array in state.dense.items()})
        if state.dense_state:
            trainer.load_optimizer_state(state.dense_state)
        trainer.num_batches = state.num_updates - trainer.steps_before
        records = [
            saved if saved.rows is None else TouchedRecords(group.init, saved.rows, saved.between, group.layout.width)
            for group, saved in zip(trainer.cache.groups, state.groups, strict=True)
        ]
        return full_tables(job.architecture, records)

    def _write(self, path: Path) -> None:
        trainer, started = self._job.trainer, self._job.started
        save_final_state(
            path,
            trainer.cache,
            trainer.model,
            self._job.options,
            self._job.dataset.vocabulary,
            dense_state=trainer.optimizer_state(),
            step=self._progress.steps,
            num_updates=trainer.num_updates,
            beginnings=() if started is None else started.beginnings,
            kept_rows=None if started is None else started.kept_rows,
        )
