"""Checkpoints: the state after some batch, so that a run killed at any moment goes on with the bits it would have had.

Rows and their optimizer state are in the logs (`cachedlrm.store.record_log`). Everything else is one value, written
behind them: dense parameters, their optimizer's state, where each log ends, the number of batches trained and what the
run has counted. No random generator has a state to keep: samples and initial rows are functions of their numbers.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.cache.table_group import Durability
from cachedlrm.export.final_state import model_identity
from cachedlrm.options.config import Options
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.run_files import STORE_FOLDER
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.database import CHECKPOINT, Database, Meta, open_database

_MOST_PENDING_BYTES = 256 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What is not in the logs.

    Attributes:
        batches: trained before it.
        ends: of each group, the first segment behind it, and the `cachedlrm.store.segment.fingerprint` of those with a
            live record.
        dense: dense parameters by name.
        dense_state: their optimizer's, by parameter name and torch's key.
        steps_before: steps of an earlier run whose optimizer state was loaded.
        progress: of `cachedlrm.run.progress.Progress`.
    """

    batches: int
    ends: tuple[tuple[int, int], ...]
    dense: Mapping[str, NDArray[np.generic]]
    dense_state: Mapping[str, Mapping[str, NDArray[np.generic]]]
    steps_before: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """A CRC-32 (4 bytes, little-endian) of what follows it, a safetensors file."""
        tensors = {f"dense.{name}": np.array(array) for name, array in self.dense.items()}
        for name, entry in self.dense_state.items():
            tensors |= {f"state.{key}.{name}": np.array(array) for key, array in entry.items()}
        numbers = {
            "batches": self.batches,
            "boundaries": [boundary for boundary, _ in self.ends],
            "live_segments": [live for _, live in self.ends],
            "steps_before": self.steps_before,
            "progress": dict(self.progress),
        }
        body = safetensors.numpy.save(tensors, {"checkpoint": json.dumps(numbers)})
        return zlib.crc32(body).to_bytes(4, "little") + body


def decode_checkpoint(data: bytes) -> Checkpoint:
    """The inverse of `Checkpoint.encode`; it never runs what it reads.

    Raises:
        ValueError: it is no checkpoint, or damaged.
    """
    body = data[4:]
    if len(data) < 12 or zlib.crc32(body) != int.from_bytes(data[:4], "little"):
        raise ValueError("the checksum of the checkpoint is wrong")
    try:
        tensors = safetensors.numpy.load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        numbers = json.loads(header["__metadata__"]["checkpoint"])
        dense: dict[str, NDArray[np.generic]] = {}
        state: dict[str, dict[str, NDArray[np.generic]]] = {}
        for name, array in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "dense":
                dense[rest] = array
            else:
                key, _, parameter = rest.partition(".")
                state.setdefault(parameter, {})[key] = array
        batches, boundaries, before = numbers["batches"], numbers["boundaries"], numbers["steps_before"]
        live = numbers["live_segments"]
        whole = (batches, before, *boundaries, *live)
        if not all(isinstance(number, int) and 0 <= number < 2**62 for number in whole):
            raise ValueError("a count in the checkpoint is not a whole number")
        if len(live) != len(boundaries):
            raise ValueError(f"the checkpoint counts {len(live)} groups of tables and ends {len(boundaries)}")
        if not isinstance(numbers["progress"], dict):
            raise ValueError("the progress in the checkpoint is no object")
        ends = tuple(zip(boundaries, live, strict=True))
        return Checkpoint(batches, ends, dense, state, before, numbers["progress"])
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the checkpoint does not read: {error}") from error


def store_folder(options: Options, run_dir: Path) -> Path:
    """Where a run's logs are."""
    return options.store.store_path or run_dir / STORE_FOLDER


def keeps_log(options: Options) -> bool:
    """Whether a run has logs at all."""
    run = options.run
    return options.store.store == "lmdb" or run.checkpoint_every is not None or run.resume is not None


def open_durability(
    options: Resolved, run_dir: Path, num_groups: int, host_limit: int
) -> tuple[Durability, Checkpoint | None]:
    """Opens or makes a run's store; with ``--resume`` its checkpoint too, if it came to one.

    Args:
        options: resolved.
        run_dir: of the run.
        num_groups: groups of tables.
        host_limit: bytes that records in memory may take.

    Raises:
        UserError: the store is in use, of another run, damaged, or cannot be written.
    """
    path = store_folder(options, run_dir)
    spills = options.store.store == "lmdb"
    pending = min(_MOST_PENDING_BYTES, host_limit // 4) if spills else _MOST_PENDING_BYTES
    resumes = options.run.resume is not None
    database = open_database(path, store_identity(options), num_groups, pending, resumes)
    try:
        checkpoint = _read_checkpoint(database, num_groups) if resumes else None
    except BaseException:
        database.close()
        raise
    return Durability(database, spills, None if checkpoint is None else checkpoint.ends), checkpoint


def store_identity(options: Resolved) -> dict[str, str]:
    """What a store belongs to; that of a loaded model includes the file, whose rows begin untouched ones."""
    identity = model_identity(options)
    model = options.inference.load_model
    if model is not None:
        about = model.stat()
        identity["load-model-file"] = f"of {about.st_size} bytes at {about.st_mtime_ns}"
    return identity


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
    trainer.steps_before = checkpoint.steps_before


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
