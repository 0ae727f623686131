"""``report.html``: a run for people, as one page that needs nothing else."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree.ElementTree import Element

from cachedlrm.base.units import format_bytes
from cachedlrm.cache.counters import PREPARING_PHASES
from cachedlrm.report import words
from cachedlrm.report.axes import BYTES, NUMBER, RATIO
from cachedlrm.report.charts import Axis, Bar, Series, bar_chart, line_chart, share_bar
from cachedlrm.report.curves import changes, curve, disk_bytes, evaluations, per_step
from cachedlrm.report.document import element, render
from cachedlrm.report.metrics import waiting_phases
from cachedlrm.report.record import Report
from cachedlrm.report.runs import Run

_SHOWN_TABLES = 26  # before the others have to be unfolded


def run_page(run: Run) -> str:
    """The page of one run."""
    report, environment = run.report, run.report.environment
    kind, name = "Training" if report.inference is None else "Inference", Path(run.name).absolute().name
    drawn = {}
    if report.inference is None and report.steps:
        drawn = {
            "Is it learning?": _learning(run),
            "Is the cache working?": _cache(run),
            "Where does the time go?": _time(run),
        }
    return render(
        "run.html.jinja",
        title=f"{kind} report: {name}",
        about=f"{run.options.data.data} on {environment.get('device')}, {_date(environment.get('date'))}. {run.name}",
        run=run,
        report=report,
        words=words,
        charts=drawn | {"Does memory hold?": _memory(run)},
        tables=_tables(report),
        num_shown=_SHOWN_TABLES,
        sizes=_sizes(report),
        figures=[(what, figure) for what, figure in words.figures(run).items() if figure != words.NONE],
        facts=[(key, value) for key, value in environment.items() if key != "command"],
    )


def _date(text: object) -> str:
    """To the minute; what is no date stays as it is."""
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return str(text)


def _learning(run: Run) -> list[Element]:
    loss = line_chart("Training loss", [Series("", curve(run.rows, "loss"))], Axis("mean loss of a sample"))
    report = run.report
    charts = [loss]
    for key, title, label in (("auc", "AUC", "AUC"), ("logloss", "Loss", "logloss")):
        points = evaluations(report, run.rows, key)
        best = None if report.best is None else getattr(report.best, key)
        mark = None if best is None or report.best_step is None else (float(report.best_step), best)
        if points or key == "auc":
            charts.append(
                line_chart(f"{title} on held-out samples", [Series("", points)], Axis(label), mark=mark, dots=True)
            )
    return charts + _calibration(report) + _rates(run)


def _calibration(report: Report) -> list[Element]:
    """Predicted against observed; none without an evaluation."""
    points = [(one.predicted, one.observed) for one in report.calibration_bins]
    if not points:
        return []
    ends = [points[0][0], points[-1][0]]
    series = [Series("the model", points), Series("as it should be", [(end, end) for end in ends])]
    title = "Calibration: groups of as many held-out samples"
    return [line_chart(title, series, Axis("share of label 1"), x_axis=Axis("mean prediction"), dots=True)]


def _rates(run: Run) -> list[Element]:
    """Learning rates, where they change."""
    keys = {"rows": "learning_rate", "layers": "dense_learning_rate"}
    if all(len(changes(run.rows, key)) < 2 for key in keys.values()):
        return []
    series = [Series(name, curve(run.rows, key)) for name, key in keys.items()]
    return [line_chart("Learning rate", series, Axis("learning rate", from_zero=True))]


def _cache(run: Run) -> list[Element]:
    rows = run.rows
    hits = [
        Series("lookups", curve(rows, "hit_ratio")),
        Series("unique rows of a batch", curve(rows, "unique_hit_ratio")),
        Series("lookups, run so far", curve(rows, "hit_ratio_total")),
    ]
    moved = [
        Series("fetched", per_step(rows, "fetched_rows")),
        Series("created at first touch", per_step(rows, "first_touch_rows")),
        Series("written back", per_step(rows, "written_back_rows")),
    ]
    traffic = [
        Series("to the device", per_step(rows, "fetched_bytes")),
        Series("back to the store", per_step(rows, "written_back_bytes")),
    ]
    return [
        line_chart("Hit ratio", hits, Axis("share found on the device", RATIO)),
        line_chart("Rows moved", moved, Axis("rows a step", from_zero=True)),
        line_chart("Traffic", traffic, Axis("bytes a step", BYTES, from_zero=True)),
    ]


def _time(run: Run) -> list[Element]:
    """The prefetch thread has a chart of its own: its time comes on top of a step's."""
    report, depth = run.report, run.options.cache.prefetch_depth
    beside, waiting = depth != 0, waiting_phases(depth)
    rate = line_chart(
        "Training rate", [Series("", curve(run.rows, "samples_per_s"))], Axis("samples a second", from_zero=True)
    )
    training = [phase for phase in report.phase_ms if not (beside and phase in PREPARING_PHASES)]
    preparing = [phase for phase in report.phase_ms if beside and phase in PREPARING_PHASES]
    charts = [rate, _phases(report, "A step of the training thread", training, waiting, 0)]
    if preparing:
        charts.append(_phases(report, "Beside it: the prefetch thread", preparing, waiting, 2))
    return charts


