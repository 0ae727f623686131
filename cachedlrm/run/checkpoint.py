"""Checkpoints: the state after some batch, so that a run killed at any moment goes on with the bits it would have had.

Rows and their optimizer state are in the logs (`cachedlrm.store.record_log`); everything else is one value, written
after them (`cachedlrm.store.checkpoint_value`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cachedlrm.base.errors import UserError
from cachedlrm.cache.table_group import Durability
from cachedlrm.data.batch import Dataset
from cachedlrm.data.fingerprint import difference, file_fingerprint, take_fingerprint
from cachedlrm.data.shuffle import ORDER
from cachedlrm.export.final_state import FILE_NAME, model_identity
from cachedlrm.options.config import Options
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import STORE_FOLDER
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.checkpoint_value import Checkpoint, decode_checkpoint
from cachedlrm.store.database import Database, Meta, open_database
from cachedlrm.store.environment import CHECKPOINT, DATA, SHUFFLE_ORDER, VOCABULARY, Shapes

_MOST_PENDING_BYTES = 256 << 20


def store_folder(options: Options, run_dir: Path) -> Path:
    """Where a run's logs are."""
    return options.store.store_path or run_dir / STORE_FOLDER


def keeps_log(options: Options) -> bool:
    """Whether a run has logs at all."""
    run = options.run
    return options.store.store == "lmdb" or run.checkpoint_every is not None or run.resume is not None


def open_durability(
    options: Resolved, run_dir: Path, shapes: Shapes, host_limit: int, vocabulary: str | None = None
) -> tuple[Durability, Checkpoint | None]:
    """Opens or makes a run's store; with ``--resume`` its checkpoint too, if it came to one.

    Args:
        options: resolved.
        run_dir: of the run.
        shapes: rows and columns of each group of tables.
        host_limit: bytes that records in memory may take.
        vocabulary: fingerprint of what the rows stand for; None: not on record.

    Raises:
        UserError: the store is in use, of another run, damaged, or cannot be written.
    """
    path = store_folder(options, run_dir)
    spills = options.store.store == "lmdb"
    pending = min(_MOST_PENDING_BYTES, host_limit // 4) if spills else _MOST_PENDING_BYTES
    resumes = options.run.resume is not None
    identity = store_identity(options, vocabulary)
    database = open_database(path, identity, shapes, pending, resumes=resumes, before=_identity_before(options))
    try:
        checkpoint = _read_checkpoint(database, len(shapes)) if resumes else None
    except BaseException:
        database.close()
        raise
    return Durability(database, spills, None if checkpoint is None else checkpoint.ends), checkpoint


def store_identity(options: Resolved, vocabulary: str | None = None) -> dict[str, str]:
    """The run that a store belongs to; that of a loaded model, or of a finished run, includes the file."""
    identity = model_identity(options)
    if vocabulary is not None:
        identity[VOCABULARY] = vocabulary
    if options.data.shuffle:
        identity[SHUFFLE_ORDER] = str(ORDER)
    for name, path in _begins_with(options).items():
        size, checksum = file_fingerprint(path)
        identity[name] = f"of {size} bytes with checksum {checksum:08x}"
    return identity


def _identity_before(options: Resolved) -> dict[str, str]:
    """What earlier releases recorded in place of what `store_identity` has."""
    files = {name: path.stat() for name, path in _begins_with(options).items()}
    return {name: f"of {about.st_size} bytes at {about.st_mtime_ns}" for name, about in files.items()}


def _begins_with(options: Resolved) -> dict[str, Path]:
    """The files that a run's rows come from, by the names that stores have for them."""
    files = {}
    if options.inference.load_model is not None:
        files["load-model-file"] = options.inference.load_model
    if options.run.start_from is not None:
        files["start-from-file"] = options.run.start_from / FILE_NAME
    return files


def _read_checkpoint(database: Database, num_groups: int) -> Checkpoint | None:
    data = database.read_meta(CHECKPOINT)
    if data is None:
        return None
    try:
        checkpoint = decode_checkpoint(data)
        if len(checkpoint.ends) != num_groups:
            raise ValueError(f"it is of {len(checkpoint.ends)} groups of tables, not {num_groups}")
    except ValueError as error:
        raise database.damaged(str(error)) from error
    return checkpoint


def check_data(database: Database, dataset: Dataset, resumed: Path | None, has_checkpoint: bool) -> str | None:
    """Compares the data with those of the run so far, and records what they are.

    Args:
        database: of the run.
        dataset: that is to be trained on.
        resumed: the run that goes on, for messages.
        has_checkpoint: whether it has trained on data before.

    Returns:
        What the user should know; else None.

    Raises:
        UserError: they are not the same; names what differs.
    """
    now = take_fingerprint(dataset.contents)
    encoded, before, note = json.dumps(now).encode(), database.read_meta(DATA), None
    if has_checkpoint and before is None:
        note = f"{resumed} does not say what its data were (an earlier release wrote it): they are taken to be the same"
    elif has_checkpoint and before is not None:
        try:
            changed = difference(json.loads(before), now)
        except ValueError as error:
            raise database.damaged(str(error)) from error
        if changed is not None:
            raise UserError(
                f"--resume {resumed}: {changed}; put back the data that the run began with, or start another run "
                "without --resume"
            )
    if before != encoded:
        database.write(Meta(DATA, encoded))
    return note


def restore_trainer(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Takes over dense parameters and optimizer state.

    Raises:
        UserError: they are not those of this model.
    """
    try:
        dense = {name: torch.from_numpy(array) for name, array in checkpoint.dense.items()}
        trainer.model.load_state_dict(dense)
        if checkpoint.dense_state:
            trainer.load_optimizer_state(checkpoint.dense_state)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"the checkpoint does not fit the model: {str(error).splitlines()[0]}; start the run again"
        ) from error
    trainer.steps_before, trainer.num_batches = checkpoint.steps_before, checkpoint.batches


def save_checkpoint(trainer: Trainer, batches: int, since: int, progress: Mapping[str, Any]) -> None:
    """Queues a checkpoint; training may go on while it is written. Call it while nothing is in flight.

    Args:
        trainer: after the last of ``batches``.
        batches: trained so far.
        since: batches that the last checkpoint had.
        progress: what the run has counted.

    Raises:
        UserError: an earlier write has failed.
    """
    checkpoint = Checkpoint(
        batches,
        tuple(trainer.cache.save(since)),
        {name: tensor.detach().cpu().numpy() for name, tensor in trainer.model.state_dict().items()},
        {
            name: {key: value.detach().cpu().numpy() for key, value in entry.items()}
            for name, entry in trainer.optimizer_state().items()
        },
        trainer.steps_before,
        progress,
    )
    trainer.cache.durable_database.write(Meta(CHECKPOINT, checkpoint.encode()))
    trainer.cache.saved()
