"""Runs are read from their directories; what is damaged there is one line, and nothing changes."""

import json
import shutil
from pathlib import Path

import pytest

from cachedlrm.report.__main__ import main
from support.runs import one_line, train


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """The directory of a small run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert train(run, "--steps=8", "--print-freq=2", "--test-freq=4") == 0
    return run


def test_a_report_of_an_earlier_version_is_read_too(ended, capsys, tmp_path):
    shutil.copytree(ended, tmp_path / "old")
    path = tmp_path / "old" / "report.json"
    report = json.loads(path.read_text())
    for key in ("tables", "host_limit_bytes"):
        del report[key]
    path.write_text(json.dumps(report))
    assert main([str(tmp_path / "old"), f"--html={tmp_path / 'page.html'}"]) == 0


LINE = b'{"step": 2, "loss": 0.5}\n'
DAMAGE = [
    ("report.json", None, "report.json is missing; name the directory of a run that ended"),
    ("report.json", b"", "report.json is not the report of a run: Input data was truncated"),
    ("report.json", b"\xff", "report.json is not text in UTF-8"),
    ("report.json", b"[1]", "report.json is not the report of a run: Expected `object`, got `array`"),
    ("report.json", b"{}", "report.json is not the report of a run: Object missing required field `steps`"),
    ("report.json", b"[" * 200_000, "report.json is not the report of a run"),
    ("report.json", b'{"steps": ' + b"9" * 6000 + b"}", "report.json is not the report of a run"),
    ("config.toml", None, "config.toml is missing"),
    ("config.toml", b"[cache]\ncolour = 1\n", "config.toml: [cache] colour is not an option"),
    ("config.toml", b"\xff", "config.toml is not text in UTF-8"),
    ("metrics.jsonl", None, "metrics.jsonl is missing"),
    ("config.toml", b"[cache\n", "config.toml is not valid TOML"),
    ("metrics.jsonl", b"", "metrics.jsonl: line 1: "),
    ("metrics.jsonl", LINE + b"{", "metrics.jsonl: line 2: "),
    ("metrics.jsonl", LINE + b'{"step": NaN}\n', "metrics.jsonl: line 2: it has no step"),
    ("metrics.jsonl", LINE + LINE, "metrics.jsonl: line 2: its step 2 does not follow step 2"),
    ("metrics.jsonl", LINE + b'\n{"step": 3}\n', "metrics.jsonl: line 2: "),
    ("metrics.jsonl", b'{"step": 2, "loss": "x"}\n', "metrics.jsonl: line 1: its loss is no number"),
]


@pytest.mark.parametrize(("name", "data", "words"), DAMAGE, ids=range(len(DAMAGE)))
def test_damage_is_one_line(ended, capsys, tmp_path, name, data, words):
    run = tmp_path / "run"
    run.mkdir()
    for file in ("report.json", "metrics.jsonl", "config.toml"):
        shutil.copy(ended / file, run)
    (run / name).unlink()
    if data is not None:
        (run / name).write_bytes(data)
    message = one_line(capsys, main([str(run), f"--html={tmp_path / 'page.html'}"]))
    assert str(run) in message
    assert words in message
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_went_on_beyond_its_report_is_refused(ended, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 0.5}\n')
    message = one_line(capsys, main([str(run)]))
    assert f"{run} went on beyond its report: {run / 'metrics.jsonl'} is at step 10, report.json at step 8" in message
    assert message.endswith(f"finish it with python -m cachedlrm.train --resume {run}\n")
