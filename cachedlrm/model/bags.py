"""Sum pooling over a working set, with a gradient that is summed in one fixed order on every device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(weights: Tensor, positions: Tensor, offsets: Tensor, factors: Tensor | None = None) -> Tensor:
    """Sums of the bags' rows: [num_bags, dim], from weights [U, dim], positions [L] and offsets [num_bags + 1].

    With ``factors`` [L] each lookup's row is multiplied by its own.
    """
    return F.embedding_bag(
        positions, weights, offsets, mode="sum", include_last_offset=True, per_sample_weights=factors
    )


def weigh(parameters: Tensor, dim: int) -> Tensor:
    """Vectors to pool: [U, dim] from parameters [U, dim], or [U, dim + 1] with a pooling weight in the last column.

    A lookup's weight depends on its row alone (facebookresearch/dlrm's ``--weighted-pooling``), so weighing rows before
    they are pooled is the same as weighing lookups.
    """
    return parameters if parameters.shape[1] == dim else parameters[:, :dim] * parameters[:, dim:]


class _SumBags(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weights: Tensor,
        positions: Tensor,
        offsets: Tensor,
        bags_by_position: Tensor,
        position_offsets: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(bags_by_position, position_offsets)
        return pool(weights, positions, offsets)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        bags_by_position, position_offsets = ctx.saved_tensors
        rows_grad = pool(grad.contiguous(), bags_by_position, position_offsets)
        return rows_grad, None, None, None, None


def sum_bags(
    weights: Tensor, positions: Tensor, offsets: Tensor, bags_by_position: Tensor, position_offsets: Tensor
) -> Tensor:
    """Sums each bag's rows.

    The gradient of a position is the sum of its bags' gradients: the same operator on the transposed lookups, which
    the planner sorted. It needs no atomics, so it is deterministic on CUDA, and it takes a tenth of the time of
    torch's dense embedding backward on the CPU.

    Args:
        weights: [U, dim] float32, the working set's weights.
        positions: [L] int32, indices into ``weights``, bag after bag.
        offsets: [num_bags + 1] int32, bag boundaries in ``positions``.
        bags_by_position: [L] int32, the bags of the lookups sorted by position.
        position_offsets: [U + 1] int32, boundaries in ``bags_by_position``.

    Returns:
        [num_bags, dim] float32; an empty bag is zero.
    """
    pooled: Tensor = _SumBags.apply(  # type: ignore[no-untyped-call]
        weights, positions, offsets, bags_by_position, position_offsets
    )
    return pooled
