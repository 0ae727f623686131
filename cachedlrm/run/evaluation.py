"""Predictions of a model on held-out samples, and how good they are."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.data.batch import Batch, Source

Model = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""The dense part: dense features [B, num_dense] and the pooled vectors of each group give predictions [B]."""

Pooling = Callable[[Batch], Sequence[Tensor]]
"""The pooled vectors of a batch, [B * tables, dim] of each group of tables."""


class Evaluation(NamedTuple):
    """The predictions of a model.

    Attributes:
        auc: area under the ROC curve; None unless both labels, 0 and 1, occur and no other.
        predictions: [N] float32, in data order.
        labels: [N] float32.
    """

    auc: float | None
    predictions: NDArray[np.float32]
    labels: NDArray[np.float32]

    @property
    def accuracy(self) -> float:
        """Share of samples whose rounded prediction is their label, as facebookresearch/dlrm counts."""
        return float(np.mean(np.round(self.predictions) == self.labels))


@torch.no_grad()
def predict(
    model: Model, pooling: Pooling, source: Source, batch_size: int, device: torch.device
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Predictions and labels, each [B] float32, batch by batch."""
    for start in range(0, source.num_samples, batch_size):
        batch = source.read(start, min(start + batch_size, source.num_samples))
        dense = torch.from_numpy(batch.dense).to(device, copy=True)  # aligned, as in training
        prediction = model(dense, pooling(batch))
        yield prediction.cpu().numpy(), batch.labels


def evaluate(model: Model, pooling: Pooling, source: Source, batch_size: int, device: torch.device) -> Evaluation:
    """Predicts a whole source."""
    outputs = list(predict(model, pooling, source, batch_size, device))
    predictions = np.concatenate([prediction for prediction, _ in outputs])
    labels = np.concatenate([label for _, label in outputs])
    known = set(np.unique(labels)) == {0.0, 1.0} and bool(np.isfinite(predictions).all())
    return Evaluation(area_under_roc(predictions, labels) if known else None, predictions, labels)


def area_under_roc(predictions: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    """The share of pairs of a positive and a negative sample in which the positive one is ranked higher; ties half.

    That is the area under the ROC curve (Hanley and McNeil, Radiology 143(1), 1982). Pairs are counted in whole
    numbers, so the share is rounded once, at the end.

    Args:
        predictions: [N], finite.
        labels: [N], 0 and 1, both.
    """
    positives, negatives = np.sort(predictions[labels == 1]), np.sort(predictions[labels == 0])
    below, not_above = (np.searchsorted(negatives, positives, side).sum() for side in ("left", "right"))
    return (int(below) + int(not_above)) / (2 * len(positives) * len(negatives))
