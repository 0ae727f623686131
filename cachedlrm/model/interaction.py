"""Feature interaction of DLRM: the T + 1 vectors of a sample multiplied in pairs, or side by side.

Interactions with parameters of their own are in `cachedlrm.model.learned_interaction`. All look the same to the model
(`Interaction`) and to its training (`InteractionPass`).

Vectors in one tensor, [B, T + 1, D], and their products, [B, T + 1, T + 1], would be the largest tensors of a step. The
products are made for a part of the batch at a time, so that neither is ever whole: a part's stay in the processor's
cache, and the way back puts its vectors together again. A sample's numbers do not depend on the part it is in.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from cachedlrm.model.mlp_pass import PassParameters

# Of the vectors of a part: on the CPU its tensors stay in a cache, on CUDA it is worth the launches that it takes.
_PART_BYTES = {"cpu": 2 << 20, "cuda": 8 << 20}


@dataclass(frozen=True)
class InteractionKind:
    """What a user chooses of an interaction. Sizes follow from it, from V = T + 1 vectors and from their dimension D.

    Attributes:
        op: ``dot``, ``cat``, ``dcn`` or ``projection``.
        itself: whether ``dot`` includes each vector with itself.
        cross_layers: of ``dcn``.
        cross_rank: of the matrices of ``dcn``.
        branches: layer sizes of the two MLPs of ``projection`` after their input; each ends in a multiple of D.
    """

    op: str = "dot"
    itself: bool = False
    cross_layers: int = 0
    cross_rank: int = 0
    branches: tuple[tuple[int, ...], ...] = ()

    def num_outputs(self, num_vectors: int, dim: int) -> int:
        """Inputs of the top MLP."""
        if self.op == "dot":
            return dim + num_vectors * (num_vectors + (1 if self.itself else -1)) // 2
        if self.op == "projection":
            (*_, first), (*_, second) = self.branches
            return dim + (first // dim) * (second // dim)
        return num_vectors * dim

    def matrices(self, num_vectors: int, dim: int) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of each matrix of parameters, in the order in which a sample goes through them."""
        inputs = num_vectors * dim
        if self.op == "dcn":
            return ((inputs, self.cross_rank), (self.cross_rank, inputs)) * self.cross_layers
        return tuple(pair for sizes in self.branches for pair in itertools.pairwise((inputs, *sizes)))

    def biases(self, num_vectors: int, dim: int) -> tuple[int, ...]:
        """The length of each bias."""
        if self.op == "dcn":
            return (num_vectors * dim,) * self.cross_layers
        return tuple(outputs for _, outputs in self.matrices(num_vectors, dim))

    def multiplications(self, num_vectors: int, dim: int) -> int:
        """Of a sample's vectors with parameters and with each other, forward."""
        products = 0
        if self.op == "dot":
            products = dim * num_vectors * (num_vectors - 1) // 2
        elif self.op == "projection":
            products = dim * (self.num_outputs(num_vectors, dim) - dim)
        return products + sum(inputs * outputs for inputs, outputs in self.matrices(num_vectors, dim))


DOT = InteractionKind()


class InteractionPass(Protocol):
    """Forward and backward of an interaction in training, in turns."""

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """Inputs of the top MLP, [B, outputs]; see `Interaction.forward`."""
        ...

    def backward(self, grad: Tensor) -> Tensor:
        """The gradient of ``dense``, [B, D], from that of the result.

        That of ``vectors`` takes their place, as they are not needed any more; those of parameters go to theirs.
        """
        ...


