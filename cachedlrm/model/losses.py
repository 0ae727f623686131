"""Losses, averaged over the batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, mse_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(name: str, class_weights: Sequence[float], device: torch.device) -> Loss:
    """The loss called ``name``: a scalar from predictions and labels, each [B].

    Args:
        name: ``mse``, ``bce`` or ``wbce``.
        class_weights: factor of a sample's loss by its label, rounded down; for ``wbce``.
        device: of predictions and labels.
    """
    if name == "mse":
        return mse_loss
    if name == "bce":
        return _binary_cross_entropy
    weights = torch.tensor(class_weights, dtype=torch.float32, device=device)

    def weighted(prediction: Tensor, labels: Tensor) -> Tensor:
        return _binary_cross_entropy(prediction, labels, weights[labels.long()])

    return weighted


def _binary_cross_entropy(prediction: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """torch's, except that a NaN gives a NaN loss, where torch raises on the CPU and aborts the process on CUDA."""
    loss = binary_cross_entropy(torch.nan_to_num(prediction, nan=0.5), labels, weights)
    return loss + 0.0 * prediction.detach().sum()
