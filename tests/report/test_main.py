"""``python -m cachedlrm.report``: runs side by side, on a terminal and on a page; nothing of theirs changes."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cachedlrm.report.__main__ import main
from cachedlrm.report.comparison import comparison_page, comparison_text, names
from cachedlrm.report.runs import Run, load_run
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


@pytest.fixture(scope="module")
def loaded(runs) -> list[Run]:
    return [load_run(run) for run in runs]


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
        assert {path.get("d").count("L") for path in curves} == {1 if "AUC" in figure[0].text else 3}


def test_one_run_alone(runs, capsys, tmp_path):
    assert main([str(runs[0]), f"--html={tmp_path / 'page.html'}"]) == 0
    lines = cells(capsys.readouterr().out)
    assert lines["samples"] == ["800"]
    assert not any(label.startswith("--") for label in lines)
    written = (runs[0] / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == written  # what the run itself left
    checked(written)


def test_runs_are_called_what_tells_them_apart(loaded):
    def called(*paths: str) -> list[str]:
        return names([replace(loaded[0], name=path) for path in paths])

    assert called("/x/a/run", "/x/b/run") == ["a/run", "b/run"]
    assert called("/x/a", "/x/b") == ["a", "b"]
    assert called("/x/run", "/x/run") == ["run", "run"]
    assert called("runs/a", ".") == ["a", Path.cwd().name]


def test_what_does_not_fit_a_line_follows_below(loaded):
    width = max(map(len, comparison_text(loaded, None).splitlines()))
    assert max(map(len, comparison_text(loaded, width).splitlines())) == width
    narrow = comparison_text(loaded, width - 1).split("\n\n")
    wide = comparison_text(loaded, None)
    assert max(map(len, "\n\n".join(narrow).splitlines())) < width
    assert "\n\n".join(narrow).count("\nsteps ") == 2 * wide.count("\nsteps ") == 2
    assert comparison_text(loaded, 1).count("\nsteps ") == 2  # one run a line at least


def test_a_report_of_an_earlier_version_is_read_too(runs, capsys, tmp_path):
    shutil.copytree(runs[0], tmp_path / "old")
    path = tmp_path / "old" / "report.json"
    report = json.loads(path.read_text())
    for key in ("tables", "host_limit_bytes"):
        del report[key]
    path.write_text(json.dumps(report))
    assert main([str(tmp_path / "old"), f"--html={tmp_path / 'page.html'}"]) == 0


LINE = b'{"step": 2, "loss": 0.5}\n'
DAMAGE = [
    ("report.json", None, "report.json is missing; name the directory of a run that ended"),
    ("report.json", b"", "report.json is not the report of a run: Expecting value"),
    ("report.json", b"\xff", "report.json is not text in UTF-8"),
    ("report.json", b"[1]", "report.json is not the report of a run: it is not an object"),
    ("report.json", b"{}", "report.json is not the report of a run: steps is missing"),
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
def test_damage_is_one_line(runs, capsys, tmp_path, name, data, words):
    run = tmp_path / "run"
    run.mkdir()
    for file in ("report.json", "metrics.jsonl", "config.toml"):
        shutil.copy(runs[0] / file, run)
    (run / name).unlink()
    if data is not None:
        (run / name).write_bytes(data)
    message = one_line(capsys, main([str(run), str(runs[1]), f"--html={tmp_path / 'page.html'}"]))
    assert str(run) in message
    assert words in message
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_went_on_beyond_its_report_is_refused(runs, capsys, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 0.5}\n')
    message = one_line(capsys, main([str(run)]))
    assert f"{run} went on beyond its report: {run / 'metrics.jsonl'} is at step 10, report.json at step 8" in message
    assert message.endswith(f"finish it with python -m cachedlrm.train --resume {run}\n")


def test_long_values_stay_short_on_the_page(loaded):
    sizes = tuple(range(1000, 1600))
    longer = replace(loaded[0].options, model=replace(loaded[0].options.model, arch_embedding_size=sizes))
    content = checked(comparison_page([loaded[0], replace(loaded[0], name="b", options=longer)]))
    (row,) = [row for row in content.iter("tr") if row[0].text == "--arch-embedding-size"]
    assert row[1].text == "400-30-900-5"
    assert re.fullmatch(r"1000-1001-.{170,}-1598-1599", row[2].text)
    assert len(row[2].text) == 200


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
