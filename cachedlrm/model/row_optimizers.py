"""Optimizers of embedding rows: in place on the records of one working set.

All are lazy: only rows of the batch move. The arithmetic follows the named torch implementation operation by operation,
so a row's bits are those of that implementation on a whole table.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cachedlrm.store.records import RecordLayout

_ADAGRAD_EPS = 1e-10
_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8

RowStep = Callable[[Tensor, Tensor, float, RecordLayout, int], None]


def _sgd(records: Tensor, grad: Tensor, learning_rate: float, layout: RecordLayout, step: int) -> None:
    """torch.optim.SGD on gradients that are summed by row."""
    records.add_(grad, alpha=-learning_rate)


def _adagrad(records: Tensor, grad: Tensor, learning_rate: float, layout: RecordLayout, step: int) -> None:
    """torch.optim.Adagrad on sparse gradients (Duchi, Hazan and Singer, JMLR 12, 2011)."""
    width = layout.parameter_width
    sums = records[:, width:]
    sums.add_(grad.square())
    records[:, :width].add_(grad.div_(sums.sqrt().add_(_ADAGRAD_EPS)), alpha=-learning_rate)


def _rwsadagrad(records: Tensor, grad: Tensor, learning_rate: float, layout: RecordLayout, step: int) -> None:
    """facebookresearch/dlrm's RWSAdagrad on sparse gradients: one sum a row, of the mean square of its gradient.

    A pooling weight is a parameter of one column there, so it has a sum of its own.
    """
    sums = records[:, layout.parameter_width :]  # [U, 1], with a pooling weight [U, 2]
    sums[:, :1].add_(grad[:, : layout.dim].square().mean(dim=1, keepdim=True))
    if layout.weighted:
        sums[:, 1:].add_(grad[:, layout.dim :].square())
    deviations = sums.sqrt().add_(_ADAGRAD_EPS)
    grad[:, : layout.dim].div_(deviations[:, :1])
    if layout.weighted:
        grad[:, layout.dim :].div_(deviations[:, 1:])
    records[:, : layout.parameter_width].add_(grad, alpha=-learning_rate)


def _adam(records: Tensor, grad: Tensor, learning_rate: float, layout: RecordLayout, step: int) -> None:
    """torch.optim.SparseAdam (Kingma and Ba, arXiv:1412.6980, lazily); ``step`` counts batches, as it does there."""
    width = layout.parameter_width
    beta1, beta2 = _ADAM_BETAS
    first, second = records[:, width : 2 * width], records[:, 2 * width :]
    first.add_(grad.sub(first).mul_(1 - beta1))
    second.add_(grad.square().sub_(second).mul_(1 - beta2))
    step_size = learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    records[:, :width].add_(first.div(second.sqrt().add_(_ADAM_EPS)).mul_(-step_size))


_STEPS: dict[str, RowStep] = {"sgd": _sgd, "adagrad": _adagrad, "rwsadagrad": _rwsadagrad, "adam": _adam}


def row_step(layout: RecordLayout, records: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """Updates records in place.

    Args:
        layout: names the optimizer.
        records: [U, width] float32, the working set's records.
        grad: [U, parameter_width] float32, their parameters' gradient; overwritten.
        learning_rate: of this step.
        step: number of this step from 1 on.
    """
    with torch.no_grad():
        _STEPS[layout.optimizer](records, grad, learning_rate, layout, step)
