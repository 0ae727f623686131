"""A run that stopped and goes on gives the bits of one that never stopped; what would change them is refused."""

import json
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from cachedlrm import train as train_module
from cachedlrm.export.__main__ import export
from cachedlrm.train import main
from support.runs import SMALL, one_line, train

STEPS = 20
STEPS_OPTION = f"--steps={STEPS}"
WHOLE = [STEPS_OPTION, "--print-freq=1", "--test-freq=10", "--optimizer=adam", "--numpy-rand-seed=3"]
LMDB = ["--store=lmdb", "--host-budget=1MiB", "--gpu-cache-ratio=0.2"]


def result(run: Path) -> tuple[bytes, list[float], dict]:
    out = run / "out.safetensors"
    export(run, out, with_optimizer_state=True)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    report = json.loads((run / "report.json").read_text())
    assert losses == report["losses"]
    return out.read_bytes(), losses, report


def saved_rows(model: Path) -> list[bytes]:
    """Of each table of a model file; the file itself holds the time."""
    state = torch.load(model, weights_only=True)["state_dict"]
    return [state[f"emb_l.{table}.weight"].numpy().tobytes() for table in range(4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(run, *WHOLE) == 0
    return result(run)


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT) -> None:
    """A signal comes while step ``step`` is trained, once."""
    step_of = train_module.Progress.trained

    def trained(self, batch, losses):
        step_of(self, batch, losses)
        if self.steps == step:
            signal.raise_signal(number)

    monkeypatch.setattr(train_module.Progress, "trained", trained)


def resume(run: Path, *arguments: str) -> int:
    return main([f"--resume={run}", "--ui=off", *arguments])


def test_a_run_ends_alike_wherever_its_rows_are(tmp_path):
    ends = []
    for name, options in [
        ("resident", ["--gpu-cache-ratio=1.0"]),
        ("disk", ["--gpu-cache-ratio=0.02", "--store=lmdb", "--host-budget=150000"]),
    ]:
        run = tmp_path / name
        tables = "--arch-embedding-size=4000-300-9000-50"
        assert (
            train(
                run,
                *WHOLE,
                tables,
                "--data=zipf:samples=9000",
                "--mini-batch-size=400",
                f"--save-model={run / 'model.pt'}",
                *options,
            )
            == 0
        )
        with safe_open(str(run / "final.safetensors"), "numpy") as file:
            rows = file.get_tensor("rows.0")
            ends.append((rows.tolist(), file.get_tensor("records.0").tobytes(), saved_rows(run / "model.pt")))
    report = json.loads((run / "report.json").read_text())
    assert report["evicted_rows"] > 500
    assert report["fetched_rows"] > 500
    assert len(rows) * report["record_bytes"] > 2 * 150_000  # most of them are in the log
    assert (rows[1:] > rows[:-1]).all()
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("depth", "number"), [(0, signal.SIGINT), (0, signal.SIGHUP), (2, signal.SIGTERM)])
@pytest.mark.parametrize("store", [LMDB, ["--gpu-cache-ratio=0.2"]], ids=["lmdb", "host"])
def test_an_interrupted_run_saves_and_goes_on(tmp_path, monkeypatch, capsys, whole, store, depth, number):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(7, patch, number)
        assert train(run, *WHOLE, *store, f"--prefetch-depth={depth}", "--checkpoint-every=1000") == 130
    error = capsys.readouterr().err
    reached = int(re.search(r"interrupted after step (\d+); go on with --resume", error)[1])
    assert 7 <= reached <= 7 + (depth + 1 if depth else 0), "only what was prepared is still trained"
    assert not (run / "report.json").exists()
    assert resume(run) == 0
    records, losses, report = result(run)
    assert (records, losses) == whole[:2]
    assert report["auc"] == whole[2]["auc"]
    assert report["lookups"] == whole[2]["lookups"]
    assert report["first_touch_rows"] == whole[2]["first_touch_rows"]
    for key in ("lookups", "working_set_rows", "touched_rows"):  # of each table, before and after the interrupt
        assert [table[key] for table in report["tables"]] == [table[key] for table in whole[2]["tables"]]
    assert report["evicted_rows"] > 0
    assert report["fetched_rows"] > 0


