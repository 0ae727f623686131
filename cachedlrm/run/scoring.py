"""Figures of predictions beside labels, from arrays of all samples; in pieces where numbers are made of them."""

import math
from collections.abc import Iterator

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.report.scores import CalibrationBin, Scores

Floats = NDArray[np.float32]

_LEAST = float(np.finfo(np.float32).eps)
"""Predictions count as no nearer than this to 0 and 1, as scikit-learn's log_loss has it: the loss stays finite."""
_PIECE_SAMPLES = 1 << 20
_MOST_BINS = 20


def score(predictions: Floats, labels: Floats, ids: NDArray[np.int32] | None = None) -> Scores:
    """All figures that are defined.

    Args:
        predictions: [N], N at least 1, from 0 to 1.
        labels: [N], from 0 to 1.
        ids: [N], by which samples are grouped for ``gauc``.
    """
    accuracy = float(np.mean(np.round(predictions) == labels))
    if not np.isfinite(predictions).all():
        return Scores(accuracy=accuracy)
    mean_label = float(labels.mean(dtype=np.float64))
    loss, entropy = log_loss(predictions, labels), entropy_of(mean_label)
    auc = precision = gauc = None
    if bool(((labels == 0) | (labels == 1)).all()) and 0 < mean_label < 1:
        auc, precision = _of_ranks(predictions, labels)
        gauc = None if ids is None else grouped_auc(predictions, labels, ids)
    return Scores(
        auc=auc,
        accuracy=accuracy,
        logloss=loss,
        normalized_entropy=loss / entropy if entropy else None,
        calibration=float(predictions.mean(dtype=np.float64)) / mean_label if mean_label else None,
        average_precision=precision,
        gauc=gauc,
    )


def entropy_of(mean_label: float) -> float:
    """The loss of predicting the mean label for every sample, in nats."""
    return -sum(share * math.log(share) for share in (mean_label, 1.0 - mean_label) if share > 0)


def log_loss(predictions: Floats, labels: Floats) -> float:
    """The mean cross-entropy in nats; labels may lie between 0 and 1."""
    total = 0.0
    for part in _pieces(len(labels)):
        predicted = np.clip(predictions[part].astype(np.float64), _LEAST, 1.0 - _LEAST)
        label = labels[part].astype(np.float64)
        total -= float(np.sum(label * np.log(predicted) + (1.0 - label) * np.log1p(-predicted)))
    return total / len(labels)


def _of_ranks(predictions: Floats, labels: Floats) -> tuple[float, float]:
    """Area under the ROC curve, and average precision; both labels occur and no other.

    The area is the share of pairs of a positive and a negative sample in which the positive one is ranked higher, ties
    half (Hanley and McNeil, Radiology 143(1), 1982). Pairs are counted in whole numbers, so the share is rounded once,
    at the end. Average precision is the mean over the positive samples of the precision among all samples that are
    ranked as high as they or higher.
    """
    positives, negatives = np.sort(predictions[labels == 1]), np.sort(predictions[labels == 0])
    below, not_above = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    pairs = int(below.sum()) + int(not_above.sum())
    positives_above = len(positives) - np.searchsorted(positives, positives, "left")
    precision = positives_above / (positives_above + (len(negatives) - below))
    return pairs / (2 * len(positives) * len(negatives)), float(precision.mean())


def area_under_roc(predictions: Floats, labels: Floats) -> float:
    """The area under the ROC curve; predictions [N] are finite, labels [N] are 0 and 1, both."""
    return _of_ranks(predictions, labels)[0]


def grouped_auc(predictions: Floats, labels: Floats, ids: NDArray[np.int32]) -> float | None:
    """The mean of the areas of each id's samples, weighted by their number (Zhu et al., "Optimized cost per click in
    Taobao display advertising", KDD 2017).

    Ids whose samples have one label alone are left out; None if all are.
    """
    order = np.lexsort((predictions, ids))
    total, samples = _grouped_area(ids[order], predictions[order], labels[order])
    return total / samples if samples else None


@numba.njit(cache=True, nogil=True)
def _grouped_area(ids: NDArray[np.int32], predictions: Floats, labels: Floats) -> tuple[float, int]:
    """Sum of area times samples, and of samples, over groups with both labels; sorted by id, then by prediction."""
    total, counted = 0.0, 0
    first = 0
    while first < len(ids):
        pairs = positives = negatives = 0
        last = first
        while last < len(ids) and ids[last] == ids[first]:
            tied = last
            tied_positives = tied_negatives = 0
            while tied < len(ids) and ids[tied] == ids[first] and predictions[tied] == predictions[last]:
                if labels[tied] == 1:
                    tied_positives += 1
                else:
                    tied_negatives += 1
                tied += 1
            pairs += tied_positives * (2 * negatives + tied_negatives)
            positives += tied_positives
            negatives += tied_negatives
            last = tied
        if positives and negatives:
            total += pairs / (2 * positives * negatives) * (last - first)
            counted += last - first
        first = last
    return total, counted


def calibration_bins(predictions: Floats, labels: Floats) -> tuple[CalibrationBin, ...]:
    """Predicted beside observed, of at most 20 groups of about as many samples, in order of the predictions.

    Equal predictions are in one group.
    """
    ordered = np.sort(predictions)
    edges = np.unique(ordered[[len(ordered) * number // _MOST_BINS for number in range(1, _MOST_BINS)]])
    counts, predicted, observed = np.zeros((3, len(edges) + 1))
    for part in _pieces(len(labels)):
        numbers = np.searchsorted(edges, predictions[part], "right")
        counts += np.bincount(numbers, minlength=len(counts))
        predicted += np.bincount(numbers, predictions[part], len(counts))
        observed += np.bincount(numbers, labels[part], len(counts))
    return tuple(
        CalibrationBin(float(predicted[number] / count), float(observed[number] / count), int(count))
        for number, count in enumerate(counts)
        if count
    )


def _pieces(num_samples: int) -> Iterator[slice]:
    for start in range(0, num_samples, _PIECE_SAMPLES):
        yield slice(start, min(start + _PIECE_SAMPLES, num_samples))
