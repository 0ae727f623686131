"""``python -m cachedlrm.report``: runs side by side, on a terminal and on a page; nothing of theirs changes."""

import json
import os
import re
from pathlib import Path

import pytest

from cachedlrm.report.__main__ import main
from support.reports import checked
from support.runs import one_line, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two small runs that differ in cache and policy."""
    folder = tmp_path_factory.mktemp("compared")
    common = ["--steps=8", "--print-freq=2", "--test-freq=4"]
    assert train(folder / "small", *common, "--gpu-cache-ratio=0.1", "--policy=lru", "--report-min") == 0
    assert train(folder / "whole", *common) == 0
    return folder / "small", folder / "whole"


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def cells(text: str) -> dict[str, list[str]]:
    """Lines of the text by their label."""
    return {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in text.splitlines()}


def test_runs_stand_side_by_side(runs, capsys):
    before = [contents(run) for run in runs]
    assert main([*map(str, runs)]) == 0
    assert [contents(run) for run in runs] == before
    lines = cells(capsys.readouterr().out)
    reports = [json.loads((run / "report.json").read_text()) for run in runs]
    assert lines["--gpu-cache-ratio"] == ["0.1", "1.0"]
    assert lines["--policy"] == ["lru", "lrfu"]
    assert "--mini-batch-size" not in lines
    assert "commit" not in lines
    assert "accuracy on held-out samples" in lines
    assert "held-out samples a second" not in lines
    assert lines["steps"] == ["8", "8"]
    assert lines["loss, mean over the run"] == [f"{report['loss_mean']:.5f}" for report in reports]
    assert len(set(lines["loss, mean over the run"])) == 1  # whatever the cache
    assert lines["AUC on held-out samples"] == [f"{report['auc']:.4f}" for report in reports]
    assert lines["hit ratio over lookups"] == [f"{report['hit_ratio']:.2%}" for report in reports]
    moved = [(report["first_touch_rows"] + report["fetched_rows"]) / 8 for report in reports]
    assert lines["rows brought in a step"] == [f"{rows:,.1f}" for rows in moved]
    assert lines["rows brought in, of the fewest (MIN)"] == [f"{8 * moved[0] / reports[0]['moved_rows_min']:.3f}", "-"]


def test_the_page_lays_the_curves_over_each_other(runs, capsys, tmp_path):
    target = tmp_path / "comparison.html"
    target.write_text("an earlier page")
    assert main([*map(str, runs), "--html", str(target)]) == 0
    assert capsys.readouterr().out.endswith(f"page: {target}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.html"]
    content = checked(target.read_text(encoding="utf-8"))
    titles = [heading.text for heading in content.iter("h2")]
    assert titles == ["Options that differ", "Over the run", "In figures", "To repeat them"]
    for figure in content.iter("figure"):
        assert len(list(figure.iter("li"))) == 2, figure[0].text
        curves = [path for path in figure.findall("svg/path") if "curve" in path.get("class")]
        assert len(curves) == 2
        assert {path.get("d").count("L") for path in curves} == {1 if "held-out" in figure[0].text else 3}


def test_one_run_alone(runs, capsys, tmp_path):
    assert main([str(runs[0]), f"--html={tmp_path / 'page.html'}"]) == 0
    lines = cells(capsys.readouterr().out)
    assert lines["samples"] == ["800"]
    assert not any(label.startswith("--") for label in lines)
    written = (runs[0] / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == written  # what the run itself left
    checked(written)


def test_wrong_arguments_are_one_line(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    run = str(runs[0])
    for arguments, words in [
        ([], "no run is named; python -m cachedlrm.report RUN_DIR..."),
        (["nowhere"], "nowhere is not a folder; name the directory of a run"),
        ([str(runs[0] / "report.json")], "report.json is not a folder"),
        ([run, ""], "RUN_DIR needs a value"),
        ([run, "--html="], "--html needs a value"),
        ([run, "--html"], "--html"),
        ([run, "--colour"], "--colour"),
        ([run, "--html", str(runs[0] / "report.html")], "report.html of the run itself"),
        ([run, "--html", "."], "--html . is a directory; name a file"),
        ([run, "--html", "pipe"], "--html pipe is not a regular file"),
        ([run, "--html", "no/page.html"], "/no is not a folder; make it"),
    ]:
        assert words in one_line(capsys, main(arguments))
    assert os.listdir() == ["pipe"]


def test_help_says_what_it_does(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--html" in capsys.readouterr().out
