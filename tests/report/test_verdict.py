"""What is said of a run that has learned nothing, and of its evaluations."""

from dataclasses import replace

from cachedlrm.options.config import Options
from cachedlrm.report.scores import Evaluated
from cachedlrm.report.verdict import standing, worse_than_mean
from support.reports import NO_STEP, report, run_of

OPTIONS = replace(Options(), optimisation=replace(Options().optimisation, learning_rate=0.05))
EVALUATIONS = (
    Evaluated(step=5, auc=0.7, logloss=0.45, normalized_entropy=0.9),
    Evaluated(step=10, auc=0.65, logloss=0.6, normalized_entropy=1.2),
)


def said(**changes: object) -> str | None:
    return worse_than_mean(run_of(report(**changes), options=OPTIONS))


def test_the_best_and_the_last_are_named():
    last = report(evaluations=EVALUATIONS, evaluated_step=10, best_step=5)
    assert standing(last) == "AUC 0.6500, logloss 0.60000 at step 10 (the best, at step 5: AUC 0.7000, logloss 0.45000)"
    kept = replace(last, evaluated_step=5)
    assert standing(kept) == (
        "AUC 0.7000, logloss 0.45000 at step 5, the best, kept (the last, at step 10: AUC 0.6500, logloss 0.60000)"
    )
    assert standing(replace(last, evaluations=EVALUATIONS[:1], evaluated_step=5)) == "AUC 0.7000, logloss 0.45000"
    assert standing(report(auc=None)) == ""


def test_a_run_that_learns_hears_nothing():
    assert said(logloss=0.4, normalized_entropy=0.9) is None
    assert said(loss_recent=0.5, loss_of_mean=0.56) is None
    assert said(loss_recent=0.563, loss_of_mean=0.56) is None  # noise
    assert said() is None
    assert said(**NO_STEP) is None


def test_rates_that_are_too_high_are_named():
    words = said(auc=0.5, logloss=27.7, normalized_entropy=50.0)
    assert words.startswith("Worse than predicting the mean: held-out logloss 27.70000, and 0.55400 for predicting")
    assert "Lower --learning-rate (0.05), or warm it up" in words
    words = said(auc=None, loss_recent=1.2, loss_of_mean=0.5, steps=1000)
    assert words.startswith("Worse than predicting the mean: training loss of the last steps 1.20000, and 0.50000")


def test_a_model_that_was_better_before_is_told_apart():
    words = said(logloss=0.6, normalized_entropy=1.2, evaluations=EVALUATIONS, best_step=5)
    assert "At step 5 it was better (0.900 times that loss)" in words
    assert "--keep-best" in words


def test_few_steps_and_odd_probabilities_are_told_apart():
    assert "10 steps are few" in said(logloss=0.6, normalized_entropy=1.1)
    words = said(steps=500, auc=0.75, logloss=0.6, normalized_entropy=1.2, calibration=1.5)
    assert "ranks well (AUC 0.7500)" in words
    assert "1.50 times the mean label" in words
