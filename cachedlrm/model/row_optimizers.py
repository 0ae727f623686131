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

RowStep = Callable[[Tensor, Tensor, float, int], None]


def _sgd(records: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """torch.optim.SGD on sparse gradients."""
    records.add_(grad, alpha=-learning_rate)


def _adagrad(records: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """torch.optim.Adagrad on sparse gradients (Duchi, Hazan and Singer, JMLR 12, 2011)."""
    dim = grad.shape[1]
    sums = records[:, dim:]
    sums.add_(grad.square())
    records[:, :dim].add_(grad.div_(sums.sqrt().add_(_ADAGRAD_EPS)), alpha=-learning_rate)


def _rwsadagrad(records: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """facebookresearch/dlrm's RWSAdagrad on sparse gradients: one sum a row, of the mean square of its gradient."""
    dim = grad.shape[1]
    sums = records[:, dim:]  # [U, 1]
    sums.add_(grad.square().mean(dim=1, keepdim=True))
    records[:, :dim].add_(grad.div_(sums.sqrt().add_(_ADAGRAD_EPS)), alpha=-learning_rate)


def _adam(records: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """torch.optim.SparseAdam (Kingma and Ba, arXiv:1412.6980, lazily); ``step`` counts batches, as it does there."""
    dim = grad.shape[1]
    beta1, beta2 = _ADAM_BETAS
    first, second = records[:, dim : 2 * dim], records[:, 2 * dim :]
    first.add_(grad.sub(first).mul_(1 - beta1))
    second.add_(grad.square().sub_(second).mul_(1 - beta2))
    step_size = learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
    records[:, :dim].add_(first.div(second.sqrt().add_(_ADAM_EPS)).mul_(-step_size))


_STEPS: dict[str, RowStep] = {"sgd": _sgd, "adagrad": _adagrad, "rwsadagrad": _rwsadagrad, "adam": _adam}


def row_step(layout: RecordLayout, records: Tensor, grad: Tensor, learning_rate: float, step: int) -> None:
    """Updates records in place.

    Args:
        layout: names the optimizer.
        records: [U, width] float32, the working set's records.
        grad: [U, dim] float32, their weights' gradient; overwritten.
        learning_rate: of this step.
        step: number of this step from 1 on.
    """
    with torch.no_grad():
        _STEPS[layout.optimizer](records, grad, learning_rate, step)


def dense_optimizer(name: str, parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The torch optimizer of the dense parameters. For ``rwsadagrad`` it is Adagrad, as in the reference."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    return torch.optim.Adagrad(parameters, lr=learning_rate)
