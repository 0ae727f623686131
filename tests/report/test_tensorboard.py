"""``--tensorboard``: the numbers of metrics.jsonl, as TensorBoard itself reads them from the run directory."""

import importlib.util
import json
import signal
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from cachedlrm import train as train_module
from cachedlrm.base.errors import UserError
from cachedlrm.report.tensorboard import Scalars, tag
from cachedlrm.train import main
from support.runs import one_line, train

OPTIONS = ["--gpu-cache-rows=300", "--print-freq=3", "--test-freq=6"]  # 20 steps


def shown(run: Path) -> list[tuple[int, float, dict[str, float]]]:
    """Step, time and values by tag of each line that TensorBoard shows."""
    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    lines: dict[tuple[int, float], dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            lines.setdefault((event.step, event.wall_time), {})[name] = event.value
    return [(step, wall_time, lines[step, wall_time]) for step, wall_time in sorted(lines)]


def without_times(run: Path) -> list[tuple[int, dict[str, float]]]:
    return [(step, values) for step, _, values in shown(run)]


def expected(run: Path) -> list[tuple[int, dict[str, float]]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        (row["step"], {tag(k): float(np.float32(v)) for k, v in row.items() if k != "step" and v is not None})
        for row in rows
    ]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was killed after lines which it then lost, and went on."""
    run = tmp_path_factory.mktemp("resumed") / "run"
    assert train(run, *OPTIONS, "--tensorboard", "--checkpoint-every=6", "--steps=6") == 0
    with closing(SummaryWriter(str(run / "tensorboard"))) as killed:
        for step in (7, 9):
            killed.add_scalar("learning/loss", 99.0, step)
    assert main([f"--resume={run}", "--ui=off", "--steps=20"]) == 0
    return run


def test_every_number_of_every_line_is_a_scalar(tmp_path):
    run = tmp_path / "run"
    assert train(run, *OPTIONS, "--tensorboard") == 0
    assert without_times(run) == expected(run)
    lines = shown(run)
    assert [step for step, _, _ in lines] == [3, 6, 9, 12, 15, 18, 20]
    assert "learning/auc" not in lines[0][2], "before the first evaluation"
    names = {"learning/loss", "learning/auc", "cache/hit_ratio", "phases/plan_ms", "memory/host_bytes"}
    assert names < lines[-1][2].keys()
    assert lines[0][1] < lines[-1][1]


def test_a_run_that_goes_on_repeats_no_step(resumed):
    assert len(list((resumed / "tensorboard").iterdir())) == 3
    assert without_times(resumed) == expected(resumed)


def test_a_run_that_goes_on_elsewhere_has_the_lines_before_too(resumed, tmp_path):
    run = tmp_path / "run"
    assert main([f"--resume={resumed}", f"--run-dir={run}", "--ui=off", "--steps=22"]) == 0
    assert without_times(run) == expected(run)
    assert [step for step, _, _ in shown(run)] == [3, 6, 9, 12, 15, 18, 20, 21, 22]
    times = [wall_time for _, wall_time, _ in shown(run)]
    assert times == sorted(times)


def test_an_interrupted_run_has_all_its_lines(tmp_path, monkeypatch):
    step_of = train_module.Progress.trained

    def trained(self, batch, losses):
        step_of(self, batch, losses)
        if self.steps == 5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_module.Progress, "trained", trained)
    assert train(tmp_path / "run", *OPTIONS, "--tensorboard") == 130
    assert without_times(tmp_path / "run") == expected(tmp_path / "run")
    assert shown(tmp_path / "run")[-1][0] == 5


def test_a_place_that_cannot_be_written_is_named(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").write_text("in the way")
    message = one_line(capsys, train(run, *OPTIONS, "--tensorboard"))
    assert f"cannot write {run / 'tensorboard'}: File exists; choose another --run-dir" in message


@pytest.mark.parametrize("fits", [0, 1, 3])
def test_lines_before_are_written_by_a_later_process_where_they_did_not_fit(tmp_path, monkeypatch, capsys, fits):
    rows = [{"step": step, "loss": 0.5} for step in (1, 2, 3)]
    write, written = RecordWriter.write, []

    def full(self, data):
        written.append(data)
        if len(written) > fits:
            raise OSError(28, "No space left on device")
        write(self, data)

    hook = threading.excepthook
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", full)
        with closing(Scalars(tmp_path, rows[:2], 2)) as failed, pytest.raises(UserError, match="No space"):
            failed.add(rows[2])
    assert threading.excepthook is hook
    assert capsys.readouterr().err == ""
    with closing(Scalars(tmp_path, rows[:2], 2)) as later:
        later.add(rows[2])
    assert [step for step, _, _ in shown(tmp_path)] == [1, 2, 3]


def test_other_threads_that_fail_are_shown(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(threading, "excepthook", lambda failure: seen.append(failure.exc_value))
    with closing(Scalars(tmp_path)) as scalars:
        scalars.add({"step": 1, "loss": 0.5})
        thread = threading.Thread(target=lambda: {}["x"])
        thread.start()
        thread.join()
    assert [type(error) for error in seen] == [KeyError]


def test_a_missing_package_is_named_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = one_line(capsys, train(tmp_path / "run", "--tensorboard"))
    assert message.endswith("--tensorboard needs the package tensorboard: pip install 'cachedlrm[tensorboard]'\n")
    assert not (tmp_path / "run").exists()
