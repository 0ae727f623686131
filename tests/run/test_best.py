"""``--keep-best``, ``--stop-after`` and ``--stop-at-auc``: which state is left, whatever ends the process."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cachedlrm import train as train_module
from cachedlrm.export.final_state import saved_step
from cachedlrm.run import best
from cachedlrm.train import main
from support.runs import one_line, parameters, report, train

BEST, STEPS = 28, 56
"""The model learns its 2,000 samples by heart: the evaluation after step 28 is the best."""
OVERFITS = ["--optimizer=adam", "--learning-rate=0.02", "--test-freq=7", "--save-predictions", "--print-freq=9"]
STORES = {
    "host": ["--gpu-cache-ratio=0.2"],
    "host with checkpoints": ["--gpu-cache-ratio=0.2", "--checkpoint-every=10", "--prefetch-depth=2"],
    "lmdb": ["--gpu-cache-ratio=0.2", "--store=lmdb", "--host-budget=150000", "--prefetch-depth=2"],
}


def left(run: Path) -> dict[str, bytes]:
    """Parameters, state and predictions that a run left, and those of its model file."""
    state = {name: array.tobytes() for name, array in parameters(run, with_optimizer_state=True).items()}
    with safe_open(str(run / "final.safetensors"), "numpy") as file:
        state |= {name: file.get_tensor(name).tobytes() for name in file.keys() if name.startswith("optimizer.")}  # noqa: SIM118
    return state | {"predictions": np.load(run / "predictions.npy").tobytes()}


def losses(run: Path) -> list[tuple[int, float, float | None]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["auc"]) for line in lines]


@pytest.fixture(scope="module")
def at_best(tmp_path_factory) -> dict[str, bytes]:
    """What a run leaves that ends at the best step."""
    run = tmp_path_factory.mktemp("best") / "run"
    assert train(run, *OVERFITS, f"--steps={BEST}", f"--save-model={run / 'model.pt'}") == 0
    return left(run) | {"model": model(run / "model.pt")}


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory) -> Path:
    """A run that leaves its last state."""
    run = tmp_path_factory.mktemp("last") / "run"
    assert train(run, *OVERFITS, f"--steps={STEPS}") == 0
    return run


def model(path: Path) -> bytes:
    content = torch.load(path, weights_only=True)
    state = content["opt_state_dict"]["state"]
    tensors = [*content["state_dict"].values(), *(entry["exp_avg"] for entry in state.values())]
    return b"".join(tensor.numpy().tobytes() for tensor in tensors)


@pytest.mark.parametrize("store", STORES)
def test_the_state_of_the_best_evaluation_is_left(tmp_path, at_best, overfitted, store, capsys):
    run = tmp_path / "run"
    arguments = [*STORES[store], f"--save-model={run / 'model.pt'}", "--ui=plain"]
    assert train(run, *OVERFITS, f"--steps={STEPS}", "--keep-best", *arguments) == 0
    assert left(run) | {"model": model(run / "model.pt")} == at_best
    assert losses(run) == losses(overfitted)  # keeping changed nothing of training
    made, last = report(run), report(overfitted)
    assert made["evicted_rows"] > 100
    assert made["fetched_rows"] > 100
    assert (made["best_step"], made["evaluated_step"], last["evaluated_step"]) == (BEST, BEST, STEPS)
    assert made["evaluations"] == last["evaluations"]
    assert made["auc"] == made["evaluations"][BEST // 7 - 1]["auc"] > last["auc"]
    assert sum(one["samples"] for one in made["calibration_bins"]) == 250
    assert made["calibration_bins"] != last["calibration_bins"]
    assert not list(run.glob("best-*"))
    out = capsys.readouterr().out
    assert (
        f"AUC {made['auc']:.4f}, logloss {made['logloss']:.5f} at step 28, the best, kept (the last, at step 56" in out
    )


def test_every_evaluation_is_at_its_own_step(overfitted):
    by_step = {step: auc for step, _, auc in losses(overfitted)}
    evaluations = report(overfitted)["evaluations"]
    assert {step: auc for step, auc in by_step.items() if auc is not None} == {
        one["step"]: one["auc"] for one in evaluations
    }
    assert [one["step"] for one in evaluations] == list(range(7, STEPS + 1, 7))
    assert sorted(by_step) == sorted({*range(7, STEPS + 1, 7), *range(9, STEPS, 9)})
    text = (overfitted / "report.md").read_text()
    assert "(the best, at step 28: AUC 0.69" in text
    assert "Worse than predicting the mean" in text


def test_a_run_that_is_killed_without_checkpoints_leaves_the_best_state(tmp_path, monkeypatch, at_best):
    run, trained = tmp_path / "run", train_module.Progress.trained

    def dies(self, batch, step_losses):
        trained(self, batch, step_losses)
        if self.steps == 40:
            raise RuntimeError("as if it was killed")

    monkeypatch.setattr(train_module.Progress, "trained", dies)
    with pytest.raises(RuntimeError, match="killed"):
        train(run, *OVERFITS, f"--steps={STEPS}", "--keep-best", *STORES["host"])
    assert left(run) == {name: data for name, data in at_best.items() if name != "model"}


@pytest.mark.parametrize("store", ["host with checkpoints", "lmdb"])
@pytest.mark.parametrize("place", ["before", "written", "saved", "after"])
def test_the_best_state_survives_a_kill_at_any_instant(tmp_path, monkeypatch, at_best, overfitted, store, place):
    """Before its file is there, before the checkpoint knows of it, before it has its name, and afterwards."""
    run, done = tmp_path / "run", []

    def dying(function, when):
        def call(*arguments, **options):
            target = Path(arguments[-1] if when == "saved" else arguments[0])
            if saved_step(run / "best-28.safetensors") == BEST or (when == "before" and "best-28" in target.name):
                raise RuntimeError("as if it was killed")
            return function(*arguments, **options)

        return call

    trained = train_module.Progress.trained

    def dies_later(self, batch, step_losses):
        trained(self, batch, step_losses)
        if self.steps == 39:
            done.append(saved_step(run / "final.safetensors"))
            raise RuntimeError("as if it was killed")

    with monkeypatch.context() as patch:
        if place == "before":
            patch.setattr(best, "save_final_state", dying(best.save_final_state, "before"))
        elif place == "written":
            patch.setattr("cachedlrm.run.saving.save_checkpoint", dying_save(run))
        elif place == "saved":
            patch.setattr(os, "replace", dying(os.replace, "saved"))
        else:
            patch.setattr(train_module.Progress, "trained", dies_later)
        with pytest.raises(RuntimeError, match="killed"):
            train(run, *OVERFITS, f"--steps={STEPS}", "--keep-best", *STORES[store])
    assert main([f"--resume={run}", "--ui=off"]) == 0
    assert left(run) == {name: data for name, data in at_best.items() if name != "model"}
    assert losses(run) == losses(overfitted)
    assert not list(run.glob("best-*"))
    assert done == ([BEST] if place == "after" else [])


def dying_save(run: Path):
    """Ends before the checkpoint that would know of the best state."""
    from cachedlrm.run import saving  # noqa: PLC0415 - the name that is patched

    save = saving.save_checkpoint

    def call(*arguments, **options):
        if saved_step(run / "best-28.safetensors") == BEST:
            raise RuntimeError("as if it was killed")
        return save(*arguments, **options)

    return call


@pytest.mark.parametrize(
    ("options", "end", "why"),
    [
        (["--stop-after=2"], 42, "ended early: --stop-after 2: no evaluation since step 28 has a better auc"),
        (["--stop-after=2", "--monitor=logloss", "--prefetch-depth=2"], 42, "since step 28 has a better logloss"),
        (["--stop-at-auc=0.69"], 28, "ended early: AUC 0.6954 at step 28 reached --stop-at-auc 0.69"),
    ],
)  # fmt: skip
def test_a_run_ends_by_its_evaluations(tmp_path, capsys, overfitted, options, end, why):
    run = tmp_path / "run"
    arguments = [*OVERFITS, f"--steps={STEPS}", "--ui=plain", "--checkpoint-every=100", *options]
    assert train(run, *arguments) == 0
    assert why in capsys.readouterr().out
    made = report(run)
    assert (made["steps"], made["evaluated_step"]) == (end, end)
    assert losses(run) == [line for line in losses(overfitted) if line[0] <= end]
    assert main([f"--resume={run}", "--ui=off"]) == 0  # it has ended
    assert report(run)["steps"] == end
    if "--stop-after=2" in options:
        assert main([f"--resume={run}", "--ui=off", "--stop-after=9"]) == 0
        assert losses(run) == losses(overfitted)
        assert report(run)["stopped"] is None


def test_an_evaluation_that_is_asked_for_later_joins_its_step(tmp_path):
    run = tmp_path / "run"
    assert train(run, "--steps=9", "--test-freq=-1", "--print-freq=3", "--checkpoint-every=100") == 0
    assert [auc for _, _, auc in losses(run)] == [None, None, None]
    assert main([f"--resume={run}", "--ui=off", "--test-freq=9"]) == 0
    assert [step for step, _, _ in losses(run)] == [3, 6, 9]
    assert losses(run)[-1][2] == report(run)["auc"] is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep-best", "--test-freq=-1"], "--keep-best needs evaluations and --test-freq is -1"),
        (["--stop-after=0"], "--stop-after"),
        (["--stop-at-auc=1.5"], "above 0 and at most 1"),
        (["--keep-best", "--inference-only"], "--keep-best is about training and --inference-only does none"),
        (["--gauc-table=9"], "--gauc-table 9: there is no such column; give a number from 0 to 3"),
        (["--gauc-table=user"], "--gauc-table user: there is no such column"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, capsys, options, words):
    assert words in one_line(capsys, train(tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_which_state_is_kept_cannot_change(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "--steps=3", "--checkpoint-every=100") == 0
    message = one_line(capsys, main([f"--resume={run}", "--ui=off", "--keep-best"]))
    assert "--keep-best True" in message