def _phases(report: Report, title: str, phases: list[str], waiting: tuple[str, ...], colour: int) -> Element:
    bars, step_ms = [], report.step_ms
    for phase in phases:
        ms = report.phase_ms[phase]
        share = f", {ms / step_ms:.1%}" if step_ms > 0 else ""
        bars.append(Bar(phase.replace("_", " "), ms, f"{ms:.3f} ms{share}", 1 if phase in waiting else colour))
    return bar_chart(title, f"mean milliseconds, of the {step_ms:.2f} that a step took", bars, step_ms)


def _against(name: str, used: int, limit: int) -> Bar:
    share = used / limit if limit else 0.0
    return Bar(name, share, f"{format_bytes(used)} of {format_bytes(limit)}, {share:.1%}", 4 if share > 0.9 else 0)


def _memory(run: Run) -> list[Element]:
    """Records against their budget; the process has none, so that its memory is in another chart."""
    report, disk = run.report, disk_bytes(run.rows)
    limits = [_against("device", report.device_peak_bytes, report.device_limit_bytes)]
    if report.host_limit_bytes is not None:
        records = _against("records on the host", report.host_store_bytes, report.host_limit_bytes)
        spills = run.options.store.store == "lmdb"  # a full host tier is as it should be
        limits.append(replace(records, colour=0) if spills else records)
    device = [
        Bar(name.replace("_", " "), num_bytes, format_bytes(num_bytes))
        for name, num_bytes in report.device_bytes_breakdown.items()
    ]
    below = [
        Bar("all tables with optimizer state", report.table_bytes, format_bytes(report.table_bytes), 5),
        Bar("records on the host", report.host_store_bytes, format_bytes(report.host_store_bytes), 2),
        *([Bar("store on disk", disk, format_bytes(disk), 3)] if disk else []),
        Bar("the process, without mapped pages", report.host_peak_bytes, format_bytes(report.host_peak_bytes), 2),
        Bar("its mapped pages", report.mapped_peak_bytes, format_bytes(report.mapped_peak_bytes), 2),
    ]
    return [
        bar_chart("Against the limits", "of the budget, or of the memory that was free", limits, 1.0),
        bar_chart("On the device", "bytes by purpose", device),
        bar_chart("On the host and on disk", "beside what all rows would take", below),
    ]


def _tables(report: Report) -> list[list[Element | str]]:
    """Rows of a table, the worst first; empty without lookups."""
    missed = report.lookups - report.counters.hit_lookups
    rows: list[list[Element | str]] = []
    for one in words.most_missed(report.tables) if report.lookups else ():
        share = one.missed_lookups / missed if missed else 0.0
        touched = one.touched_rows / one.rows if one.rows else 0.0
        rows.append(
            [
                one.title,
                element("div", f"{share:.1%}", share_bar(share, 4)),
                element("div", words.number(one.hit_ratio, ".2%"), share_bar(one.hit_ratio or 0.0)),
                element("div", f"{one.touched_rows:,}", share_bar(touched, 2)),
                f"{one.rows:,}",
                f"{one.lookups:,}",
            ]
        )
    return rows


def _sizes(report: Report) -> list[Element]:
    """Charts by the size of the cache; none without a prediction."""
    points = sorted(report.miss_ratio_curve or (), key=lambda point: point.cache_slots)
    if not points:
        return []
    points = [point for point in points if point.cache_slots > 0]
    slots = Axis("rows on the device, logarithmic", NUMBER, logarithmic=True)
    chosen = report.cache_slots
    rings = [(chosen, y) if chosen else None for y in (report.hit_ratio, report.moved_bytes_per_step)]
    hits = [(float(point.cache_slots), point.hit_ratio) for point in points]
    moved = [(float(point.cache_slots), point.moved_bytes_per_step) for point in points]
    return [
        line_chart(
            "Hit ratio by size of the cache", [Series("predicted", hits)], Axis("share of lookups", RATIO),
            x_axis=slots, mark=rings[0], dots=True,
        ),
        line_chart(
            "Traffic by size of the cache", [Series("predicted", moved)],
            Axis("bytes a step", BYTES, from_zero=True), x_axis=slots, mark=rings[1], dots=True,
        ),
    ]  # fmt: skip
