"""Has a run learned, and when was it best? In words, for the terminal and the reports."""

import shlex

from cachedlrm.options.torchrec import in_its_words
from cachedlrm.report.record import Report
from cachedlrm.report.runs import Run
from cachedlrm.report.scores import Evaluated

_FEW_STEPS = 100
_NOISE = 1.01  # of a mean loss over some steps
_RANKS = 0.6  # AUC from which on a model has learned to rank
_FAR = 0.1  # from a calibration of 1


def standing(report: Report) -> str:
    """The scores of the state that the run left, and the best and the last evaluation where they are others.

    Empty without evaluations.
    """
    if report.evaluated_step is None:  # of an earlier version
        return "" if report.auc is None else f"AUC {report.auc:.4f}"
    here = next((one for one in report.evaluations if one.step == report.evaluated_step), None)
    if here is None:
        return ""
    text, best, last = _figures(here), report.best, report.evaluations[-1]
    if last.step != here.step:
        return f"{text} at step {here.step:,}, the best, kept (the last, at step {last.step:,}: {_figures(last)})"
    if best is not None and best.step != here.step:
        return f"{text} at step {here.step:,} (the best, at step {best.step:,}: {_figures(best)})"
    return text


def _figures(evaluation: Evaluated) -> str:
    figures = (("AUC", evaluation.auc, ".4f"), ("logloss", evaluation.logloss, ".5f"))
    return ", ".join(f"{name} {value:{form}}" for name, value, form in figures if value is not None)


def worse_than_mean(run: Run) -> str | None:
    """What to say of a model that is worse than predicting the mean label for every sample; None: it is not.

    By held-out samples, or without them by the last losses of training. Options have the names of the run's command
    line.
    """
    report = run.report
    if not report.steps:
        return None
    if report.normalized_entropy is not None and report.logloss is not None:
        loss, of_mean, where = report.logloss, report.logloss / report.normalized_entropy, "held-out logloss"
        is_worse = loss > of_mean
    elif report.loss_recent is not None and report.loss_of_mean:
        loss, of_mean, where = report.loss_recent, report.loss_of_mean, "training loss of the last steps"
        is_worse = loss > _NOISE * of_mean
    else:
        return None
    if not is_worse:
        return None
    advice = in_its_words(shlex.split(str(report.environment["command"])), _advice(run, loss / of_mean))
    return (
        f"Worse than predicting the mean: {where} {loss:.5f}, and {of_mean:.5f} for predicting the mean label for "
        f"every sample. {advice}"
    )


def _advice(run: Run, ratio: float) -> str:
    report, rate = run.report, run.options.optimisation.learning_rate
    best, low = report.best, f"Lower --learning-rate ({rate})"
    if best is not None and best.normalized_entropy is not None and best.normalized_entropy < 1:
        return (
            f"At step {best.step:,} it was better ({best.normalized_entropy:.3f} times that loss): it has learned its "
            "samples by heart since. Keep that state (--keep-best), or end earlier (--stop-after, --steps)."
        )
    if ratio < 2 and report.steps < _FEW_STEPS:
        return f"{report.steps:,} steps are few: train longer (--steps, --nepochs)."
    if report.auc is not None and report.auc >= _RANKS:
        calibration = report.calibration
        off = ""
        if calibration is not None and abs(calibration - 1) > _FAR:
            off = f"; the mean prediction is {calibration:.2f} times the mean label"
        return f"It ranks well (AUC {report.auc:.4f}), but its probabilities are off{off}. {low}, or train longer."
    return f"{low}, or warm it up (--lr-num-warmup-steps); narrower layers (--arch-mlp-top) learn more easily, too."
