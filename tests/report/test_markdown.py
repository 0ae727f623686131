"""``report.md``: a run for people, as text."""

from dataclasses import replace

import pytest

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.options.config import Options
from cachedlrm.report.environment import environment
from cachedlrm.report.markdown import report_markdown
from cachedlrm.report.metrics import metrics_row
from cachedlrm.report.record import Report, TableReport
from support.reports import COUNTERS, NO_STEP, TABLES, lines, report, run_of, snapshot


def markdown(made: Report, num_rows: int = 100, options: Options | None = None, **changes: object) -> str:
    rows = [metrics_row(snapshot(step=i + 1, loss=0.7 - i / 500, **changes)) for i in range(num_rows)]
    return report_markdown(run_of(made, rows, options))


def test_a_command_stays_in_its_cell():
    made = report(environment=environment("cpu", ["--data", "npy:/my data/a|b", "--steps=1"]))
    row = next(line for line in markdown(made).splitlines() if line.startswith("| command |"))
    assert row.endswith("'npy:/my data/a\\|b' --steps=1 |")


def test_the_text_for_people():
    text = markdown(report())
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Result", "Cache traffic", "Tables that miss most", "Memory", "Where a step's time goes", "Course of the run",
        "To repeat it",
    ]  # fmt: skip
    for words in ("trained on 1,000 samples in 10 steps at 500 samples/s", "On held-out samples: AUC 0.7500.",
                  "| loss, mean over the run | 0.50000 |", "| hit ratio over working-set rows | 75.00% |",
                  "| device: slab | 600 B |", "| forward | 20.000 | 10.0% | ████ |", "A step took 200.000 ms.",
                  "```toml\n[run]\nsteps = 10\n```"):  # fmt: skip
        assert words in text, words


def test_the_tables_that_miss_most_come_first():
    assert sum(table.lookups for table in TABLES) == COUNTERS.lookups
    assert sum(table.missed_lookups for table in TABLES) == COUNTERS.lookups - COUNTERS.hit_lookups
    section = markdown(report()).partition("## Tables that miss most\n\n")[2].partition("\n\n## ")[0].splitlines()
    assert section[2:5] == [
        "| emb_l.1.weight_q | 290 | 400 | 81.25% | 75.0% | 38 | 13.1% |",
        "| emb_l.0 | 700 | 500 | 96.00% | 20.0% | 20 | 2.9% |",
        "| emb_l.1.weight_r | 10 | 100 | 95.00% | 5.0% | 2 | 20.0% |",
    ]
    many = [TableReport(f"emb_l.{number}", 9, 10, 0.9, 1, 1) for number in range(100)]
    text = markdown(report(tables=tuple(many)))
    assert "| emb_l.9 |" in text
    assert "| emb_l.10 |" not in text
    assert "No lookup missed." in markdown(report(**CacheCounters().as_json()))


def test_temporary_slots_are_named():
    assert "kept at most 50 of them (5.00%), and 90.0% of lookups" in markdown(report())
    text = markdown(report(cache_slots=1, temporary_slots=69))
    assert "kept at most 1 of them (0.10%), and up to 69 more while a batch needed them, and 90.0%" in text


def test_every_table_is_rectangular():
    blocks = [block.splitlines() for block in markdown(report()).split("\n\n") if block.startswith("|")]
    assert len(blocks) == 7
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1, block


@pytest.mark.parametrize("num_rows", [1, 2, 19, 20, 21, 1000])
def test_the_course_has_at_most_twenty_rows_and_the_last(num_rows):
    course = markdown(report(), num_rows).partition("## Course of the run")[2].partition("\n## ")[0]
    lines = [line for line in course.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == min(num_rows, 20)
    assert lines[-1].startswith(f"| {num_rows:,} |")


def test_curves_show_the_whole_run():
    text = markdown(report(), 100)
    loss = next(line for line in text.splitlines() if line.startswith("loss "))
    assert "0.70000 to 0.50200" in loss
    assert loss.endswith("▁")
    assert "█" in loss
    assert "AUC        no value" in markdown(report(), auc=None)


def test_who_spends_the_preparing_phases_is_said():
    alone, beside = (replace(Options(), cache=replace(Options().cache, prefetch_depth=depth)) for depth in (0, 1))
    assert "run in the training thread, as all others" in markdown(report(), options=alone)
    assert "run in the prefetch thread, beside the others" in markdown(report(), options=beside)


def test_a_run_of_no_steps():
    text = markdown(report(**NO_STEP), 0)
    assert "No step was trained" in text
    assert "| AUC on held-out samples | - |" in text


def test_the_store_on_disk_is_named_where_there_is_one():
    made = report(host_limit_bytes=1 << 20, host_store_bytes=1000 << 10)
    rows = [{**row, "disk_bytes": size << 20} for row, size in zip(lines(3), (2, 5, 4), strict=True)]
    text = report_markdown(run_of(made, rows))
    for line in ("| host: records | 1000.0 KiB |", "| host: budget of records or free memory | 1.0 MiB |",
                 "| disk: peak of the store's file | 5.0 MiB |"):  # fmt: skip
        assert line in text
    assert "disk" not in report_markdown(run_of(made, lines(1)))
