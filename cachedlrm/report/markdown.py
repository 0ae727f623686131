"""``report.md``: a run for people, as text."""

from collections.abc import Mapping, Sequence

from cachedlrm.base.units import format_bytes, format_seconds
from cachedlrm.cache.counters import PREPARING_PHASES
from cachedlrm.report.curves import disk_bytes
from cachedlrm.report.foreseen import HEADER, foreseen
from cachedlrm.report.live_view import sparkline
from cachedlrm.report.metrics import MetricsRow
from cachedlrm.report.tables import most_missed
from cachedlrm.report.totals import RunTotals
from cachedlrm.report.typed_report import Report, parse_report
from cachedlrm.report.words import summary

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


def report_markdown(totals: RunTotals, report: Mapping[str, object], rows: Sequence[MetricsRow], config: str) -> str:
    """``report.md``.

    Args:
        totals: the run.
        report: its ``report.json``.
        rows: its ``metrics.jsonl``.
        config: its ``config.toml``.
    """
    environment = report["environment"]
    assert isinstance(environment, dict)
    if totals.inference is not None:
        header, *lines = totals.inference.rows()
        sections = ["# Inference report", _table(header, lines)]
    else:
        typed = parse_report(report)
        sections = [
            "# Training report",
            summary(typed, totals.options.cache.prefetch_depth),
            "## Result\n\n" + _result(totals),
            "## Cache traffic\n\n" + _traffic(totals),
            *(["## Prediction and measurement\n\n" + _prediction(typed)] if typed.prediction is not None else []),
            "## Tables that miss most\n\n" + _tables(totals),
            "## Memory\n\n" + _memory(totals, rows),
            "## Where a step's time goes\n\n" + _phases(totals),
            "## Course of the run\n\n" + _course(rows),
        ]
    sections += [
        "## To repeat it\n\n" + _table(("", ""), [(key, _escaped(value)) for key, value in environment.items()]),
        f"```toml\n{config.strip()}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _result(totals: RunTotals) -> str:
    rows = {
        "steps": f"{totals.steps:,}",
        "samples": f"{totals.samples:,}",
        "training time, without setup and evaluation": format_seconds(totals.training_s),
        "samples per second, after the first 5 % of the steps": f"{totals.samples_per_s:,.0f}",
        "loss, mean over the run": _number(totals.loss_mean, ".5f"),
        "loss of the last step": _number(totals.loss_last, ".5f"),
        "AUC on held-out samples": _number(totals.auc, ".4f"),
        "hit ratio over lookups": f"{totals.counters.hit_ratio:.2%}",
        "hit ratio over working-set rows": f"{totals.counters.unique_hit_ratio:.2%}",
    }
    if (of_min := totals.counters.moved_of_min) is not None:
        rows["rows brought in, of the fewest possible (Belady's MIN)"] = f"{of_min:.3f}"
    return _table(("", ""), list(rows.items()))


def _traffic(totals: RunTotals) -> str:
    counters, steps = totals.counters, max(1, totals.steps)
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
    return _table(HEADER, rows) + f"\n\n{note}"


def _tables(totals: RunTotals) -> str:
    """At most `_MOST_TABLES`, with their share of all lookups that missed and of their own rows that were touched."""
    missed = totals.counters.lookups - totals.counters.hit_lookups
    if not missed:
        return "No lookup missed."
    rows = [
        (
            table.name,
            f"{table.rows:,}",
            f"{table.lookups:,}",
            _number(table.hit_ratio, ".2%"),
            f"{table.missed_lookups / missed:.1%}",
            f"{table.touched_rows:,}",
            f"{table.touched_rows / table.rows:.1%}",
        )
        for table in most_missed(totals.tables)[:_MOST_TABLES]
    ]
    header = ("table", "rows", "lookups", "hit ratio", "share of all misses", "touched rows", "of its rows")
    return f"{_table(header, rows)}\n\nOf {len(totals.tables):,} tables; all are in report.json."


def _memory(totals: RunTotals, rows: Sequence[MetricsRow]) -> str:
    disk = disk_bytes(rows)
    device = [
        (f"device: {name.replace('_', ' ')}", format_bytes(n)) for name, n in totals.device_bytes_breakdown.items()
    ]
    return _table(
        ("", ""),
        [
            ("all tables with optimizer state", format_bytes(totals.table_bytes)),
            *device,
            ("device: peak", format_bytes(totals.device_peak_bytes)),
            ("device: budget or free memory", format_bytes(totals.device_limit_bytes)),
            ("host: records", format_bytes(totals.host_store_bytes)),
            ("host: budget of records or free memory", format_bytes(totals.host_limit_bytes)),
            ("process: peak of anonymous memory", format_bytes(totals.host_peak_bytes)),
            ("process: peak of mapped pages", format_bytes(totals.mapped_peak_bytes)),
            *([("disk: peak of the store's file", format_bytes(disk))] if disk else []),
        ],
    )


def _phases(totals: RunTotals) -> str:
    """Shares are of the time a step took, so those of another thread come on top of a hundred percent."""
    step_ms = totals.training_s * 1e3 / max(1, totals.steps)
    rows = []
    for phase, milliseconds in totals.phase_ms.items():
        share = milliseconds / step_ms if step_ms > 0 else 0.0
        rows.append((phase.replace("_", " "), f"{milliseconds:.3f}", f"{share:.1%}", "█" * round(40 * min(1.0, share))))
    beside = totals.options.cache.prefetch_depth != 0
    where = "run in the prefetch thread, beside the others" if beside else "run in the training thread, as all others"
    note = f"A step took {step_ms:.3f} ms. {', '.join(PREPARING_PHASES[:-1])} and {PREPARING_PHASES[-1]} {where}."
    return _table(("phase", "ms per step", "share of a step", ""), rows) + f"\n\n{note}"


def _course(rows: Sequence[MetricsRow]) -> str:
    """Curves of the whole run, and at most `_COURSE_ROWS` lines of the metrics, evenly spaced, the last among them."""
    if not rows:
        return "No step was trained."
    picked = sorted({round(i * (len(rows) - 1) / (_COURSE_ROWS - 1)) for i in range(_COURSE_ROWS)})
    table = _table(
        [title for title, _ in _COURSE.values()],
        [[_number(rows[index].get(key), form) for key, (_, form) in _COURSE.items()] for index in picked],
    )
    return "\n".join(["```text", *(_curve(rows, key) for key in ("loss", "auc", "hit_ratio")), "```", "", table])


def _curve(rows: Sequence[MetricsRow], key: str) -> str:
    title, form = _COURSE[key]
    values = [value for row in rows if (value := row.get(key)) is not None]
    if not values:
        return f"{title:<10} no value"
    ends = f"{_number(values[0], form)} to {_number(values[-1], form)}"
    return f"{title:<10} {ends:<20} {sparkline(values, _CURVE_WIDTH)}"


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _escaped(value: object) -> str:
    """A cell of a table keeps its one line and its column."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = "|".join(["---", *["---:"] * (len(header) - 1)])
    lines = [f"| {' | '.join(header)} |", f"|{align}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