def test_rows_of_16_bits_go_on_with_the_noise_of_their_steps(tmp_path, monkeypatch, capsys):
    kept = ["--row-dtype=fp16", "--row-state-dtype=bf16"]
    assert train(tmp_path / "whole", *WHOLE, *kept) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(7, patch)
        assert train(run, *WHOLE, *kept, *LMDB, "--checkpoint-every=4") == 130
    assert resume(run) == 0
    (records, losses, report), whole = result(run), result(tmp_path / "whole")
    assert (records, losses, report["auc"]) == (*whole[:2], whole[2]["auc"])
    assert report["evicted_rows"] > 0
    assert report["fetched_rows"] > 0
    assert (report["record_bytes"], report["row_dtype"]) == (48, "fp16")  # of 96
    assert report["written_back_bytes"] == 48 * report["written_back_rows"]
    capsys.readouterr()
    # Neither the run nor its store is taken for one of other rows, both of which are named.
    error = one_line(capsys, resume(run, "--row-dtype=fp32"))
    assert "--row-dtype fp32: the run in" in error
    assert "--row-dtype fp16" in error
    (tmp_path / "other").mkdir()
    error = one_line(capsys, train(tmp_path / "other", *WHOLE, *LMDB, f"--store-path={run / 'store'}"))
    assert "of a run with --row-dtype fp16, and this run has --row-dtype fp32; choose another --store-path" in error


@pytest.mark.parametrize(
    "change",
    [
        ["--gpu-cache-ratio=0.5"],
        ["--gpu-cache-rows=250", "--policy=static"],
        ["--gpu-budget=10MiB", "--policy=lookahead", "--lookahead=3"],
        ["--store=host", "--host-budget=10MiB"],
        ["--checkpoint-every=1", "--prefetch-depth=0"],
        ["--profile=rtx3050-4gb", "--policy=lookahead", "--lookahead=3", "--count-rows=False"],
        [*SMALL[:-1], *WHOLE],
    ],
    ids=lambda change: change[0],
)
def test_what_changes_no_bit_may_change(tmp_path, monkeypatch, whole, change):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(11, patch)
        assert train(run, *WHOLE, *LMDB) == 130
    assert resume(run, *change) == 0
    assert result(run)[:2] == whole[:2]


APART = {
    "momentum": ["--optimizer=rwsadagrad", "--eps=1e-4", "--dense-optimizer=sgd", "--dense-momentum=0.9"],
    "adamw": ["--optimizer=adam", "--dense-optimizer=adamw", "--dense-weight-decay=0.3", "--dense-learning-rate=0.005"],
    "adam": ["--optimizer=sgd", "--weight-decay=0.2", "--dense-optimizer=adam", "--dense-eps=1e-4"],
}


@pytest.mark.parametrize("name", APART)
def test_optimizers_apart_and_a_schedule_go_on(tmp_path, monkeypatch, name):
    options = [*WHOLE[:3], *WHOLE[4:], *APART[name], "--clip-grad-norm=0.05", "--lr-num-warmup-steps=4"]
    options += ["--lr-policy=polynomial", "--lr-end=0.002", "--lr-power=1.5"]
    assert train(tmp_path / "whole", *options) == 0
    expected = result(tmp_path / "whole")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(8, patch)
        assert train(run, *options, *LMDB) == 130
    assert resume(run) == 0
    found = result(run)
    assert found[:2] == expected[:2]
    assert found[2]["evicted_rows"] > 0
    for key in ("learning_rate", "dense_learning_rate"):
        lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, tmp_path / "whole")]
        rates = [[json.loads(line)[key] for line in part] for part in lines]
        assert rates[0] == rates[1]
        assert len(set(rates[0])) > 10
        assert found[2][key] == rates[0][-1]


def test_a_decay_ends_where_the_run_began_to_end(tmp_path):
    decays = ["--optimizer=adam", "--lr-policy=linear", "--lr-end=0.001", "--test-freq=-1", "--print-freq=1"]
    assert train(tmp_path / "run", *decays, "--steps=9", "--checkpoint-every=9") == 0
    assert resume(tmp_path / "run", "--steps=15") == 0
    assert train(tmp_path / "named", *decays, "--steps=15", "--lr-num-decay-steps=9") == 0
    assert result(tmp_path / "run")[:2] == result(tmp_path / "named")[:2]


