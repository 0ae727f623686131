"""Optimizers of embedding rows: in place on the records of one working set.

All are lazy: only rows of the batch move. The arithmetic follows the named torch implementation operation by operation,
so a row's bits are those of that implementation on a whole table.
"""

import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.model.bags import pool
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


def sgd_by_lookups(
    records: Tensor,
    grad: Tensor,
    lookups: tuple[Tensor, Tensor],
    transposed: tuple[Tensor, Tensor],
    learning_rate: float,
) -> None:
    """Stochastic gradient descent on the gradients of the bags, in place.

    On the CPU each lookup's gradient is subtracted in its turn, as torch.optim.SGD does with the sparse gradient of
    nn.EmbeddingBag: to the last bit, which a sum subtracted once is not. Bag by bag, since reading gradients in their
    order takes half the time of reading them row by row, and the order within a row is the same.

    Args:
        records: [U, dim] float32, the working set's records.
        grad: [num_bags, dim] float32, gradient of the pooled vectors.
        lookups: positions [L] and bag boundaries in them [num_bags + 1], int32.
        transposed: bags [L] of the lookups sorted by position and boundaries in them [U + 1], int32.
        learning_rate: of this step.
    """
    if records.is_cuda:
        records.add_(pool(grad, *transposed), alpha=-learning_rate)
    else:
        positions, offsets = lookups
        _subtract(
            records.numpy(), grad.contiguous().numpy(), positions.numpy(), offsets.numpy(), np.float32(-learning_rate)
        )


@numba.njit(cache=True, nogil=True, fastmath={"contract"})  # fused multiply-add, as in torch
def _subtract(
    records: NDArray[np.float32],
    grad: NDArray[np.float32],
    positions: NDArray[np.int32],
    offsets: NDArray[np.int32],
    factor: np.float32,
) -> None:
    for bag in range(len(offsets) - 1):
        for lookup in range(offsets[bag], offsets[bag + 1]):
            position = positions[lookup]
            for column in range(grad.shape[1]):
                records[position, column] += factor * grad[bag, column]
