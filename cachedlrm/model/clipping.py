"""Clipping of gradients by their norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

_SPARE = 1e-6  # as in torch: no division by zero


def clip_grad_norm(gradients: Sequence[Tensor], max_norm: float) -> None:
    """Scales gradients in place so that the Euclidean norm of all their numbers is at most ``max_norm``.

    The formula of ``torch.nn.utils.clip_grad_norm_`` (Pascanu, Mikolov and Bengio, arXiv:1211.5063). Its factor stays
    on the device, so that the host waits for nothing; where the norm is not finite, all gradients become NaN.

    Args:
        gradients: each number once; rows that are looked up several times have one gradient, summed. Rows that no
            sample looks up have none, which changes no norm.
        max_norm: above 0.
    """
    norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
    factor = (max_norm / (torch.linalg.vector_norm(norms) + _SPARE)).clamp_(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)
