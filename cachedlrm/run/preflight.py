"""Models that a run leaves for others: ``--save-model`` and ``--save-onnx``, checked before training."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cachedlrm.base.errors import UserError, check_package
from cachedlrm.base.units import format_bytes
from cachedlrm.export.formats.model_file import Training, save_model
from cachedlrm.export.full_tables import FullTable
from cachedlrm.options.resolved import Resolved
from cachedlrm.report.record import Report
from cachedlrm.run.job import Job
from cachedlrm.store.spool import TEMPORARY_FILE


def check_outputs(options: Resolved) -> None:
    """Refuses what would otherwise fail after hours of training.

    Raises:
        UserError: a place cannot be written, or a package is missing.
    """
    path = options.inference.save_model
    if path is not None:
        if path.is_dir():
            raise UserError(f"--save-model {path} is a directory; name a file")
        is_made_by_run = path.parent == options.run.run_dir
        if not is_made_by_run and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise UserError(f"--save-model {path}: cannot write into {path.parent}; name a file in another place")
    if options.inference.save_onnx:
        check_package("--save-onnx", "onnx", "onnx")
    if options.run.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs the package tensorboard: pip install 'cachedlrm[tensorboard]'")


def short_of_space(files: Mapping[Path, int]) -> Iterator[str]:
    """A warning for each disk on which the files of the end of a run might not fit, all of them together.

    How many rows will be touched is not known before, so that is no reason to refuse a run.

    Args:
        files: the most bytes of each, by path; its folder is there.
    """
    by_disk: dict[int, list[Path]] = {}
    for path in files:
        by_disk.setdefault(path.parent.stat().st_dev, []).append(path)
    for paths in by_disk.values():
        most, free = sum(files[path] for path in paths), shutil.disk_usage(paths[0].parent).free
        if free < most:
            yield (
                f"{' and '.join(map(str, paths))} may take up to {format_bytes(most)} and {format_bytes(free)} are "
                "free there; free space before the run ends, or choose another --run-dir"
                + (" or --store-path" if paths[-1].name == TEMPORARY_FILE else "")
            )


def save_models(job: Job, report: Report, onnx_path: Path, final_tables: Callable[[], list[FullTable]]) -> None:
    """Writes what the options ask for, of a run that has no batch in flight.

    Args:
        job: the run.
        report: its record.
        onnx_path: for ``--save-onnx``.
        final_tables: gives the tables to write, and brings the layers to the same state.

    Raises:
        UserError: a file could not be written.
    """
    inference, trainer = job.options.inference, job.trainer
    if inference.save_model is None and not inference.save_onnx:
        return
    tables = final_tables()
    if inference.save_model is not None:
        save_model(
            inference.save_model,
            job.architecture,
            job.options.optimisation,
            tables=tables,
            dense=trainer.model.state_dict(),
            dense_state=trainer.optimizer_state(),
            steps=trainer.num_updates,
            next_step=trainer.num_batches + 1,
            training=_training(job, report),
            vocabulary=job.dataset.vocabulary,
        )
    if inference.save_onnx:
        from cachedlrm.export.formats.onnx import save_onnx  # noqa: PLC0415 - needs an optional package

        save_onnx(onnx_path, job.architecture, tables, trainer.model)


def _training(job: Job, report: Report) -> Training:
    schedule, batches, test = job.schedule, job.options.batches, job.dataset.test
    # The reference goes on after these steps if they are of the first epoch; it waits forever for a later one, so
    # such a file says that training goes on from the first sample.
    in_first_epoch = report.steps <= schedule.steps_per_epoch
    return Training(
        nepochs=batches.nepochs,
        nbatches=schedule.steps_per_epoch,
        nbatches_test=-(-test.num_samples // batches.test_mini_batch_size) if test is not None else 0,
        epoch=0,
        iter=report.steps if in_first_epoch else 0,
        train_loss=report.loss_mean or 0.0,
        total_loss=0.0,
        test_acc=report.accuracy or 0.0,
    )
