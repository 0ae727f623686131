"""Runs side by side: what they are called, what fits a line, what a page shows."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cachedlrm.report.comparison import comparison_page, comparison_text, names
from cachedlrm.report.runs import Run
from support.reports import checked, lines, report, run_of


@pytest.fixture(scope="module")
def loaded() -> list[Run]:
    """Two runs that differ in their cache."""
    runs = []
    for name, slots, policy in (("small", 50, "lru"), ("whole", 1000, "lrfu")):
        run = run_of(report(cache_slots=slots), lines(4))
        options = replace(run.options, cache=replace(run.options.cache, policy=policy))
        runs.append(replace(run, name=name, options=options))
    return runs


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


def test_long_values_stay_short_on_the_page(loaded):
    sizes = tuple(range(1000, 1600))
    longer = replace(loaded[0].options, model=replace(loaded[0].options.model, arch_embedding_size=sizes))
    content = checked(comparison_page([loaded[0], replace(loaded[0], name="b", options=longer)]))
    (row,) = [row for row in content.iter("tr") if row[0].text == "--arch-embedding-size"]
    assert row[1].text == "-"
    assert re.fullmatch(r"1000-1001-.{170,}-1598-1599", row[2].text)
    assert len(row[2].text) == 200
