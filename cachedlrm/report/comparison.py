"""Runs side by side: the options in which they differ, and their figures; for a terminal and as a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from cachedlrm.base.text import printable
from cachedlrm.options.profiles import spell
from cachedlrm.report.axes import BYTES, RATIO
from cachedlrm.report.charts import Axis, Series, line_chart
from cachedlrm.report.curves import Points, curve, evaluations, per_step
from cachedlrm.report.document import render
from cachedlrm.report.metrics import MetricsRow
from cachedlrm.report.runs import Run
from cachedlrm.report.words import NONE, figures

Rows = dict[str, list[str]]
"""Values of each run, by what they are."""

_ABOUT_THE_MACHINE = ("commit", "cachedlrm", "torch", "device", "cpu", "threads")
_LONGEST, _LONGEST_ON_PAGE = 36, 200  # characters of a value


def names(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: the last part of its path, or as many parts as tell it from the others."""
    paths = [Path(run.name).absolute().parts for run in runs]
    most = max(map(len, paths))
    for count in range(1, most + 1):
        short = ["/".join(parts[-count:]) for parts in paths]
        if len(set(short)) == len(set(paths)):
            break
    return short


def differing_options(runs: Sequence[Run]) -> Rows:
    """Options in which the runs differ, spelled as on the command line."""
    spelled = [
        {f"--{name}": str(value) for group in spell(run.options).values() for name, value in group.items()}
        for run in runs
    ]
    every = {name: None for options in spelled for name in options}
    rows = {name: [options.get(name, NONE) for options in spelled] for name in every}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def differing_machines(runs: Sequence[Run]) -> Rows:
    """Versions and hardware in which the runs differ."""
    rows = {key: [str(run.report.environment.get(key, NONE)) for run in runs] for key in _ABOUT_THE_MACHINE}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def all_figures(runs: Sequence[Run]) -> Rows:
    """The figures that at least one run has."""
    columns = [figures(run) for run in runs]
    rows = {name: [column[name] for column in columns] for name in columns[0]}
    return {name: values for name, values in rows.items() if set(values) != {NONE}}


def comparison_text(runs: Sequence[Run], width: int | None) -> str:
    """Tables for a terminal.

    Args:
        runs: at least one.
        width: of a line; runs for which it has no room follow below. None: all stand side by side.
    """
    called = names(runs)
    nothing = [""] * len(runs)
    lines = [("", called)]
    for block in (differing_options(runs), all_figures(runs), differing_machines(runs)):
        lines += [("", nothing), *block.items()] if block else []
    cells = [(label, [_shortened(printable(value), _LONGEST) for value in values]) for label, values in lines]
    label_width = max(len(label) for label, _ in cells)
    widths = [max(len(values[number]) for _, values in cells) for number in range(len(runs))]
    texts = []
    for columns in _fitting(widths, None if width is None else width - label_width):
        texts += [
            (f"{label:<{label_width}}" + "".join(f"  {values[n]:>{widths[n]}}" for n in columns)).rstrip()
            for label, values in cells
        ]
        texts.append("")
    return "\n".join(texts[:-1])


def _fitting(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """The columns that stand side by side, block after block; at least one in each."""
    turns: list[list[int]] = [[]]
    left = room
    for number, width in enumerate(widths):
        if left is not None and room is not None:
            if turns[-1] and left < width + 2:
                turns.append([])
                left = room
            left -= width + 2
        turns[-1].append(number)
    return turns


def _shortened(value: str, longest: int) -> str:
    """Shortened in its middle: values of an option may differ at either end."""
    if len(value) <= longest:
        return value
    kept = longest - 3
    return f"{value[: kept // 2]}...{value[-(kept - kept // 2) :]}"


def comparison_page(runs: Sequence[Run]) -> str:
    """A page whose charts hold the curves of all runs."""
    called = names(runs)
    return render(
        "comparison.html.jinja",
        title="Comparison of runs",
        about=f"{len(runs)} runs: {', '.join(called)}",
        called=called,
        options=_cells(differing_options(runs)),
        figures=_cells(all_figures(runs)),
        machines=_cells(differing_machines(runs)),
        charts=_curves(runs, called),
        commands=[(name, run.report.environment.get("command")) for run, name in zip(runs, called, strict=True)],
    )


def _cells(rows: Rows) -> list[list[str]]:
    return [[name, *(_shortened(value, _LONGEST_ON_PAGE) for value in values)] for name, values in rows.items()]


def _curves(runs: Sequence[Run], called: Sequence[str]) -> list[Element]:
    def of_each(points: Callable[[Sequence[MetricsRow]], Points]) -> list[Series]:
        return [Series(name, points(run.rows)) for run, name in zip(runs, called, strict=True)]

    loss = of_each(lambda rows: curve(rows, "loss"))
    auc, logloss = (
        [Series(name, evaluations(run.report, run.rows, key)) for run, name in zip(runs, called, strict=True)]
        for key in ("auc", "logloss")
    )
    rate, hits = of_each(lambda rows: curve(rows, "samples_per_s")), of_each(lambda rows: curve(rows, "hit_ratio"))
    brought_in = of_each(lambda rows: per_step(rows, "fetched_rows", "first_touch_rows"))
    traffic = of_each(lambda rows: per_step(rows, "fetched_bytes", "written_back_bytes"))
    return [
        line_chart("Training loss", loss, Axis("mean loss of a sample")),
        line_chart("AUC on held-out samples", auc, Axis("AUC"), dots=True),
        line_chart("Loss on held-out samples", logloss, Axis("logloss"), dots=True),
        line_chart("Training rate", rate, Axis("samples a second", from_zero=True)),
        line_chart("Hit ratio", hits, Axis("share of lookups on the device", RATIO)),
        line_chart("Rows brought in", brought_in, Axis("rows a step", from_zero=True)),
        line_chart("Traffic", traffic, Axis("bytes a step", BYTES, from_zero=True)),
    ]
