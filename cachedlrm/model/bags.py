"""Sum pooling over a working set.

The gradient of a position is the sum of its bags' gradients: pooling again, of the transposed lookups, which the
planner sorted. It needs no atomics, so it is deterministic on CUDA, and it takes a tenth of the time of torch's dense
embedding backward on the CPU.
"""

import torch
from torch import Tensor

_SUM = 0  # torch's number of this mode


def pool(weights: Tensor, positions: Tensor, offsets: Tensor, factors: Tensor | None = None) -> Tensor:
    """Sums of the bags' rows: [num_bags, dim], from weights [U, dim], positions [L] and offsets [num_bags + 1].

    With ``factors`` [L] each lookup's row is multiplied by its own.
    """
    # As torch.nn.functional.embedding_bag calls it, whose checks take as long as a small batch.
    pooled: Tensor = torch.embedding_bag(weights, positions, offsets, False, _SUM, False, factors, True, None)[0]
    return pooled


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
