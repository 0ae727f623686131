"""Optimizers of embedding rows: in place on the records of one working set.

All are lazy: only rows of the batch move. The arithmetic follows the named torch implementation operation by operation,
so a row's bits are those of that implementation on a whole table. Weight decay is decoupled for all of them (Loshchilov
and Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101) and as lazy as the rest.

On the CPU adagrad and adam are kernels: torch's operators take twice as long over columns of records, which do not lie
side by side in memory. Square roots stay torch's, whose last bit is not IEEE's.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.store.records import ADAM_BETAS, OPTIMIZERS, RecordLayout


class RowStep(NamedTuple):
    """The numbers of one step.

    Attributes:
        learning_rate: of this step.
        number: of this step, from 1 on.
        eps: added to the root that a gradient is divided by; None: the optimizer's own. sgd has none.
        weight_decay: times the learning rate, the share of a row that is taken off before its gradient moves it.
    """

    learning_rate: float
    number: int
    eps: float | None = None
    weight_decay: float = 0.0

    def eps_of(self, optimizer: str) -> np.float32:
        """`eps`, or that of an optimizer that has one."""
        return np.float32(OPTIMIZERS[optimizer].eps if self.eps is None else self.eps)


_Move = Callable[[Tensor, Tensor, RecordLayout, RowStep], None]


def _sgd(records: Tensor, grad: Tensor, layout: RecordLayout, step: RowStep) -> None:
    """torch.optim.SGD on gradients that are summed by row."""
    records.add_(grad, alpha=-step.learning_rate)


def _adagrad(records: Tensor, grad: Tensor, layout: RecordLayout, step: RowStep) -> None:
    """torch.optim.Adagrad on sparse gradients (Duchi, Hazan and Singer, JMLR 12, 2011)."""
    width, rate, eps = layout.parameter_width, -step.learning_rate, step.eps_of("adagrad")
    if not records.is_cuda:
        roots = torch.empty_like(grad)
        _adagrad_sums(records.numpy(), grad.numpy(), roots.numpy())
        _adagrad_move(records.numpy(), grad.numpy(), roots.sqrt_().numpy(), np.float32(rate), eps)
        return
    sums = records[:, width:]
    sums.add_(grad.square())
    records[:, :width].add_(grad.div_(sums.sqrt().add_(float(eps))), alpha=rate)


def _rwsadagrad(records: Tensor, grad: Tensor, layout: RecordLayout, step: RowStep) -> None:
    """facebookresearch/dlrm's RWSAdagrad on sparse gradients: one sum a row, of the mean square of its gradient.

    A pooling weight is a parameter of one column there, so it has a sum of its own.
    """
    sums = records[:, layout.parameter_width :]  # [U, 1], with a pooling weight [U, 2]
    sums[:, :1].add_(grad[:, : layout.dim].square().mean(dim=1, keepdim=True))
    if layout.weighted:
        sums[:, 1:].add_(grad[:, layout.dim :].square())
    deviations = sums.sqrt().add_(float(step.eps_of("rwsadagrad")))
    grad[:, : layout.dim].div_(deviations[:, :1])
    if layout.weighted:
        grad[:, layout.dim :].div_(deviations[:, 1:])
    records[:, : layout.parameter_width].add_(grad, alpha=-step.learning_rate)


def _adam(records: Tensor, grad: Tensor, layout: RecordLayout, step: RowStep) -> None:
    """torch.optim.SparseAdam (Kingma and Ba, arXiv:1412.6980, lazily); steps are counted in batches, as there."""
    width, eps = layout.parameter_width, step.eps_of("adam")
    beta1, beta2 = ADAM_BETAS
    step_size = step.learning_rate * math.sqrt(1 - beta2**step.number) / (1 - beta1**step.number)
    if not records.is_cuda:
        roots = torch.empty_like(grad)
        _adam_moments(records.numpy(), grad.numpy(), roots.numpy(), np.float32(1 - beta1), np.float32(1 - beta2))
        _adam_move(records.numpy(), roots.sqrt_().numpy(), np.float32(-step_size), eps)
        return
    first, second = records[:, width : 2 * width], records[:, 2 * width :]
    first.add_(grad.sub(first).mul_(1 - beta1))
    second.add_(grad.square().sub_(second).mul_(1 - beta2))
    records[:, :width].add_(first.div(second.sqrt().add_(float(eps))).mul_(-step_size))


# Kernels over records' numbers [U, columns], gradients [U, parameter_width] and their like. They divide as numpy does:
# checks for zero would keep the compiler from vectors.


@numba.njit(cache=True, nogil=True)
def _adagrad_sums(records: NDArray[np.float32], grad: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """Adds squares of the gradient to the state, and copies that to ``sums``."""
    num_rows, width = grad.shape
    for row in range(num_rows):
        for column in range(width):
            total = records[row, width + column] + grad[row, column] * grad[row, column]
            records[row, width + column] = sums[row, column] = total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})  # fused, as torch adds with a factor
def _adagrad_move(
    records: NDArray[np.float32],
    grad: NDArray[np.float32],
    roots: NDArray[np.float32],
    factor: np.float32,
    eps: np.float32,
) -> None:
    num_rows, width = grad.shape
    for row in range(num_rows):
        for column in range(width):
            records[row, column] += factor * (grad[row, column] / (roots[row, column] + eps))


@numba.njit(cache=True, nogil=True)
def _adam_moments(
    records: NDArray[np.float32],
    grad: NDArray[np.float32],
    seconds: NDArray[np.float32],
    rate1: np.float32,
    rate2: np.float32,
) -> None:
    """Moves both moments towards the gradient and its square, and copies the second to ``seconds``."""
    num_rows, width = grad.shape
    for row in range(num_rows):
        for column in range(width):
            value = grad[row, column]
            first, second = records[row, width + column], records[row, 2 * width + column]
            records[row, width + column] = first + (value - first) * rate1
            second += (value * value - second) * rate2
            records[row, 2 * width + column] = seconds[row, column] = second


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _adam_move(records: NDArray[np.float32], roots: NDArray[np.float32], factor: np.float32, eps: np.float32) -> None:
    num_rows, width = roots.shape
    for row in range(num_rows):
        for column in range(width):
            update = records[row, width + column] / (roots[row, column] + eps) * factor
            records[row, column] += update


_MOVES: dict[str, _Move] = {"sgd": _sgd, "adagrad": _adagrad, "rwsadagrad": _rwsadagrad, "adam": _adam}


def move_rows(layout: RecordLayout, records: Tensor, grad: Tensor, step: RowStep) -> None:
    """Updates records in place.

    Args:
        layout: names the optimizer.
        records: [U, columns] float32, the numbers of the working set's records.
        grad: [U, parameter_width] float32, their parameters' gradient; overwritten.
        step: its numbers.
    """
    with torch.no_grad():
        decay_rows(layout, records, step)
        _MOVES[layout.optimizer](records, grad, layout, step)


def decay_rows(layout: RecordLayout, records: Tensor, step: RowStep) -> None:
    """Weight decay of a step: as torch.optim.AdamW has it, of the rows of the batch alone; pooling weights decay too.

    A row that decayed in every step would have to be on the device in every step.
    """
    if step.weight_decay:
        records[:, : layout.parameter_width].mul_(1 - step.learning_rate * step.weight_decay)
