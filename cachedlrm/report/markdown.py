"""``report.md``: a run for people, as text."""

from collections.abc import Sequence

from cachedlrm.base.units import format_bytes, format_seconds
from cachedlrm.cache.counters import PREPARING_PHASES
from cachedlrm.report.curves import disk_bytes
from cachedlrm.report.live_view import sparkline
from cachedlrm.report.metrics import MetricsRow
from cachedlrm.report.record import Report
from cachedlrm.report.runs import Run
from cachedlrm.report.words import (
    FORESEEN_HEADER,
    NONE,
    foreseen,
    most_missed,
    number,
    scores_in_words,
    served_table,
    summary,
)

_COURSE_ROWS = 20
_CURVE_WIDTH = 80
_MOST_TABLES = 10
_COURSE = {
    "step": ("step", ","),
    "loss": ("loss", ".5f"),
    "auc": ("AUC", ".4f"),
    "hit_ratio": ("hit ratio", ".2%"),
    "samples_per_s": ("samples/s", ",.0f"),
    "fetched_rows": ("rows fetched", ","),
    "written_back_rows": ("rows written back", ","),
    "wait_ms": ("wait, ms a step", ".2f"),
}
"""Columns of the course: keys of a line of metrics, their titles and formats."""


_EVALUATION = {
    "auc": ("AUC", ".4f"),
    "logloss": ("logloss", ".5f"),
    "normalized_entropy": ("normalized entropy", ".4f"),
    "calibration": ("calibration", ".4f"),
    "average_precision": ("average precision", ".4f"),
    "gauc": ("AUC within ids", ".4f"),
}
"""Columns of the evaluations: their titles and formats."""


def report_markdown(run: Run) -> str:
    """``report.md`` of a run."""
    report = run.report
    if report.inference is not None:
        header, *lines = served_table(report.inference)
        sections = ["# Inference report", _table(header, lines)]
    else:
        sections = [
            "# Training report",
            summary(run),
            "## Result\n\n" + _result(report),
            *(["## Evaluations\n\n" + _evaluations(report)] if report.evaluations else []),
            *(["## Calibration\n\n" + _calibration(report)] if report.calibration_bins else []),
            "## Cache traffic\n\n" + _traffic(report),
            *(["## Prediction and measurement\n\n" + _prediction(report)] if report.prediction is not None else []),
            "## Tables that miss most\n\n" + _tables(report),
            "## Memory\n\n" + _memory(run),
            "## Where a step's time goes\n\n" + _phases(run),
            "## Course of the run\n\n" + _course(run.rows),
        ]
    environment = [(key, _escaped(value)) for key, value in report.environment.items()]
    sections += ["## To repeat it\n\n" + _table(("", ""), environment), f"```toml\n{run.config.strip()}\n```"]
    return "\n\n".join(sections) + "\n"


def _result(report: Report) -> str:
    rows = {
        "steps": f"{report.steps:,}",
        "samples": f"{report.samples:,}",
        "training time, without setup and evaluation": format_seconds(report.training_s),
        "samples per second, after the first 5 % of the steps": number(report.samples_per_s, ",.0f"),
        "loss, mean over the run": number(report.loss_mean, ".5f"),
        "loss of the last step": number(report.loss_last, ".5f"),
        "AUC on held-out samples": NONE,
        **{name: figure for name, figure in scores_in_words(report).items() if figure != NONE},
        "hit ratio over lookups": f"{report.hit_ratio:.2%}",
        "hit ratio over working-set rows": f"{report.unique_hit_ratio:.2%}",
    }
    if (of_min := report.counters.moved_of_min) is not None:
        rows["rows brought in, of the fewest possible (Belady's MIN)"] = f"{of_min:.3f}"
    return _table(("", ""), list(rows.items()))


def _evaluations(report: Report) -> str:
    """At most `_COURSE_ROWS` of them, evenly spaced, the best and the last among them."""
    picked = {*_spread(len(report.evaluations)), *(i for i, one in enumerate(report.evaluations) if one is report.best)}
    columns = {name: title for name, title in _EVALUATION.items() if name != "gauc" or report.gauc is not None}
    rows = []
    for index in sorted(picked):
        one = report.evaluations[index]
        remarks = [
            word for word, step in (("best", report.best_step), ("kept", report.evaluated_step)) if step == one.step
        ]
        if index == len(report.evaluations) - 1:
            remarks = [*(remark for remark in remarks if remark == "best"), "last"]
        figures = [number(getattr(one, name), form) for name, (_, form) in columns.items()]
        rows.append([f"{one.step:,}", *figures, ", ".join(remarks)])
    note = (
        f"\n\nOf {len(report.evaluations):,}; all are in report.json." if len(picked) < len(report.evaluations) else ""
    )
    return _table(["step", *(title for title, _ in columns.values()), ""], rows) + note


def _calibration(report: Report) -> str:
    rows = [(f"{one.predicted:.5f}", f"{one.observed:.5f}", f"{one.samples:,}") for one in report.calibration_bins]
    return _table(("mean prediction", "mean label", "samples"), rows)


