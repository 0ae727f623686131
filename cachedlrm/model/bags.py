"""Pooling over a working set: sums of bags, or means.

The gradient of a position is the sum of its bags' gradients in the order of its lookups, whatever the device. On CUDA
it is pooling again, of the transposed lookups, which needs no atomics. On the CPU bags are added to their rows one
after the other: reading gradients in their order takes two thirds of the time of reading them row by row, and no
lookups need to be sorted.
"""

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.kernels import BLOCK, add_block

_SUM = 0  # torch's number of this mode


def pool(weights: Tensor, positions: Tensor, offsets: Tensor, factors: Tensor | None = None) -> Tensor:
    """Sums of the bags' rows: [num_bags, dim], from weights [U, dim], positions [L] and offsets [num_bags + 1].

    With ``factors`` [L] each lookup's row is multiplied by its own.
    """
    # As torch.nn.functional.embedding_bag calls it, whose checks take as long as a small batch.
    pooled: Tensor = torch.embedding_bag(weights, positions, offsets, False, _SUM, False, factors, True, None)[0]
    return pooled


def bag_sizes(offsets: Tensor) -> Tensor:
    """Lookups of each bag as float32 [num_bags, 1], from offsets [num_bags + 1]; 1 of an empty bag, whose mean is 0.

    A mean is the sum divided by them, and its gradient is multiplied by their reciprocals: what torch's EmbeddingBag
    does with mode "mean", to the last bit.
    """
    return offsets.diff().clamp_(min=1).to(torch.float32).unsqueeze(1)


def pool_backward(
    grad: Tensor, positions: Tensor, offsets: Tensor, transposed: tuple[Tensor, Tensor] | None, num_rows: int
) -> Tensor:
    """The gradient of the rows that `pool` took.

    Args:
        grad: of its result, [num_bags, D].
        positions: [L].
        offsets: [num_bags + 1].
        transposed: on CUDA the bags [L] of the lookups sorted by position and boundaries in them [num_rows + 1].
        num_rows: U.

    Returns:
        [num_rows, D].
    """
    if transposed is not None:
        return pool(grad.contiguous(), *transposed)
    rows_grad = torch.zeros(num_rows, grad.shape[1], dtype=torch.float32, device="cpu")
    add_bags(rows_grad, grad, positions, offsets, 1.0)
    return rows_grad


def add_bags(rows: Tensor, grad: Tensor, positions: Tensor, offsets: Tensor, factor: float) -> None:
    """Adds ``factor`` times the gradient of each bag, [num_bags, D], to its rows, [U, D], lookup by lookup; on the CPU.

    With fused multiply-adds, as torch adds with a factor.
    """
    _add_bags(rows.numpy(), grad.contiguous().numpy(), positions.numpy(), offsets.numpy(), np.float32(factor))


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _add_bags(
    rows: NDArray[np.float32],
    grad: NDArray[np.float32],
    positions: NDArray[np.int32],
    offsets: NDArray[np.int32],
    factor: np.float32,
) -> None:
    dim = grad.shape[1]
    in_blocks = dim - dim % BLOCK
    flat_rows, flat_grad = rows.reshape(rows.size), grad.reshape(grad.size)
    for bag in range(len(offsets) - 1):
        for lookup in range(offsets[bag], offsets[bag + 1]):
            position = positions[lookup]
            for column in range(0, in_blocks, BLOCK):
                add_block(flat_rows, position * dim + column, flat_grad, bag * dim + column, factor)
            for column in range(in_blocks, dim):
                rows[position, column] += factor * grad[bag, column]


def weigh(parameters: Tensor, dim: int) -> Tensor:
    """Vectors to pool: [U, dim] from parameters [U, dim], or [U, dim + 1] with a pooling weight in the last column.

    A lookup's weight depends on its row alone (facebookresearch/dlrm's ``--weighted-pooling``), so weighing rows before
    they are pooled is the same as weighing lookups.
    """
    return parameters if parameters.shape[1] == dim else parameters[:, :dim] * parameters[:, dim:]


def weigh_backward(grad: Tensor, parameters: Tensor, dim: int) -> Tensor:
    """The gradient of the parameters that `weigh` took, in their shape, from that of its result, [U, dim]."""
    if parameters.shape[1] == dim:
        return grad
    pooling_weight_grad = (grad * parameters[:, :dim]).sum(dim=1, keepdim=True)
    return torch.cat([grad * parameters[:, dim:], pooling_weight_grad], dim=1)
