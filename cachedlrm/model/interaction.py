"""Feature interaction of DLRM: the T + 1 vectors of a sample multiplied in pairs, or side by side.

Vectors in one tensor, [B, T + 1, D], and their products, [B, T + 1, T + 1], would be the largest tensors of a step. The
products are made for a part of the batch at a time, so that neither is ever whole: a part's stay in the processor's
cache, and the way back puts its vectors together again. A sample's numbers do not depend on the part it is in.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Of the vectors of a part: on the CPU its tensors stay in a cache, on CUDA it is worth the launches that it takes.
_PART_BYTES = {"cpu": 2 << 20, "cuda": 8 << 20}


class Interaction(nn.Module):
    """Combines the bottom MLP's output with the features' vectors.

    Args:
        num_features: T.
        dim: D.
        op: ``dot`` (pairwise dot products of the T + 1 vectors) or ``cat``.
        itself: whether ``dot`` includes each vector with itself.
    """

    def __init__(self, num_features: int, dim: int, op: str, itself: bool) -> None:
        super().__init__()
        self._num_vectors = num_features + 1
        self._dim = dim
        self._multiplies = op == "dot"
        lower = torch.tril_indices(self._num_vectors, self._num_vectors, offset=0 if itself else -1)
        # Flat indices: one index_select instead of indexing two axes, which costs twice as much.
        self.register_buffer("pairs", lower[0] * self._num_vectors + lower[1], persistent=False)
        self.pairs: Tensor

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """Inputs of the top MLP: [B, D + pairs] for ``dot``, [B, (T + 1) * D] for ``cat``.

        Args:
            dense: [B, D], whose type is that of the result.
            vectors: [B, T, D].
        """
        if not self._multiplies:
            return self._together(dense, vectors).flatten(1)
        return self._by_parts(self._multiply, dense, vectors)

    def backward(self, dense: Tensor, vectors: Tensor, grad: Tensor) -> Tensor:
        """The gradient of ``dense``, [B, D]; that of ``vectors`` takes their place, as they are not needed any more.

        Args:
            dense: as in `forward`.
            vectors: as in `forward`; overwritten.
            grad: of its result.
        """
        if not self._multiplies:
            together_grad = grad.view(-1, self._num_vectors, self._dim)
            vectors.copy_(together_grad[:, 1:])
            return together_grad[:, 0]
        return self._by_parts(self._multiply_backward, dense, vectors, grad)

    def _together(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """[B, T + 1, D]."""
        return torch.cat([dense.unsqueeze(1), vectors.to(dense.dtype)], dim=1)

    def _by_parts(self, compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The results of ``compute`` on the samples of each part, one after the other."""
        samples = samples_multiplied(self._num_vectors, self._dim, tensors[0].device)
        if tensors[0].shape[0] <= samples:
            return compute(*tensors)
        parts = zip(*(tensor.split(samples) for tensor in tensors), strict=True)
        return torch.cat([compute(*part) for part in parts])

    def _multiply(self, dense: Tensor, vectors: Tensor) -> Tensor:
        together = self._together(dense, vectors)
        products = torch.bmm(together, together.mT).flatten(1)  # [B, (T + 1)^2]
        return torch.cat([dense, products.index_select(1, self.pairs)], dim=1)

    def _multiply_backward(self, dense: Tensor, vectors: Tensor, grad: Tensor) -> Tensor:
        together = self._together(dense, vectors)
        passed_on, pairs_grad = grad.split_with_sizes([self._dim, grad.shape[1] - self._dim], 1)
        products_grad = together.new_zeros(together.shape[0], self._num_vectors**2)
        products_grad.index_add_(1, self.pairs, pairs_grad)
        products_grad = products_grad.view(-1, self._num_vectors, self._num_vectors)
        together_grad = products_grad.bmm(together)
        together_grad += together.mT.bmm(products_grad).mT
        vectors.copy_(together_grad[:, 1:])
        return passed_on + together_grad[:, 0]


def samples_multiplied(num_vectors: int, dim: int, device: torch.device) -> int:
    """Samples of a part, each of ``num_vectors`` vectors of ``dim`` columns."""
    return max(1, _PART_BYTES[device.type] // (4 * num_vectors * dim))


def num_interactions(num_features: int, dim: int, op: str, itself: bool) -> int:
    """Inputs of the top MLP: for ``cat`` all vectors, for ``dot`` the dense one and the products of all pairs."""
    num_vectors = num_features + 1
    if op == "cat":
        return num_vectors * dim
    return dim + num_vectors * (num_vectors + (1 if itself else -1)) // 2
