"""A checkpoint into the store and back, and what a store says it belongs to."""

import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.vocabulary import IDS_AS_THEY_ARE
from cachedlrm.export.final_state import model_identity
from cachedlrm.options.resolved import Resolved
from cachedlrm.run.checkpoint import (
    keeps_log,
    open_durability,
    restore_trainer,
    save_checkpoint,
    store_folder,
    store_identity,
)
from cachedlrm.store.checkpoint_value import Checkpoint
from cachedlrm.store.database import Meta, open_database
from cachedlrm.store.environment import CHECKPOINT
from support.options import built_job, resolved
from support.runs import SMALL

SHAPES = [(1335, 24)]
CASE = [*SMALL, "--optimizer=adam", "--checkpoint-every=5"]


def resuming(run_dir: Path) -> Resolved:
    """The options of a run that goes on; its directory needs no config.toml."""
    options = resolved(*CASE)
    return replace(options, run=replace(options.run, resume=run_dir))


@pytest.mark.parametrize(
    ("arguments", "keeps"), [([], False), (["--checkpoint-every=5"], True), (["--store=lmdb"], True)]
)
def test_a_log_is_kept_for_checkpoints_and_for_rows_on_disk(arguments, keeps):
    assert keeps_log(resolved(*SMALL, *arguments)) == keeps


def test_the_store_is_in_the_run_unless_a_path_is_given(tmp_path):
    assert store_folder(resolved(*SMALL), tmp_path) == tmp_path / "store"
    elsewhere = tmp_path / "elsewhere"
    assert store_folder(resolved(*SMALL, "--store=lmdb", f"--store-path={elsewhere}"), tmp_path) == elsewhere


def test_a_store_belongs_to_the_model_and_to_the_file_it_was_loaded_from(tmp_path):
    options = resolved(*SMALL)
    assert store_identity(options) == model_identity(options)
    path = tmp_path / "m.pt"
    path.write_bytes(bytes(12))
    os.utime(path, ns=(5, 7))
    options = resolved(*SMALL, f"--load-model={path}")
    content = "of 12 bytes with checksum 7bd5c66f"
    assert store_identity(options) == {**model_identity(options), "load-model-file": content}


@pytest.mark.parametrize("option", ["load-model", "start-from"])
def test_a_store_belongs_to_the_content_of_the_file_that_it_begins_with(tmp_path, option):
    """A copy is the same one; the time that earlier releases recorded is known, too."""
    path = tmp_path / "final.safetensors"
    path.touch()
    options = resolved(*SMALL, f"--load-model={path}")
    kind, name = "file", "load-model-file"
    if option == "start-from":
        options = resolved(*SMALL)
        options = replace(options, run=replace(options.run, start_from=tmp_path))
        kind, name = "state", "start-from-file"
    said = []
    for content, time in ((b"12", 7), (b"12", 8), (b"13", 8)):
        path.write_bytes(content)
        os.utime(path, ns=(5, time))
        said.append(store_identity(options)[name])
    assert said[0] == said[1] == "of 2 bytes with checksum 4f5344cd"
    assert said[1] != said[2]
    earlier = {**store_identity(options), name: "of 2 bytes at 8"}
    database = open_database(tmp_path / "store", earlier, SHAPES, 1 << 20, resumes=False)
    database.write(Meta(CHECKPOINT, b"x"))
    database.close()
    for time, words in ((8, "is damaged"), (9, f"of a run with a --{option} {kind} of 2 bytes at 8, and this run has")):
        os.utime(path, ns=(5, time))
        going_on = replace(options, run=replace(options.run, resume=tmp_path))
        with pytest.raises(UserError, match=words):
            open_durability(going_on, tmp_path, SHAPES, 1 << 30)


def test_a_shuffled_run_of_an_earlier_release_is_refused(tmp_path):
    """Its samples were dealt out in another way, so it would see some twice."""
    options = resolved(*SMALL, "--shuffle")
    identity = store_identity(options)
    del identity["shuffle-order"]
    database = open_database(tmp_path / "store", identity, SHAPES, 1 << 20, resumes=False)
    database.write(Meta(CHECKPOINT, b"x"))
    database.close()
    words = "of a run with order of --shuffle 1, and this run has order of --shuffle 3; go on with the release that"
    with pytest.raises(UserError, match=words):
        open_durability(replace(options, run=replace(options.run, resume=tmp_path)), tmp_path, SHAPES, 1 << 30)


def test_a_checkpoint_restores_another_trainer(tmp_path):
    with closing(built_job(tmp_path / "a", *CASE)) as job:
        trainer = job.trainer
        (batch,) = trainer.cache.prepare([job.schedule.read(0)])
        trainer.step(batch)
        trainer.steps_before = 3
        save_checkpoint(trainer, 1, 0, {"steps": 1})
        trainer.cache.durable_database.wait()
        dense = {name: tensor.numpy().copy() for name, tensor in trainer.model.state_dict().items()}
        state = {
            name: {key: value.numpy().copy() for key, value in entry.items()}
            for name, entry in trainer.optimizer_state().items()
        }
    options = resuming(tmp_path / "a")
    durability, checkpoint = open_durability(options, tmp_path / "a", SHAPES, 1 << 30, IDS_AS_THEY_ARE)
    with closing(durability.database):
        assert (checkpoint.batches, checkpoint.steps_before, checkpoint.progress) == (1, 3, {"steps": 1})
        assert not durability.spills
        assert durability.ends == checkpoint.ends
    with closing(built_job(tmp_path / "b", *CASE)) as job:
        assert any((tensor.numpy() != dense[name]).any() for name, tensor in job.trainer.model.state_dict().items())
        restore_trainer(job.trainer, checkpoint)
        assert job.trainer.steps_before == 3
        assert all((tensor.numpy() == dense[name]).all() for name, tensor in job.trainer.model.state_dict().items())
        restored = job.trainer.optimizer_state()
        assert restored.keys() == state.keys()
        for name, entry in state.items():
            assert all((restored[name][key].numpy() == value).all() for key, value in entry.items())


def test_a_checkpoint_of_another_model_is_one_line(tmp_path):
    with closing(built_job(tmp_path, *CASE)) as job:
        checkpoint = Checkpoint(1, ((0, 0),), {"x": np.zeros(1, np.float32)}, {})
        with pytest.raises(UserError, match=r"^the checkpoint does not fit the model: .*; start the run again$"):
            restore_trainer(job.trainer, checkpoint)


def test_a_checkpoint_of_other_groups_lets_others_open_the_store(tmp_path):
    with closing(built_job(tmp_path, *CASE)) as job:
        save_checkpoint(job.trainer, 0, 0, {})
    options = resuming(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match="is damaged: it is of 1 groups of tables, not 2; put back a copy"):
            open_durability(options, tmp_path, [*SHAPES, (5, 3)], 1 << 30, IDS_AS_THEY_ARE)
