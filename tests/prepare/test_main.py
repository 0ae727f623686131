"""The command line of prepare: its mistakes, its help, its display."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cachedlrm.prepare import progress as progress_module
from cachedlrm.prepare.__main__ import main
from cachedlrm.prepare.progress import Display
from support.raw_criteo import lines, prepare, write
from support.runs import one_line


def refusal(capsys, *arguments: object) -> str:
    return one_line(capsys, prepare(*arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["criteo", "--out=o"], "criteo needs files or folders to read"),
        (["criteo", "log"], "--out"),
        (["criteo", "log", "--out="], "--out needs a value, not an empty one"),
        (["criteo", "", "--out=o"], "PATH needs a value, not an empty one"),
        (["criteo", "log", "--out=o", "--memory=1MiB"], "--memory 1048576 is less than the libraries alone take"),
        (["criteo", "log", "--out=o", "--memory=much"], '"much" is not a size such as 2GiB'),
        (["criteo", "log", "--out=o", "--min-count=0"], "Must be 1 or more"),
        (["criteo", "log", "--out=o", "--max-ind-range=0"], "Must be -1, or 1 or more"),
        (["criteo", "log", "--out=o", f"--max-ind-range={2**31}"], "at most 2147483647"),
        (["criteo", "log", "--out=o", "--test-fraction=1"], "Must be from 0 to below 1"),
        (["criteo", "log", "--out=o", "--test-fraction=nan"], "Must be from 0 to below 1"),
        (["criteo", "log", "--out=o", "--test-fraction=.1", "--test-files=1"], "exclude each other"),
        (["criteo", "log", "--out=o", "--test-files=1"], "--test-files 1 leaves none of 1 to train on"),
        (["criteo", "log", "--out=o", "--bogus"], "--bogus"),
        (["criteo", "log", "--out=o", "--label=y"], "--label"),
        (["parquet", "log", "--out=o"], "--sparse"),
        (
            ["parquet", "log", "--out=o", "--sparse=a"],
            "without --label there is nothing to learn from; give it, or for",
        ),
        (["movielens", "log", "--out=o"], "movielens"),
        (["criteo", "none", "--out=o"], "none: no such file or folder"),
        (["criteo", "empty", "--out=o"], "empty: no files in this folder"),
        (["criteo", "log", "./log", "--out=o"], "a file is named twice"),
        (["criteo", "pipe", "--out=o"], "pipe: not a regular file"),
        (["criteo", "nothing", "--out=o"], "nothing: no samples to train on; name other files"),
        (["criteo", "binary", "--out=o"], "binary: line 1 is longer than 1 MiB; name a file with a sample a line"),
        (["criteo", "log", "--out=log"], "log is a file, not a directory; choose another --out"),
        (["criteo", "log", "--out=log/o"], "Not a directory; choose another --out"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    write(Path("log"), lines(20))
    Path("empty").mkdir()
    Path("nothing").touch()
    Path("binary").write_bytes(bytes(3 << 20))
    os.mkfifo("pipe")
    assert words in refusal(capsys, *arguments)
    assert not Path("o").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["criteo", "--help"], ["parquet", "--help"], ["--version"]])
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert capsys.readouterr().out


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    assert "pip install 'cachedlrm[prepare]'" in refusal(capsys, "criteo", "x", "--out", tmp_path / "o")


def test_an_output_without_held_out_samples_and_odd_names(tmp_path):
    out = tmp_path / "a b\x1b[2J"
    assert prepare("criteo", write(tmp_path / "tr\nain", lines(5)), "--out", out) == 0  # a seventh of 5 is none
    assert not (out / "test").exists()
    assert (out / "train_labels.npy").exists()


def test_the_module_runs_and_prints_lines_to_a_pipe(tmp_path):
    path = write(tmp_path / "train.txt", lines(50))
    command = [sys.executable, "-m", "cachedlrm.prepare", "criteo", path, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    stages = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert stages == ["reading", "numbering", "writing", str(tmp_path / "out")]
    assert done.stdout.endswith(": 43 samples to train on, 7 held out\n")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_lines_tell_rate_and_time_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Display("auto", stream).stage("reading", 1000) as stage:
        stage.update(100, 50)  # of a resumed stage
        for seconds, done in ((5, 200), (11, 320), (12, 340), (22, 540)):
            clock[0] = 100.0 + seconds
            stage.update(done, done // 2)
    assert stream.getvalue().splitlines() == [
        "reading: 160 samples, 10 a second, 0:00:34 left (32%)",
        "reading: 270 samples, 10 a second, 0:00:23 left (54%)",
        "reading: done in 0:00:22",
    ]


def test_a_terminal_has_a_bar_and_off_has_nothing(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    for mode, stream in (("auto", Terminal()), ("off", Terminal())):
        with Display(mode, stream).stage("reading", 1000) as stage:
            stage.update(0)
            clock[0] += 11
            stage.update(500)
        assert ("reading: 500 samples, 45 a second, 0:00:11 left" in stream.getvalue()) == (mode == "auto")
        assert ("50%" in stream.getvalue()) == (mode == "auto")
        assert bool(stream.getvalue()) == (mode == "auto")
