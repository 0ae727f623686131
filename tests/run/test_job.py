"""A run before its first step: what goes on from a checkpoint, and what is refused."""

from contextlib import closing

import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.run import job as module
from cachedlrm.store.checkpoint_value import Checkpoint
from cachedlrm.store.database import open_database
from cachedlrm.store.environment import DATA_FILE
from cachedlrm.train import main
from simcuda import simulated_cuda
from support.options import built_job
from support.runs import SMALL, one_line, train

LMDB = ["--store=lmdb", "--host-budget=1MiB", "--gpu-cache-ratio=0.2"]


def test_an_end_before_the_checkpoint_is_refused(tmp_path, capsys):
    assert train(tmp_path / "run", "--steps=6", *LMDB) == 0
    capsys.readouterr()
    message = one_line(capsys, main([f"--resume={tmp_path / 'run'}", "--ui=off", "--steps=5"]))
    assert "6 batches are trained" in message
    assert "--steps" in message


def test_an_accumulated_batch_that_was_cut_short_is_not_gone_on_with(tmp_path, capsys):
    """Its last mini-batch was skipped without a word."""
    run, accumulated = tmp_path / "run", "--mlperf-grad-accum-iter=2"
    assert train(run, "--steps=5", accumulated, *LMDB) == 0
    assert main([f"--resume={run}", "--ui=off"]) == 0
    capsys.readouterr()
    message = one_line(capsys, main([f"--resume={run}", "--ui=off", "--steps=8"]))
    assert "it ended after step 5, which cut 2 mini-batches of --mlperf-grad-accum-iter short" in message


def test_a_new_run_begins_at_the_first_batch(tmp_path):
    with closing(built_job(tmp_path, *SMALL, "--optimizer=adam")) as job:
        assert (job.first_batch, job.checkpoint, job.note) == (0, None, None)
        assert [group.num_rows for group in job.tiers.step.groups] == [1335]
        assert job.trainer.learning_rate(1) == job.options.optimisation.learning_rate
        assert torch.get_num_threads() == 1, "--threads"


@pytest.mark.skipif(torch.cuda.is_available(), reason="simulates a device")
def test_a_budget_is_a_limit_of_the_allocator(tmp_path):
    with simulated_cuda(total_bytes=1 << 30, computes=False) as machine:
        for budget, limit in ((["--gpu-budget=200MiB"], 200 << 20), ([], 1 << 30)):
            with closing(built_job(tmp_path, *SMALL, *budget, "--device=cuda")):
                assert machine.allocators[0].limit_bytes == limit


@pytest.mark.parametrize(
    "option",
    [
        *[
            "--eps=0.1 --dense-eps=1e-10",
            "--weight-decay=5",
            "--dense-optimizer=sgd",
            "--dense-learning-rate=0.1",
            "--dense-eps=0.1",
        ],
        *["--dense-weight-decay=5", "--clip-grad-norm=0.01", "--lr-policy=linear"],
    ],
)
def test_every_option_of_the_optimizers_reaches_them(tmp_path, option):
    """That they do what torch does is shown of `Trainer`, in tests/promises/test_exactness.py."""

    def losses(*options: str) -> list[list[float]]:
        with closing(built_job(tmp_path, *SMALL, "--steps=3", *options)) as job:
            return [job.trainer.step(batch).tolist() for batch in job.trainer.cache.prepare(job.schedule.batches())]

    usual, changed = losses(), losses(*option.split())
    assert changed[0] == usual[0]
    assert changed[-1] != usual[-1]


def test_a_job_that_fails_leaves_its_store_to_others(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "EmbeddingCache", fails)
    with pytest.raises(UserError, match="cannot be reserved; lower --gpu-cache-ratio or --host-budget"):
        built_job(tmp_path, *SMALL, *LMDB)
    assert (tmp_path / "store" / DATA_FILE).exists()
    open_database(tmp_path / "store", {"model": "a"}, [(1335, 8)], 1 << 20, resumes=False).close()


@pytest.mark.parametrize(
    ("batches", "counters", "compares"),
    [(0, None, True), (5, {"moved_rows_min": 7}, True), (5, {"moved_rows_min": 0}, False), (5, None, False)],
)
def test_min_is_counted_on_if_it_was_counted_from_the_beginning(batches, counters, compares):
    progress = {} if counters is None else {"counters": counters}
    assert module._compares_with_min(Checkpoint(batches, (), {}, {}, 0, progress)) == compares