def test_a_decay_that_has_not_begun_ends_where_the_longer_run_does(tmp_path):
    decays = ["--lr-policy=cosine", "--lr-num-warmup-steps=11", "--test-freq=-1", "--print-freq=1"]
    assert train(tmp_path / "run", *decays, "--steps=6", "--checkpoint-every=6") == 0
    assert resume(tmp_path / "run", "--steps=16") == 0
    assert train(tmp_path / "whole", *decays, "--steps=16") == 0
    assert result(tmp_path / "run")[:2] == result(tmp_path / "whole")[:2]


def test_moves_of_which_part_was_not_compared_are_not_compared_with_min(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupted_at(11, patch)
        assert train(run, *WHOLE, *LMDB) == 130
    assert resume(run, "--report-min") == 0
    report = result(run)[2]
    assert report["fetched_rows"] + report["first_touch_rows"] > 0
    assert report["moved_rows_min"] is None
    assert "MIN" not in (run / "report.md").read_text()


def test_a_signal_during_an_evaluation_saves_and_evaluates_later(tmp_path, monkeypatch, whole):
    run = tmp_path / "run"
    evaluate = train_module.build_job.__globals__["Trainer"].evaluate

    def interrupted(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("cachedlrm.run.job.Trainer.evaluate", interrupted)
        assert train(run, *WHOLE, *LMDB) == 130
    assert resume(run) == 0
    records, losses, report = result(run)
    assert (records, losses, report["auc"]) == (*whole[:2], whole[2]["auc"])
    aucs = [json.loads(line)["auc"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert aucs[8] is None
    assert aucs[9] is not None


@pytest.mark.parametrize("store", [LMDB, ["--gpu-cache-ratio=0.2"]], ids=["lmdb", "host"])
def test_an_evaluation_that_is_owed_comes_before_rows_move(tmp_path, monkeypatch, whole, store):
    """The prefetch thread is given time: were it running, it would move rows under the evaluation."""
    run, evaluate = tmp_path / "run", train_module.build_job.__globals__["Trainer"].evaluate
    prefetching, often = [], ["--test-freq=5" if option.startswith("--test-freq") else option for option in WHOLE]

    def interrupted(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return evaluate(self, *arguments)

    def patient(self, *arguments):
        time.sleep(0.3)
        prefetching.append(any(thread.name == "prefetch" for thread in threading.enumerate()))
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("cachedlrm.run.job.Trainer.evaluate", interrupted)
        assert train(run, *often, *store, "--prefetch-depth=2", "--checkpoint-every=1000") == 130
    with monkeypatch.context() as patch:
        patch.setattr("cachedlrm.run.job.Trainer.evaluate", patient)
        assert resume(run) == 0
    assert prefetching == [False, True, True, True]  # owed after step 5; then paused, after steps 10, 15 and 20
    records, losses, report = result(run)
    assert (records, losses, report["auc"]) == (*whole[:2], whole[2]["auc"])
    assert report["fetched_rows"] > 0
    wanted = tmp_path / "wanted"
    assert train(wanted, *often, *store, "--prefetch-depth=2") == 0
    aucs = [
        [json.loads(line)["auc"] for line in (one / "metrics.jsonl").read_text().splitlines()] for one in (run, wanted)
    ]
    assert aucs[0] == aucs[1]


def test_a_finished_run_goes_on_with_more_steps(tmp_path, whole):
    run = tmp_path / "run"
    assert train(run, *WHOLE[1:], *LMDB, "--steps=9") == 0
    assert resume(run, f"--steps={STEPS}", "--test-freq=10") == 0
    assert result(run)[:2] == whole[:2]


@pytest.mark.parametrize(
    ("every", "start"),
    [
        (1000, "has no checkpoint of a step: starts at step 1 of 20; lines of metrics beyond it, 7, are kept in"),
        (5, "goes on after step 5 of 20, its last checkpoint; lines of metrics beyond it, 2, are kept in"),
    ],
)
def test_a_resume_says_where_it_starts_and_keeps_what_was_measured(tmp_path, monkeypatch, capsys, whole, every, start):
    run, trained = tmp_path / "run", train_module.Progress.trained

    def dies(self, batch, losses):
        trained(self, batch, losses)
        if self.steps == 8:
            raise RuntimeError("as if it was killed")

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Progress, "trained", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(run, *WHOLE, *LMDB, f"--checkpoint-every={every}")
    measured = (run / "metrics.jsonl").read_text().splitlines()
    assert len(measured) == 7
    assert main([f"--resume={run}", "--ui=plain"]) == 0
    assert f"{start} {run / 'metrics.before_resume.jsonl'}\n" in capsys.readouterr().out
    assert result(run)[:2] == whole[:2]
    kept = (run / "metrics.before_resume.jsonl").read_text().splitlines()
    assert kept == measured[-len(kept) :]
    assert main([f"--resume={run}", "--ui=plain"]) == 0
    assert "all 20 steps are trained\n" in capsys.readouterr().out


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run = tmp_path / "run"
    assert train(run, *WHOLE, *LMDB) == 0
    before = result(run)[:2]
    assert resume(run) == 0
    assert result(run)[:2] == before


def test_a_copy_goes_on_and_the_original_stays(tmp_path, monkeypatch, whole):
    run, copy = tmp_path / "run", tmp_path / "copy"
    with monkeypatch.context() as patch:
        interrupted_at(7, patch)
        assert train(run, *WHOLE, *LMDB) == 130
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert resume(run, f"--run-dir={copy}") == 0
    assert result(copy)[:2] == whole[:2]
    after = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    before.pop("lock.mdb"), after.pop("lock.mdb")  # LMDB's table of readers
    assert after == before
    assert resume(run) == 0
    assert result(run)[:2] == whole[:2]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--numpy-rand-seed=4", ["--numpy-rand-seed 4", "--numpy-rand-seed 3"]),
        ("--learning-rate=0.5", ["--learning-rate 0.5", "--learning-rate 0.01"]),
        ("--mini-batch-size=50", ["--mini-batch-size 50", "--mini-batch-size 100"]),
        ("--arch-mlp-top=8-1", ["--arch-mlp-top 8-1", "--arch-mlp-top 16-1"]),
        ("--data=flights", ["--data flights", "--data zipf:samples=2000"]),
        ("--optimizer=sgd", ["--optimizer sgd", "--optimizer adam"]),
        ("--init=reference", ["--init reference", "--init counter"]),
        ("--bf16", ["--bf16", "--resume"]),
        ("--mlperf-grad-accum-iter=2", ["--mlperf-grad-accum-iter 2", "--mlperf-grad-accum-iter 1"]),
        ("--micro-batch-size=50", ["--micro-batch-size 50", "--micro-batch-size 100"]),
        ("--dense-optimizer=sgd", ["--dense-optimizer sgd", "no --dense-optimizer"]),
        ("--clip-grad-norm=1", ["--clip-grad-norm 1.0", "no --clip-grad-norm"]),
        ("--lr-policy=linear", ["--lr-policy linear", "--lr-policy reference"]),
        ("--lr-num-warmup-steps=3", ["--lr-num-warmup-steps 3", "--lr-num-warmup-steps 0"]),
    ],
)
def test_what_changes_bits_is_refused_with_both_sides(tmp_path, capsys, option, words):
    run = tmp_path / "run"
    assert train(run, *WHOLE[1:], *LMDB, "--steps=2") == 0
    capsys.readouterr()
    message = one_line(capsys, resume(run, option))
    for word in [*words, str(run)]:
        assert word in message


def test_a_store_path_of_its_own(tmp_path, capsys, whole):
    run, store = tmp_path / "run", tmp_path / "elsewhere" / "store"
    assert train(run, *WHOLE, *LMDB, f"--store-path={store}") == 0
    assert result(run)[:2] == whole[:2]
    assert not (run / "store").exists()
    message = one_line(capsys, train(tmp_path / "other", *WHOLE, *LMDB, f"--store-path={store}"))
    assert "--resume" in message
    assert not (tmp_path / "other").exists()
    message = one_line(
        capsys, train(tmp_path / "other", *WHOLE[:-1], *LMDB, f"--store-path={store}", "--numpy-rand-seed=9")
    )
    assert "numpy-rand-seed 3" in message
    assert "numpy-rand-seed 9" in message
    assert "--store lmdb or --checkpoint-every" in one_line(
        capsys, train(tmp_path / "other", *WHOLE, f"--store-path={store}")
    )
