"""The area under the ROC curve, by hand and as scikit-learn computes it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cachedlrm.run.evaluation import area_under_roc


def area(predictions: list[float], labels: list[int]) -> float:
    return area_under_roc(np.array(predictions, np.float32), np.array(labels, np.float32))


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([0.1, 0.9], [0, 1], 1.0),
        ([0.9, 0.1], [0, 1], 0.0),
        ([0.5, 0.5], [0, 1], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 3 / 4),  # of four pairs, 0.35 over 0.4 is wrong
        ([0.2, 0.2, 0.2, 0.7], [1, 0, 0, 1], 3 / 4),  # two ties count half each, two pairs are right
        ([-0.0, 0.0], [1, 0], 0.5),
        ([0.3, 0.1, 0.2], [1, 0, 0], 1.0),
    ],
)
def test_pairs_counted_by_hand(predictions, labels, expected):
    assert area(predictions, labels) == expected


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2, max_size=60))
def test_every_pair_is_counted_once(samples):
    samples = [*samples, (0.5, True), (0.25, False)]
    positives = [value for value, label in samples if label]
    negatives = [value for value, label in samples if not label]
    halves = sum((p > n) + (p >= n) for p in positives for n in negatives)
    assert area([value for value, _ in samples], [label for _, label in samples]) == halves / (
        2 * len(positives) * len(negatives)
    )


def test_scikit_learn_says_the_same():
    generator = np.random.default_rng(0)
    for digits in (1, 3, 9):  # with many ties, with few, with none
        predictions = generator.random(20_000).round(digits).astype(np.float32)
        labels = (generator.random(20_000) < 0.1 + 0.4 * predictions).astype(np.float32)
        assert area_under_roc(predictions, labels) == pytest.approx(roc_auc_score(labels, predictions), abs=1e-12)
