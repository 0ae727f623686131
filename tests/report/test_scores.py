"""Which evaluation was the best."""

from cachedlrm.report.scores import Evaluated, best_of, num_without_improvement

EVALUATIONS = [
    Evaluated(step=2, auc=0.6, logloss=0.5),
    Evaluated(step=4, auc=0.7, logloss=0.4),
    Evaluated(step=6, auc=0.7, logloss=0.3),
    Evaluated(step=8, auc=None, logloss=0.9),
]


def test_the_first_of_the_best():
    assert best_of(EVALUATIONS, "auc").step == 4
    assert best_of(EVALUATIONS, "logloss").step == 6
    assert best_of(EVALUATIONS[3:], "auc") is best_of([], "logloss") is None


def test_evaluations_since_then():
    assert num_without_improvement(EVALUATIONS, "auc") == 2
    assert num_without_improvement(EVALUATIONS, "logloss") == 1
    assert num_without_improvement([], "auc") == num_without_improvement(EVALUATIONS[3:], "auc") == 0