class Interaction(nn.Module, ABC):
    """Combines the bottom MLP's output with the features' vectors.

    Attributes:
        layers: modules with its parameters, by their names in the model, whose children they are: in model files
            nothing stands in front of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, nn.Module] = {}

    @abstractmethod
    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """Inputs of the top MLP, [B, outputs].

        Args:
            dense: [B, D], whose type is that of the result.
            vectors: [B, T, D].
        """

    @abstractmethod
    def training_pass(self, parameters: PassParameters) -> InteractionPass:
        """Its passes without autograd, with the same bits."""


def side_by_side(dense: Tensor, vectors: Tensor) -> Tensor:
    """[B, T + 1, D] from [B, D] and [B, T, D]."""
    return torch.cat([dense.unsqueeze(1), vectors.to(dense.dtype)], dim=1)


def split_grad(grad: Tensor, vectors: Tensor) -> Tensor:
    """The gradient of ``dense`` that `side_by_side` took, from that of its result; that of ``vectors`` to their place.

    Args:
        grad: [B, (T + 1) * D].
        vectors: [B, T, D]; overwritten.
    """
    grad = grad.view(len(vectors), -1, vectors.shape[2])
    vectors.copy_(grad[:, 1:])
    return grad[:, 0]


class CatInteraction(Interaction):
    """All vectors side by side, [B, (T + 1) * D]."""

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """See `Interaction`."""
        return side_by_side(dense, vectors).flatten(1)

    def training_pass(self, parameters: PassParameters) -> InteractionPass:
        """See `Interaction`."""
        return _CatPass(self)


class _CatPass:
    def __init__(self, interaction: CatInteraction) -> None:
        self._interaction = interaction

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        self._vectors = vectors
        return self._interaction.forward(dense, vectors)

    def backward(self, grad: Tensor) -> Tensor:
        vectors = self._vectors
        del self._vectors
        return split_grad(grad, vectors)


class DotInteraction(Interaction):
    """The dense vector, and the dot products of all pairs of the T + 1 vectors: [B, D + pairs].

    Args:
        num_features: T.
        dim: D.
        itself: whether each vector is multiplied with itself, too.
    """

    def __init__(self, num_features: int, dim: int, itself: bool) -> None:
        super().__init__()
        self._num_vectors = num_features + 1
        self._dim = dim
        lower = torch.tril_indices(self._num_vectors, self._num_vectors, offset=0 if itself else -1)
        # Flat indices: one index_select instead of indexing two axes, which costs twice as much.
        self.register_buffer("pairs", lower[0] * self._num_vectors + lower[1], persistent=False)
        self.pairs: Tensor

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """See `Interaction`."""
        return self._by_parts(self._multiply, dense, vectors)

    def training_pass(self, parameters: PassParameters) -> InteractionPass:
        """See `Interaction`."""
        return _DotPass(self)

    def backward(self, dense: Tensor, vectors: Tensor, grad: Tensor) -> Tensor:
        """The gradient of ``dense``, [B, D]; that of ``vectors`` takes their place.

        Args:
            dense: as in `forward`.
            vectors: as in `forward`; overwritten.
            grad: of its result.
        """
        return self._by_parts(self._multiply_backward, dense, vectors, grad)

    def _by_parts(self, compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """The results of ``compute`` on the samples of each part, one after the other."""
        samples = samples_multiplied(self._num_vectors, self._dim, tensors[0].device)
        if tensors[0].shape[0] <= samples:
            return compute(*tensors)
        parts = zip(*(tensor.split(samples) for tensor in tensors), strict=True)
        return torch.cat([compute(*part) for part in parts])

    def _multiply(self, dense: Tensor, vectors: Tensor) -> Tensor:
        together = side_by_side(dense, vectors)
        products = torch.bmm(together, together.mT).flatten(1)  # [B, (T + 1)^2]
        return torch.cat([dense, products.index_select(1, self.pairs)], dim=1)

    def _multiply_backward(self, dense: Tensor, vectors: Tensor, grad: Tensor) -> Tensor:
        together = side_by_side(dense, vectors)
        passed_on, pairs_grad = grad.split_with_sizes([self._dim, grad.shape[1] - self._dim], 1)
        products_grad = together.new_zeros(together.shape[0], self._num_vectors**2)
        products_grad.index_add_(1, self.pairs, pairs_grad)
        products_grad = products_grad.view(-1, self._num_vectors, self._num_vectors)
        together_grad = products_grad.bmm(together)
        together_grad += together.mT.bmm(products_grad).mT
        vectors.copy_(together_grad[:, 1:])
        return passed_on + together_grad[:, 0]


class _DotPass:
    """Keeps the vectors alone: the way back puts them together again."""

    def __init__(self, interaction: DotInteraction) -> None:
        self._interaction = interaction

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        self._inputs = dense, vectors
        return self._interaction.forward(dense, vectors)

    def backward(self, grad: Tensor) -> Tensor:
        dense, vectors = self._inputs
        del self._inputs
        return self._interaction.backward(dense, vectors, grad)


def samples_multiplied(num_vectors: int, dim: int, device: torch.device) -> int:
    """Samples of a part, each of ``num_vectors`` vectors of ``dim`` columns."""
    return max(1, _PART_BYTES[device.type] // (4 * num_vectors * dim))
