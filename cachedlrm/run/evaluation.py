"""Predictions of a model on held-out samples, and how good they are."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.data.batch import Batch, Source

Model = Callable[[Tensor, Sequence[Tensor]], Tensor]
"""The dense part: from dense features [B, num_dense] and each group's pooled vectors to predictions [B]."""

Pooling = Callable[[Batch], Sequence[Tensor]]
"""From a batch to the pooled vectors of each group of tables, [B * tables, dim]."""


class Evaluation(NamedTuple):
    """What a model predicted.

    Attributes:
        auc: area under the ROC curve; None unless labels are 0 and 1, both.
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
    if set(np.unique(labels)) != {0.0, 1.0} or not np.isfinite(predictions).all():
        return Evaluation(None, predictions, labels)
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - takes a second to load, and few runs need it

    return Evaluation(float(roc_auc_score(labels, predictions)), predictions, labels)
