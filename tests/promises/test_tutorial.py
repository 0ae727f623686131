"""docs/tutorial.md: its blocks, one after the other, in one folder."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

from cachedlrm.predict import main as predict
from cachedlrm.prepare.__main__ import main as prepare
from cachedlrm.report.__main__ import main as report
from cachedlrm.train import main as train
from support.documents import ROOT, blocks

PROGRAMS = {
    "cachedlrm.prepare": lambda words: prepare([*words, "--ui=off"]),
    "cachedlrm.train": lambda words: train([*words, "--ui=off", "--threads=1"]),
    "cachedlrm.predict": predict,
    "cachedlrm.report": report,
}


def measured(run: str) -> dict:
    return json.loads(Path("runs", run, "report.json").read_text())


def test_the_tutorial_runs_and_does_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        if block.language == "python":
            subprocess.run([sys.executable, "-W", "error", "-c", block.text], check=True, timeout=100)
            continue
        for line in block.text.splitlines():
            python, flag, module, *words = shlex.split(line)
            assert (python, flag) == ("python", "-m")
            assert PROGRAMS[module](words) == 0, line
    first, after = measured("day1"), measured("day2")
    assert first["evicted_rows"] > 0 < after["evicted_rows"]
    assert first["auc"] > 0.7 < after["auc"]
    assert first["normalized_entropy"] < 1
    assert len(np.load("predictions.npy")) == len(np.load("day2/test/test_labels.npy"))
    assert Path("comparison.html").stat().st_size > 10_000
