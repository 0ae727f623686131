"""Clipping by the norm of all gradients of a model, those of cached rows included."""

import torch
from torch import Tensor, nn

from cachedlrm.library.module import cached_modules


def clip_grad_norm_(model: nn.Module, max_norm: float, *, error_if_nonfinite: bool = False) -> Tensor:
    """``torch.nn.utils.clip_grad_norm_`` of all parameters of a model, its cached tables included.

    Call it after ``backward`` and before the steps. The norm is the Euclidean one of all gradients as one vector, where
    the gradient of a row is the sum over its lookups, as a dense table has it.

    Args:
        model: your model, with the modules over cached tables inside.
        max_norm: the most that the norm may be; gradients are scaled down to it.
        error_if_nonfinite: raise if the norm is NaN or infinite.

    Returns:
        The norm before.
    """
    modules = cached_modules(model)
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    of_rows = [grad for module in modules for grad in module.row_gradients()]
    norm = torch.nn.utils.get_total_norm([*grads, *of_rows], error_if_nonfinite=error_if_nonfinite)
    scale = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for grad in (*grads, *(leaf.grad for module in modules for leaf in module.leaves() if leaf.grad is not None)):
        grad.mul_(scale.to(grad.device))
    return norm
