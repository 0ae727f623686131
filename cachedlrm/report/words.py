"""A run in words, for somebody who did not start it."""

from cachedlrm.base.units import format_bytes
from cachedlrm.report.metrics import waiting_phases
from cachedlrm.report.tables import most_missed
from cachedlrm.report.typed_report import Report

_MUCH_WAITING = 0.05
_NARROW = 0.9  # of the memory


def summary(report: Report, prefetch_depth: int | None) -> str:
    """A paragraph.

    Args:
        report: the run.
        prefetch_depth: of its options; 0 where the training thread prepares the rows, too.
    """
    counters, share = report.counters, report.cache_slots / max(1, report.table_rows)
    if not report.steps:
        return "No step was trained: the model was built and initialised."
    learned = "" if report.auc is None else f", and ranks held-out samples with an AUC of {report.auc:.4f}"
    temporary = ""
    if report.temporary_slots:
        temporary = f", and up to {report.temporary_slots:,} more while a batch needed them"
    moved = counters.fetched_bytes + counters.written_back_bytes
    waited = _waited_ms(report, prefetch_depth)
    rate = "" if report.samples_per_s is None else f" at {report.samples_per_s:,.0f} samples/s"
    return (
        f"The model was trained on {report.samples:,} samples in {report.steps:,} steps{rate}{learned}. "
        f"Its tables have {report.table_rows:,} rows; the device kept at most "
        f"{report.cache_slots:,} of them ({share:.2%}){temporary}, and {counters.hit_ratio:.1%} of lookups found their "
        f"row there. {format_bytes(moved)} of rows moved between device and store, "
        f"{format_bytes(moved // report.steps)} a step, and training waited {waited:.2f} ms "
        "a step for rows. Results do not depend on the cache: an uncached run gives the same bits."
    )


def _waited_ms(report: Report, prefetch_depth: int | None) -> float:
    return max(0.0, sum(report.phase_ms.get(phase, 0.0) for phase in waiting_phases(prefetch_depth)))


def waited_share(report: Report, prefetch_depth: int | None) -> float:
    """Share of waiting for rows in the time of training; arguments are those of `summary`."""
    return min(1.0, _waited_ms(report, prefetch_depth) / report.step_ms) if report.step_ms > 0 else 0.0


def key_figures(report: Report, prefetch_depth: int | None) -> list[tuple[str, str, str]]:
    """(what, figure, what it means) of a run that trained; arguments are those of `summary`."""
    figures = [_learning(report)]
    if report.samples_per_s is not None:
        figures.append(("Speed", f"{report.samples_per_s:,.0f} /s", "samples trained in a second"))
    waited = waited_share(report, prefetch_depth)
    keeps_up = "the cache keeps up" if waited < _MUCH_WAITING else "rows come late; --prefetch-depth or a larger cache"
    figures.append(("Waiting for rows", f"{waited:.1%}", f"of training's time: {keeps_up}"))
    counters = report.counters
    of_min = counters.moved_of_min
    beside = "of lookups found their row on the device"
    if of_min is not None:
        beside += f"; rows brought in: {of_min:.3f} of the fewest possible"
    figures.append(("Hit ratio", f"{counters.hit_ratio:.2%}", beside))
    figures.append(_device(report))
    missed = counters.lookups - counters.hit_lookups
    if missed and report.tables:
        worst = most_missed(report.table_counters)[0]
        share = worst.missed_lookups / missed
        figures.append(("Table that misses most", worst.name, f"{share:.0%} of all misses"))
    return figures


def _learning(report: Report) -> tuple[str, str, str]:
    if report.auc is not None:
        return "AUC", f"{report.auc:.4f}", "ranking of held-out samples: 0.5 is guessing, 1 is perfect"
    loss = "-" if report.loss_mean is None else f"{report.loss_mean:.5f}"
    return "Mean loss", loss, "over the run; no AUC on held-out samples"


def _device(report: Report) -> tuple[str, str, str]:
    used, limit = report.device_peak_bytes, report.device_limit_bytes
    words = f"of {format_bytes(limit)}"
    if limit and used > _NARROW * limit:
        words += ": nearly full"
    return "Device memory", format_bytes(used), words