def _spread(count: int) -> list[int]:
    """At most `_COURSE_ROWS` of so many, evenly spaced, the last among them."""
    return sorted({round(i * (count - 1) / (_COURSE_ROWS - 1)) for i in range(_COURSE_ROWS)})


def _traffic(report: Report) -> str:
    counters, steps = report.counters, max(1, report.steps)
    counts = {
        "lookups": counters.lookups,
        "of these on rows resident when planned": counters.hit_lookups,
        "working-set rows": counters.working_set_rows,
        "of these resident when planned": counters.resident_rows,
        "first touches (created, not fetched)": counters.first_touch_rows,
        "rows fetched from the store": counters.fetched_rows,
        "rows brought in, created or fetched": counters.moved_rows,
        **({"the fewest possible (Belady's MIN)": counters.moved_rows_min} if counters.moved_rows_min else {}),
        "rows evicted": counters.evicted_rows,
        "rows written back": counters.written_back_rows,
    }
    return _table(("", "run", "per step"), [(name, f"{n:,}", f"{n / steps:,.1f}") for name, n in counts.items()])


def _prediction(report: Report) -> str:
    rows, note = foreseen(report)
    return _table(FORESEEN_HEADER, rows) + f"\n\n{note}"


def _tables(report: Report) -> str:
    """At most `_MOST_TABLES`, with their share of all lookups that missed and of their own rows that were touched."""
    missed = report.lookups - report.counters.hit_lookups
    if not missed:
        return "No lookup missed."
    rows = [
        (
            _escaped(table.title),
            f"{table.rows:,}",
            f"{table.lookups:,}",
            number(table.hit_ratio, ".2%"),
            f"{table.missed_lookups / missed:.1%}",
            f"{table.touched_rows:,}",
            f"{table.touched_rows / table.rows:.1%}",
        )
        for table in most_missed(report.tables)[:_MOST_TABLES]
    ]
    header = ("table", "rows", "lookups", "hit ratio", "share of all misses", "touched rows", "of its rows")
    return f"{_table(header, rows)}\n\nOf {len(report.tables):,} tables; all are in report.json."


def _memory(run: Run) -> str:
    report, disk = run.report, disk_bytes(run.rows)
    device = [
        (f"device: {name.replace('_', ' ')}", format_bytes(n)) for name, n in report.device_bytes_breakdown.items()
    ]
    return _table(
        ("", ""),
        [
            ("all tables with optimizer state", format_bytes(report.table_bytes)),
            *device,
            ("device: peak", format_bytes(report.device_peak_bytes)),
            ("device: budget or free memory", format_bytes(report.device_limit_bytes)),
            ("host: records", format_bytes(report.host_store_bytes)),
            ("host: budget of records or free memory", format_bytes(report.host_limit_bytes or 0)),
            ("process: peak of anonymous memory", format_bytes(report.host_peak_bytes)),
            ("process: peak of mapped pages", format_bytes(report.mapped_peak_bytes)),
            *([("disk: peak of the store's file", format_bytes(disk))] if disk else []),
        ],
    )


def _phases(run: Run) -> str:
    """Shares are of the time a step took, so another thread's come on top of a hundred percent."""
    rows, step_ms = [], run.report.step_ms
    for phase, milliseconds in run.report.phase_ms.items():
        share = milliseconds / step_ms if step_ms > 0 else 0.0
        rows.append((phase.replace("_", " "), f"{milliseconds:.3f}", f"{share:.1%}", "█" * round(40 * min(1.0, share))))
    beside = run.options.cache.prefetch_depth != 0
    where = "run in the prefetch thread, beside the others" if beside else "run in the training thread, as all others"
    note = f"A step took {step_ms:.3f} ms. {', '.join(PREPARING_PHASES[:-1])} and {PREPARING_PHASES[-1]} {where}."
    return _table(("phase", "ms per step", "share of a step", ""), rows) + f"\n\n{note}"


def _course(rows: Sequence[MetricsRow]) -> str:
    """Curves of the whole run, and at most `_COURSE_ROWS` lines of the metrics, evenly spaced, the last among them."""
    if not rows:
        return "No step was trained."
    picked = _spread(len(rows))
    table = _table(
        [title for title, _ in _COURSE.values()],
        [[number(rows[index].get(key), form) for key, (_, form) in _COURSE.items()] for index in picked],
    )
    return "\n".join(["```text", *(_curve(rows, key) for key in ("loss", "auc", "hit_ratio")), "```", "", table])


def _curve(rows: Sequence[MetricsRow], key: str) -> str:
    title, form = _COURSE[key]
    values = [value for row in rows if (value := row.get(key)) is not None]
    if not values:
        return f"{title:<10} no value"
    ends = f"{number(values[0], form)} to {number(values[-1], form)}"
    return f"{title:<10} {ends:<20} {sparkline(values, _CURVE_WIDTH)}"


def _escaped(value: object) -> str:
    """A cell of a table keeps its one line and its column."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = "|".join(["---", *["---:"] * (len(header) - 1)])
    lines = [f"| {' | '.join(header)} |", f"|{align}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
