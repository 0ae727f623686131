"""The files a run leaves for programs and for people."""

import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cachedlrm.cache.counters import CacheCounters, TableCounters
from cachedlrm.options.config import Options
from cachedlrm.report import environment as environment_module
from cachedlrm.report.markdown import report_markdown
from cachedlrm.report.metrics import metrics_row
from cachedlrm.report.totals import RunTotals, build_report
from support.reports import TABLES, snapshot, totals

# As docs/contract lists them; a key that leaves breaks somebody's script.
CONTRACT_KEYS = {
    "steps", "samples", "samples_per_s", "loss_last", "loss_mean", "auc", "table_rows", "cache_slots", "record_bytes",
    "lookups", "hit_ratio", "working_set_rows", "unique_hit_ratio", "first_touch_rows", "fetched_rows", "evicted_rows",
    "written_back_rows", "moved_rows_min", "device_peak_bytes", "device_bytes_breakdown", "host_peak_bytes",
    "mapped_peak_bytes", "phase_ms", "tables",
}  # fmt: skip
ENVIRONMENT_KEYS = {"command", "date", "commit", "torch", "numpy", "python", "device", "cpu", "cores", "threads"}


def markdown(run: RunTotals, num_rows: int = 100, **changes: object) -> str:
    rows = [metrics_row(snapshot(step=i + 1, loss=0.7 - i / 500, **changes)) for i in range(num_rows)]
    return report_markdown(run, build_report(run, []), rows, "[run]\nsteps = 10\n")


def test_the_report_has_the_keys_of_the_contract():
    report = build_report(totals(), [])
    assert report.keys() >= CONTRACT_KEYS
    assert report["environment"].keys() >= ENVIRONMENT_KEYS
    assert report["moved_rows_min"] is None
    assert "losses" not in report
    assert build_report(totals(losses=[0.5, 0.25]), [])["losses"] == [0.5, 0.25]
    assert build_report(totals(auc=None), [])["auc"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_report_is_json_whatever_was_measured(bad):
    worst = totals(loss_last=bad, loss_mean=bad, auc=bad, samples_per_s=bad, losses=[0.5, bad])
    report = build_report(worst, ["--x"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["loss_last"] is report["auc"] is None
    assert report["losses"] == [0.5, None]


def test_the_command_can_be_pasted_into_a_shell():
    report = build_report(totals(), ["--data", "npy:/my data/a|b", "--steps=1"])
    assert report["environment"]["command"] == "python -m cachedlrm.train --data 'npy:/my data/a|b' --steps=1"
    text = report_markdown(totals(), report, [], "")
    row = next(line for line in text.splitlines() if line.startswith("| command |"))
    assert row.endswith("'npy:/my data/a\\|b' --steps=1 |")


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_package_and_of_no_project_around_it(tmp_path, monkeypatch):
    package = tmp_path / "environment.py"
    package.write_text("1")
    monkeypatch.setattr(environment_module, "__file__", str(package))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment_module.commit() is None  # no checkout
    git(tmp_path, "init")
    (tmp_path / "project.txt").write_text("1")
    git(tmp_path, "add", "project.txt")
    git(tmp_path, "commit", "-m", "a project with the package installed in it")
    assert environment_module.commit() is None
    git(tmp_path, "add", "environment.py")
    git(tmp_path, "commit", "-m", "the package's own checkout")
    commit = environment_module.commit()
    assert len(commit) == 12
    package.write_text("2")
    assert environment_module.commit() == f"{commit}-dirty"


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert build_report(totals(), [])["environment"]["commit"] is None


def test_the_text_for_people():
    text = markdown(totals())
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Result", "Cache traffic", "Tables that miss most", "Memory", "Where a step's time goes", "Course of the run",
        "To repeat it",
    ]  # fmt: skip
    for words in ("trained on 1,000 samples in 10 steps at 500 samples/s", "AUC of 0.7500",
                  "| loss, mean over the run | 0.50000 |", "| hit ratio over working-set rows | 75.00% |",
                  "| device: slab | 600 B |", "| forward | 20.000 | 10.0% | ████ |", "A step took 200.000 ms.",
                  "```toml\n[run]\nsteps = 10\n```"):  # fmt: skip
        assert words in text, words


def test_the_tables_that_miss_most_come_first():
    run = totals()
    assert sum(table.lookups for table in TABLES) == run.counters.lookups
    assert sum(table.hit_lookups for table in TABLES) == run.counters.hit_lookups
    section = markdown(run).partition("## Tables that miss most\n\n")[2].partition("\n\n## ")[0].splitlines()
    assert section[2:5] == [
        "| emb_l.1.weight_q | 290 | 400 | 81.25% | 75.0% | 38 | 13.1% |",
        "| emb_l.0 | 700 | 500 | 96.00% | 20.0% | 20 | 2.9% |",
        "| emb_l.1.weight_r | 10 | 100 | 95.00% | 5.0% | 2 | 20.0% |",
    ]
    many = [TableCounters(f"emb_l.{number}", 9, 10, 9, 1, 1) for number in range(100)]
    text = markdown(totals(tables=tuple(many)))
    assert "| emb_l.9 |" in text
    assert "| emb_l.10 |" not in text
    assert build_report(run, [])["tables"][1] == {
        "name": "emb_l.1.weight_q", "rows": 290, "lookups": 400, "hit_ratio": 0.8125, "working_set_rows": 150,
        "touched_rows": 38,
    }  # fmt: skip
    assert "No lookup missed." in markdown(totals(counters=CacheCounters()))


def test_temporary_slots_are_named():
    assert "kept at most 50 of them (5.00%), and 90.0% of lookups" in markdown(totals())
    run = totals(cache_slots=1, temporary_slots=69)
    assert "kept at most 1 of them (0.10%), and up to 69 more while a batch needed them, and 90.0%" in markdown(run)
    report = build_report(run, [])
    assert (report["cache_slots"], report["temporary_slots"]) == (1, 69)


def test_every_table_is_rectangular():
    blocks = [block.splitlines() for block in markdown(totals()).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 7
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1, block


@pytest.mark.parametrize("num_rows", [1, 2, 19, 20, 21, 1000])
def test_the_course_has_at_most_twenty_rows_and_the_last(num_rows):
    course = markdown(totals(), num_rows).partition("## Course of the run")[2].partition("\n## ")[0]
    lines = [line for line in course.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == min(num_rows, 20)
    assert lines[-1].startswith(f"| {num_rows:,} |")


def test_curves_show_the_whole_run():
    text = markdown(totals(), 100)
    loss = next(line for line in text.splitlines() if line.startswith("loss "))
    assert "0.70000 to 0.50200" in loss
    assert loss.endswith("▁")
    assert "█" in loss
    assert "AUC        no value" in markdown(totals(), auc=None)


def test_who_spends_the_preparing_phases_is_said():
    alone, beside = (
        totals(options=replace(Options(), cache=replace(Options().cache, prefetch_depth=depth))) for depth in (0, 1)
    )
    assert "run in the training thread, as all others" in markdown(alone)
    assert "run in the prefetch thread, beside the others" in markdown(beside)


def test_a_run_of_no_steps():
    nothing = totals(
        steps=0, samples=0, training_s=0.0, loss_last=None, loss_mean=None, auc=None, counters=CacheCounters()
    )
    text = report_markdown(nothing, build_report(nothing, []), [], "")
    assert "No step was trained" in text
    assert "| AUC on held-out samples | - |" in text
