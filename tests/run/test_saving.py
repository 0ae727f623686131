"""When a run saves its state, and where one that goes on finds it."""

import shutil

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.base.program import Interrupts
from cachedlrm.options.run_files import LOCK_FILE
from cachedlrm.run import saving as module
from cachedlrm.run.saving import Checkpoints, open_run
from cachedlrm.train import main
from support.options import built_job, resolved
from support.runs import SMALL, one_line, train

LMDB = ["--store=lmdb", "--host-budget=1MiB", "--gpu-cache-ratio=0.2"]


def resume(run, *arguments: str) -> int:
    return main([f"--resume={run}", "--ui=off", *arguments])


def test_what_cannot_be_resumed_is_said(tmp_path, capsys):
    assert "config.toml is missing" in one_line(capsys, resume(tmp_path / "nothing"))
    assert train(tmp_path / "plain", "--steps=2") == 0
    capsys.readouterr()
    assert "--checkpoint-every" in one_line(capsys, resume(tmp_path / "plain"))
    assert train(tmp_path / "run", "--steps=2", *LMDB) == 0
    capsys.readouterr()
    shutil.rmtree(tmp_path / "run" / "store")
    assert "holds no store" in one_line(capsys, resume(tmp_path / "run"))


class Progress:
    def state(self) -> dict:
        return {}


class Kept:
    """A run directory that counts how often it is kept."""

    times = 0

    def keep(self) -> None:
        self.times += 1


class Batches:
    """A prefetcher that is told to finish."""

    finished = False

    def finish(self) -> None:
        self.finished = True


def checkpoints(tmp_path, monkeypatch, *arguments: str) -> tuple[Checkpoints, list[tuple[int, int]], Kept, Interrupts]:
    """Of a run that trains nothing, the batches of each checkpoint and those of the one before."""
    saved: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "save_checkpoint", lambda _, batches, since, state: saved.append((batches, since)))
    job = built_job(tmp_path, *SMALL, *arguments)
    kept, interrupts = Kept(), Interrupts()
    job.close()
    monkeypatch.setattr(type(job.trainer.cache), "durable_database", Waits())
    return Checkpoints(job, Progress(), kept, interrupts), saved, kept, interrupts


class Waits:
    def wait(self) -> None:
        pass


def test_checkpoints_come_when_they_are_due_and_at_the_end(tmp_path, monkeypatch):
    found, saved, kept, _ = checkpoints(tmp_path, monkeypatch, "--checkpoint-every=3")
    with found.around(Batches()):
        for batch in range(7):
            assert found.due_after(batch) == (batch in (2, 5))
            found.trained(batch)
    assert saved == [(3, 0), (6, 3), (7, 6)]
    assert kept.times == 3


def test_a_checkpoint_at_the_end_is_not_written_twice(tmp_path, monkeypatch):
    found, saved, _, _ = checkpoints(tmp_path, monkeypatch, "--checkpoint-every=3")
    with found.around(Batches()):
        for batch in range(3):
            found.trained(batch)
    assert saved == [(3, 0)]


def test_a_run_of_no_batches_leaves_a_checkpoint(tmp_path, monkeypatch):
    found, saved, _, _ = checkpoints(tmp_path, monkeypatch, "--checkpoint-every=3")
    with found.around(Batches()):
        pass
    assert saved == [(0, 0)]


def test_without_the_option_nothing_is_saved(tmp_path, monkeypatch):
    found, saved, kept, _ = checkpoints(tmp_path, monkeypatch)
    with found.around(Batches()):
        found.trained(0)
        assert not found.due_after(0)
    assert (saved, kept.times) == ([], 0)


def test_an_interrupt_trains_what_is_prepared_and_saves_it(tmp_path, monkeypatch):
    found, saved, _, interrupts = checkpoints(tmp_path, monkeypatch, "--checkpoint-every=100")
    batches = Batches()
    monkeypatch.setattr(type(interrupts), "came", True)

    def interrupted() -> None:
        with found.around(batches):
            found.trained(0)
            assert batches.finished
            found.trained(1)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert saved == [(2, 0)]


def test_a_copy_needs_a_store_of_its_own_and_a_failed_one_leaves_nothing(tmp_path, monkeypatch):
    run, copy, store = tmp_path / "run", tmp_path / "copy", tmp_path / "store"
    assert train(run, "--steps=2", *LMDB, f"--store-path={store}") == 0
    options = resolved(f"--resume={run}", f"--run-dir={copy}", f"--store-path={store}")
    with pytest.raises(UserError, match=f"--run-dir {copy} would go on in the store of {run}; give its copy a"):
        open_run(options)
    options = resolved(f"--resume={run}", f"--run-dir={copy}", f"--store-path={tmp_path / 'other'}")

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fails)
        with pytest.raises(UserError, match=f"cannot copy {run}: No space left on device; choose another --run-dir"):
            open_run(options)
    assert not (copy / "metrics.jsonl").exists()
    with open_run(resolved(f"--resume={run}")) as reopened:
        assert reopened.path("config.toml") == run / "config.toml"
        assert (run / LOCK_FILE).exists()
