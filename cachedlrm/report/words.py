"""A run in words and in tables of text, for somebody who did not start it."""

from collections.abc import Sequence

from cachedlrm.base.units import format_bytes, format_seconds
from cachedlrm.report.axes import BYTES, NUMBER, RATIO
from cachedlrm.report.metrics import waiting_phases
from cachedlrm.report.record import InferenceReport, Report, TableReport
from cachedlrm.report.runs import Run
from cachedlrm.report.scores import Scores
from cachedlrm.report.verdict import standing, worse_than_mean

NONE = "-"
"""Stands where there is no value."""

_MUCH_WAITING = 0.05
_NARROW = 0.9  # of the memory


def number(value: float | None, form: str) -> str:
    """A value in the format ``form``, or `NONE`."""
    return NONE if value is None else format(value, form)


def one_line(report: Report) -> str:
    """The line on the terminal at the end of a run."""
    if report.inference is not None:
        return served_summary(report.inference)
    if not report.steps:
        return "no step was trained; the model was built and initialised"
    loss = "" if report.loss_mean is None else f", mean loss {report.loss_mean:.5f}"
    scores = standing(report)
    ratio = report.counters.moved_of_min
    of_min = "" if ratio is None else f", {ratio:.3f} of the rows that MIN moves"
    return (
        f"{report.steps:,} steps, {number(report.samples_per_s, ',.0f')} samples/s{loss}"
        f"{', ' if scores else ''}{scores}, {report.hit_ratio:.2%} hits{of_min}"
        + (f"\nended early: {report.stopped}" if report.stopped else "")
    )


def summary(run: Run) -> str:
    """A paragraph on a run that trained."""
    report = run.report
    if not report.steps:
        return "No step was trained: the model was built and initialised."
    scores, verdict = standing(report), worse_than_mean(run)
    learned = f". On held-out samples: {scores}" if scores else ""
    if report.stopped:
        learned += f". The run ended early: {report.stopped}"
    learned += f". {verdict.removesuffix('.')}" if verdict else ""
    temporary = ""
    if report.temporary_slots:
        temporary = f", and up to {report.temporary_slots:,} more while a batch needed them"
    kept = "" if report.row_dtype == "fp32" else f" of {report.record_bytes} bytes, their weights in {report.row_dtype}"
    rate = "" if report.samples_per_s is None else f" at {report.samples_per_s:,.0f} samples/s"
    return (
        f"The model was trained on {report.samples:,} samples in {report.steps:,} steps{rate}{learned}. "
        f"Its tables have {report.table_rows:,} rows{kept}; the device kept at most "
        f"{report.cache_slots:,} of them ({report.cache_slots / max(1, report.table_rows):.2%}){temporary}, and "
        f"{report.hit_ratio:.1%} of lookups found their row there. {format_bytes(report.moved_bytes)} of rows moved "
        f"between device and store, {format_bytes(report.moved_bytes // report.steps)} a step, and training waited "
        f"{_waited_ms(run):.2f} ms a step for rows. Results do not depend on the cache: an uncached run gives the same "
        "bits."
    )


def _waited_ms(run: Run) -> float:
    waiting = waiting_phases(run.options.cache.prefetch_depth)
    return max(0.0, sum(run.report.phase_ms.get(phase, 0.0) for phase in waiting))


def _waited_share(run: Run) -> float:
    """Share of waiting for rows in the time of training."""
    return min(1.0, _waited_ms(run) / run.report.step_ms) if run.report.step_ms > 0 else 0.0


