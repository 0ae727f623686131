"""Figures of predictions, by hand and as scikit-learn and numpy compute them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from cachedlrm.report.scores import Scores
from cachedlrm.run import scoring
from cachedlrm.run.scoring import area_under_roc, calibration_bins, entropy_of, grouped_auc, log_loss, score


def drawn(digits: int, samples: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, labels and ids; few digits make many ties."""
    generator = np.random.default_rng(digits)
    predictions = generator.random(samples).round(digits).astype(np.float32)
    labels = (generator.random(samples) < 0.1 + 0.4 * predictions).astype(np.float32)
    return predictions, labels, (generator.zipf(1.3, samples) % 500).astype(np.int32)


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


@pytest.mark.parametrize("digits", [1, 3, 9])
def test_scikit_learn_and_numpy_say_the_same(digits, monkeypatch):
    monkeypatch.setattr(scoring, "_PIECE_SAMPLES", 3000)
    predictions, labels, ids = drawn(digits)
    inside = np.clip(predictions.astype(np.float64), 2**-23, 1 - 2**-23)
    mean = labels.mean(dtype=np.float64)
    loss = sklearn_log_loss(labels, inside)
    groups = [ids == one for one in np.unique(ids) if 0 < labels[ids == one].mean() < 1]
    areas = [roc_auc_score(labels[group], predictions[group]) for group in groups]
    wanted = Scores(
        auc=roc_auc_score(labels, predictions),
        accuracy=np.mean(predictions.round() == labels),
        logloss=loss,
        normalized_entropy=loss / sklearn_log_loss(labels, np.full(len(labels), mean)),
        calibration=predictions.mean(dtype=np.float64) / mean,
        average_precision=average_precision_score(labels, predictions),
        gauc=np.average(areas, weights=[group.sum() for group in groups]),
    )
    assert 10 < len(groups) < len(np.unique(ids))
    assert vars(score(predictions, labels, ids)) == pytest.approx(vars(wanted), abs=1e-12)


def test_certain_predictions_have_a_finite_loss():
    predictions, labels = np.array([0.0, 1.0], np.float32), np.array([1.0, 0.0], np.float32)
    assert log_loss(predictions, labels) == pytest.approx(-math.log(2**-23))
    assert sklearn_log_loss(labels, predictions) == pytest.approx(-math.log(2**-23))


def test_labels_between_0_and_1_have_a_loss_and_no_ranks():
    predictions, labels = np.array([0.25, 0.5], np.float32), np.array([0.5, 0.25], np.float32)
    scores = score(predictions, labels)
    by_hand = -(0.5 * math.log(0.25) + 0.5 * math.log(0.75) + math.log(0.5)) / 2
    assert (scores.logloss, scores.calibration) == (pytest.approx(by_hand), 1.0)
    assert scores.normalized_entropy == pytest.approx(by_hand / entropy_of(0.375))
    assert scores.auc is scores.average_precision is scores.gauc is None


def test_one_label_alone_and_predictions_that_are_not_finite():
    predictions = np.array([0.25, 0.5], np.float32)
    alone = score(predictions, np.zeros(2, np.float32))
    assert alone.logloss == pytest.approx(-(math.log(0.75) + math.log(0.5)) / 2)
    assert alone.auc is alone.normalized_entropy is alone.calibration is None
    assert score(np.array([np.nan, 1], np.float32), np.ones(2, np.float32)) == Scores(accuracy=0.5)
    assert grouped_auc(predictions, np.array([0, 1], np.float32), np.array([1, 2], np.int32)) is None


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_bins_are_groups_of_neighbours(digits, monkeypatch):
    monkeypatch.setattr(scoring, "_PIECE_SAMPLES", 3000)
    predictions, labels, _ = drawn(digits)
    bins = calibration_bins(predictions, labels)
    assert len(bins) == {0: 2, 1: 11, 9: 20}[digits]
    assert sum(one.samples for one in bins) == len(labels)
    assert sum(one.samples * one.observed for one in bins) == pytest.approx(labels.sum())
    assert sum(one.samples * one.predicted for one in bins) == pytest.approx(predictions.sum(dtype=np.float64))
    means = [one.predicted for one in bins]
    assert means == sorted(set(means))
    assert digits < 9 or {one.samples for one in bins} == {1000}
    assert calibration_bins(predictions[:1], labels[:1])[0].samples == 1
