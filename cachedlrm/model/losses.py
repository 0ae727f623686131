"""Losses, averaged over the batch, and their gradients."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_aten = torch.ops.aten  # without torch.nn.functional's checks and broadcasts
_MEAN = 1  # ATen's number of this reduction


class Loss(Protocol):
    """From predictions and labels, each [B]."""

    def __call__(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        ...

    def grad(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Its gradient by the predictions, [B], as torch's autograd has it."""
        ...


def make_loss(name: str, class_weights: Sequence[float], device: torch.device) -> Loss:
    """The loss called ``name``.

    Args:
        name: ``mse``, ``bce`` or ``wbce``.
        class_weights: factor of a sample's loss by its label, rounded down; for ``wbce``.
        device: of predictions and labels.
    """
    if name == "mse":
        return MeanSquaredError(device)
    weights = torch.tensor(class_weights, dtype=torch.float32, device=device) if name == "wbce" else None
    return BinaryCrossEntropy(device, weights)


class MeanSquaredError:
    """See `Loss`."""

    def __init__(self, device: torch.device) -> None:
        self._one = torch.ones((), device=device)

    def __call__(self, prediction: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = _aten.mse_loss.default(prediction, labels, _MEAN)
        return loss

    def grad(self, prediction: Tensor, labels: Tensor) -> Tensor:
        grad: Tensor = _aten.mse_loss_backward.default(self._one, prediction, labels, _MEAN)
        return grad


class BinaryCrossEntropy:
    """torch's, except that a NaN gives a NaN loss, where torch raises on the CPU and aborts the process on CUDA.

    Args:
        device: of predictions and labels.
        class_weights: [2] float32, factor of a sample's loss by its label, rounded down; None: without.
    """

    def __init__(self, device: torch.device, class_weights: Tensor | None = None) -> None:
        self._one = torch.ones((), device=device)
        self._class_weights = class_weights

    def __call__(self, prediction: Tensor, labels: Tensor) -> Tensor:
        finite = torch.nan_to_num(prediction, nan=0.5)
        loss: Tensor = _aten.binary_cross_entropy.default(finite, labels, self._sample_weights(labels), _MEAN)
        return loss + 0.0 * prediction.sum()

    def grad(self, prediction: Tensor, labels: Tensor) -> Tensor:
        grad: Tensor = _aten.binary_cross_entropy_backward.default(
            self._one, prediction, labels, self._sample_weights(labels), _MEAN
        )
        return grad

    def _sample_weights(self, labels: Tensor) -> Tensor | None:
        return None if self._class_weights is None else self._class_weights[labels.long()]