def key_figures(run: Run) -> list[tuple[str, str, str]]:
    """(name, figure, meaning) of a run that trained."""
    report, counters = run.report, run.report.counters
    figures = [_learning(report)]
    if report.samples_per_s is not None:
        figures.append(("Speed", f"{report.samples_per_s:,.0f} /s", "samples trained in a second"))
    waited = _waited_share(run)
    keeps_up = "the cache keeps up" if waited < _MUCH_WAITING else "rows come late; --prefetch-depth or a larger cache"
    figures.append(("Waiting for rows", f"{waited:.1%}", f"of training's time: {keeps_up}"))
    meaning = "of lookups found their row on the device"
    if counters.moved_of_min is not None:
        meaning += f"; rows brought in: {counters.moved_of_min:.3f} of the fewest possible"
    figures.append(("Hit ratio", f"{report.hit_ratio:.2%}", meaning))
    figures.append(_device(report))
    missed = counters.lookups - counters.hit_lookups
    if missed and report.tables:
        worst = most_missed(report.tables)[0]
        figures.append(("Table that misses most", worst.title, f"{worst.missed_lookups / missed:.0%} of all misses"))
    return figures


def _learning(report: Report) -> tuple[str, str, str]:
    if report.normalized_entropy is not None and report.normalized_entropy >= 1:
        of_mean = f"{report.normalized_entropy:.3f}"
        return "Loss, of predicting the mean's", of_mean, "on held-out samples: from 1 on nothing was learned"
    if report.auc is not None:
        return "AUC", f"{report.auc:.4f}", "ranking of held-out samples: 0.5 is guessing, 1 is perfect"
    return "Mean loss", number(report.loss_mean, ".5f"), "over the run; no AUC on held-out samples"


def _device(report: Report) -> tuple[str, str, str]:
    used, limit = report.device_peak_bytes, report.device_limit_bytes
    nearly_full = ": nearly full" if limit and used > _NARROW * limit else ""
    return "Device memory", format_bytes(used), f"of {format_bytes(limit)}{nearly_full}"


def figures(run: Run) -> dict[str, str]:
    """Figures by name, `NONE` where there is none; the same names for every run, so that runs can be compared."""
    report, counters = run.report, run.report.counters
    trained, steps = report.steps > 0, max(1, report.steps)
    served = report.inference.served if report.inference else None
    kept = f"{report.cache_slots:,} ({report.cache_slots / max(1, report.table_rows):.2%})"

    def if_trained(value: float | None, form: str) -> str:
        return number(value if trained else None, form)

    return {
        "steps": f"{report.steps:,}",
        "samples": f"{report.samples:,}",
        "training time": format_seconds(report.training_s) if trained else NONE,
        "samples a second": if_trained(report.samples_per_s, ",.0f"),
        "loss, mean over the run": number(report.loss_mean, ".5f"),
        "loss of the last step": number(report.loss_last, ".5f"),
        "learning rate of the last step": number(report.learning_rate, ".3g"),
        "learning rate of layers, last step": number(report.dense_learning_rate, ".3g"),
        **scores_in_words(report),
        "best evaluation, step": number(report.best_step if trained else None, ","),
        "held-out samples a second": number(served.samples_per_s if served else None, ",.0f"),
        "rows of all tables": f"{report.table_rows:,}",
        "bytes of a row": f"{report.record_bytes:,}, weights in {report.row_dtype}",
        "rows kept on the device": kept if served is None else NONE,  # a served model's rows are read where they are
        "hit ratio over lookups": if_trained(report.hit_ratio, ".2%"),
        "hit ratio over unique rows": if_trained(report.unique_hit_ratio, ".2%"),
        "rows brought in a step": if_trained(counters.moved_rows / steps, ",.1f"),
        "of these created at first touch": if_trained(report.first_touch_rows / steps, ",.1f"),
        "rows written back a step": if_trained(report.written_back_rows / steps, ",.1f"),
        "bytes moved a step": format_bytes(round(report.moved_bytes_per_step)) if trained else NONE,
        "rows brought in, of the fewest (MIN)": number(counters.moved_of_min, ".3f"),
        "waiting for rows, of training": if_trained(_waited_share(run), ".1%"),
        "device memory, peak": format_bytes(report.device_peak_bytes),
        "host memory of the process, peak": format_bytes(report.host_peak_bytes),
    }


