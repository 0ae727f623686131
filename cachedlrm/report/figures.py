"""The figures of a run that lie side by side where runs are compared."""

from cachedlrm.base.units import format_bytes, format_seconds
from cachedlrm.report.runs import Run
from cachedlrm.report.words import waited_share

NONE = "-"


def figures(run: Run) -> dict[str, str]:
    """Figures in words by name, `NONE` where there is none; the same names for every run."""
    report, depth = run.report, run.options.cache.prefetch_depth
    counters, steps = report.counters, max(1, report.steps)
    trained = report.steps > 0
    served = report.served.served if report.served else None

    kept = f"{report.cache_slots:,} ({report.cache_slots / max(1, report.table_rows):.2%})"

    def number(value: float | None, form: str) -> str:
        return NONE if value is None else format(value, form)

    def a_step(value: int, form: str = ",.1f") -> str:
        return format(value / steps, form) if trained else NONE

    return {
        "steps": f"{report.steps:,}",
        "samples": f"{report.samples:,}",
        "training time": format_seconds(report.training_s) if trained else NONE,
        "samples a second": number(report.samples_per_s if trained else None, ",.0f"),
        "loss, mean over the run": number(report.loss_mean, ".5f"),
        "loss of the last step": number(report.loss_last, ".5f"),
        "AUC on held-out samples": number(report.auc, ".4f"),
        "accuracy on held-out samples": number(report.accuracy, ".2%"),
        "held-out samples a second": number(served.samples_per_s if served else None, ",.0f"),
        "rows of all tables": f"{report.table_rows:,}",
        "rows kept on the device": kept if served is None else NONE,  # then they are read where they are
        "hit ratio over lookups": number(counters.hit_ratio if trained else None, ".2%"),
        "hit ratio over unique rows": number(counters.unique_hit_ratio if trained else None, ".2%"),
        "rows brought in a step": a_step(counters.moved_rows),
        "of these created at first touch": a_step(counters.first_touch_rows),
        "rows written back a step": a_step(counters.written_back_rows),
        "bytes moved a step": format_bytes(round(report.moved_bytes_per_step)) if trained else NONE,
        "rows brought in, of the fewest (MIN)": number(counters.moved_of_min, ".3f"),
        "waiting for rows, of training": number(waited_share(report, depth) if trained else None, ".1%"),
        "device memory, peak": format_bytes(report.device_peak_bytes),
        "host memory of the process, peak": format_bytes(report.host_peak_bytes),
    }
