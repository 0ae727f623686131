"""Runs side by side: the options in which they differ, and their figures; for a terminal and as a page."""

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

from cachedlrm.base.text import printable
from cachedlrm.options.profiles import spell
from cachedlrm.report.axes import BYTES, RATIO
from cachedlrm.report.charts import Axis, Series, line_chart
from cachedlrm.report.curves import Points, changes, curve, per_step
from cachedlrm.report.document import document, element, section, table
from cachedlrm.report.figures import NONE, figures
from cachedlrm.report.metrics import MetricsRow
from cachedlrm.report.runs import Run

Rows = dict[str, list[str]]
"""Values of each run, by what they are."""

_ABOUT_THE_MACHINE = ("commit", "cachedlrm", "torch", "device", "cpu", "threads")
_LONGEST, _LONGEST_ON_PAGE = 36, 200  # characters of a value


def names(runs: Sequence[Run]) -> list[str]:
    """What to call each run: the last part of its path, or as many as tell it from the others."""
    paths = [Path(run.name).absolute().parts for run in runs]
    most = max(map(len, paths))
    for count in range(1, most + 1):
        short = ["/".join(parts[-count:]) for parts in paths]
        if len(set(short)) == len(set(paths)):
            break
    return short


def differing_options(runs: Sequence[Run]) -> Rows:
    """Options that not all runs have alike, as on the command line."""
    spelled = [
        {f"--{name}": str(value) for group in spell(run.options).values() for name, value in group.items()}
        for run in runs
    ]
    every = {name: None for options in spelled for name in options}
    rows = {name: [options.get(name, NONE) for options in spelled] for name in every}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def differing_machines(runs: Sequence[Run]) -> Rows:
    """Versions and hardware that not all runs had alike."""
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
        width: of a line; runs that do not fit beside each other follow below. None: all beside each other.
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
    """Numbers of the columns that stand beside each other, in turn; at least one."""
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
    """Without its middle: values of an option may differ at either end."""
    if len(value) <= longest:
        return value
    kept = longest - 3
    return f"{value[: kept // 2]}...{value[-(kept - kept // 2) :]}"


def comparison_page(runs: Sequence[Run]) -> str:
    """A page whose charts hold the curves of all runs."""
    called = names(runs)
    sections = []
    for title, rows in (
        ("Options that differ", differing_options(runs)),
        ("In figures", all_figures(runs)),
        ("Versions and machines that differ", differing_machines(runs)),
    ):
        if rows:
            cells = [
                [name, *(_shortened(value, _LONGEST_ON_PAGE) for value in values)] for name, values in rows.items()
            ]
            sections.append(section(title, table(["", *called], cells, "" if title == "In figures" else "facts")))
    sections.insert(1 if len(sections) > 1 else 0, _curves(runs, called))
    commands = [
        part
        for run, name in zip(runs, called, strict=True)
        for part in (element("p", name), element("pre", str(run.report.environment.get("command"))))
    ]
    about = f"{len(runs)} runs: {', '.join(called)}"
    return document("Comparison of runs", about, [*sections, section("To repeat them", *commands)])


def _curves(runs: Sequence[Run], called: Sequence[str]) -> Element:
    def of_each(points: Callable[[Sequence[MetricsRow]], Points]) -> list[Series]:
        return [Series(name, points(run.rows)) for run, name in zip(runs, called, strict=True)]

    charts = [
        line_chart("Training loss", of_each(lambda rows: curve(rows, "loss")), Axis("mean loss of a sample")),
        line_chart("AUC on held-out samples", of_each(lambda rows: changes(rows, "auc")), Axis("AUC"), dots=True),
        line_chart(
            "Training rate",
            of_each(lambda rows: curve(rows, "samples_per_s")),
            Axis("samples a second", from_zero=True),
        ),
        line_chart(
            "Hit ratio", of_each(lambda rows: curve(rows, "hit_ratio")), Axis("share of lookups on the device", RATIO)
        ),
        line_chart(
            "Rows brought in",
            of_each(lambda rows: per_step(rows, "fetched_rows", "first_touch_rows")),
            Axis("rows a step", from_zero=True),
        ),
        line_chart(
            "Traffic",
            of_each(lambda rows: per_step(rows, "fetched_bytes", "written_back_bytes")),
            Axis("bytes a step", BYTES, from_zero=True),
        ),
    ]
    return section("Over the run", element("div", *charts, class_="charts"))