def scores_in_words(scores: Scores) -> dict[str, str]:
    """The figures of an evaluation by name, `NONE` where there is none."""
    return {
        "AUC on held-out samples": number(scores.auc, ".4f"),
        "logloss on held-out samples": number(scores.logloss, ".5f"),
        "normalized entropy (1: no better than the mean)": number(scores.normalized_entropy, ".4f"),
        "calibration (mean prediction / mean label)": number(scores.calibration, ".4f"),
        "average precision": number(scores.average_precision, ".4f"),
        "AUC within ids of --gauc-table": number(scores.gauc, ".4f"),
        "accuracy on held-out samples": number(scores.accuracy, ".2%"),
    }


FORESEEN_HEADER = ("", "predicted", "measured", "difference")


def foreseen(report: Report) -> tuple[list[tuple[str, str, str, str]], str]:
    """Predictions of a run beside its figures: rows of a table under `FORESEEN_HEADER`, and a note below it."""
    prediction, steps = report.prediction, max(1, report.steps)
    assert prediction is not None
    rows = []
    for name, predicted, measured, unit in (
        ("hit ratio", prediction.hit_ratio, report.hit_ratio, RATIO),
        ("rows created a step", prediction.first_touch_rows_per_step, report.first_touch_rows / steps, NUMBER),
        ("rows fetched a step", prediction.fetched_rows_per_step, report.fetched_rows / steps, NUMBER),
        ("bytes moved a step", prediction.moved_bytes_per_step, report.moved_bytes_per_step, BYTES),
        ("samples a second, at most", prediction.samples_per_s_at_most, report.samples_per_s, NUMBER),
    ):
        if predicted is None or measured is None:
            difference = NONE
        elif unit is RATIO:
            difference = f"{(measured - predicted) * 100:+.2f} points"
        elif not predicted:
            difference = NONE
        elif name.endswith("at most"):
            difference = f"{measured / predicted:.1%} of it"
        else:
            difference = f"{measured / predicted - 1:+.1%}"
        said = [NONE if value is None else unit.say(value) for value in (predicted, measured)]
        rows.append((name, said[0], said[1], difference))
    note = (
        f"Predicted from the ids of {prediction.sampled_batches:,} of {prediction.batches:,} batches; the rate is what "
        "the described hardware allows, whatever trains on it."
    )
    return rows, note


def most_missed(tables: Sequence[TableReport]) -> list[TableReport]:
    """The tables, those with the most missed lookups first; of equal ones, the earlier."""
    return sorted(tables, key=lambda table: -table.missed_lookups)


def served_summary(inference: InferenceReport) -> str:
    """One line on a model that was served."""
    served = inference.served
    auc = "" if served.auc is None else f", AUC {served.auc:.4f}"
    return (
        f"{inference.samples:,} held-out samples, {served.samples_per_s:,.0f} samples/s, "
        f"accuracy {number(served.accuracy, '.3%')}{auc}, loss {number(served.loss, '.5f')}"
    )


def served_table(inference: InferenceReport) -> list[tuple[str, ...]]:
    """Rows of a table on the models served, the header first."""
    before, after = inference.before, inference.after
    models = {"": before} if after is None else {"before quantisation": before, "after": after}
    columns = [
        (
            name,
            number(model.accuracy, ".3%"),
            number(model.auc, ".5f"),
            number(model.loss, ".5f"),
            number(model.normalized_entropy, ".4f"),
            number(model.calibration, ".4f"),
            number(model.average_precision, ".5f"),
            number(model.gauc, ".5f"),
            f"{model.samples_per_s:,.0f}",
            format_bytes(model.embedding_bytes),
            format_bytes(model.mlp_bytes),
        )
        for name, model in models.items()
    ]
    titles = (
        f"{inference.samples:,} samples",
        "accuracy",
        "AUC",
        "loss",
        "normalized entropy",
        "calibration",
        "average precision",
        "AUC within ids",
        "samples/s",
        "embeddings",
        "MLPs",
    )
    return list(zip(titles, *columns, strict=True))
