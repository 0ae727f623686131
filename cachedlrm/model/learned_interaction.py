"""Interactions with parameters of their own, as TorchRec's DLRM_DCN and DLRM_Projection have them.

- *Low-rank cross layers* (Wang et al., "DCN V2", arXiv:2008.13535, eq. 2 and section 3.3): the vectors side by side,
  x0, go through layers x -> x0 * (W (V x) + b) + x.
- *Projection*: two MLPs see the vectors side by side; their outputs are multiplied as matrices.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from cachedlrm.model.interaction import Interaction, InteractionPass, side_by_side, split_grad
from cachedlrm.model.mlp_pass import MlpPass, PassParameters


class CrossNet(nn.Module):
    """Cross layers over N numbers. Parameters are named and shaped as in TorchRec.

    Args:
        kernels: W [N, rank] and V [rank, N] of each layer; biases begin at zero.
    """

    def __init__(self, kernels: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.W_kernels = nn.ParameterList([w for w, _ in kernels])
        self.V_kernels = nn.ParameterList([v for _, v in kernels])
        self.bias = nn.ParameterList([torch.zeros(len(w)) for w, _ in kernels])

    def forward(self, first: Tensor) -> Tensor:
        """[B, N] of the last layer, from [B, N]."""
        value = first
        for w, v, bias in zip(self.W_kernels, self.V_kernels, self.bias, strict=True):
            value = torch.addcmul(value, first, linear(linear(value, v), w, bias))
        return value


class CrossInteraction(Interaction):
    """All vectors side by side, through cross layers: [B, (T + 1) * D].

    Args:
        net: becomes ``crossnet`` of the model.
    """

    def __init__(self, net: CrossNet) -> None:
        super().__init__()
        self.layers = {"crossnet": net}

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """See `Interaction`."""
        crossed: Tensor = self.layers["crossnet"](side_by_side(dense, vectors).flatten(1))
        return crossed

    def training_pass(self, parameters: PassParameters) -> InteractionPass:
        """See `Interaction`."""
        net = self.layers["crossnet"]
        assert isinstance(net, CrossNet)
        return _CrossPass(len(net.bias), parameters)


class _CrossPass:
    def __init__(self, num_layers: int, parameters: PassParameters) -> None:
        self._parameters = parameters
        names = [
            [f"crossnet.{part}.{layer}" for part in ("W_kernels", "V_kernels", "bias")] for layer in range(num_layers)
        ]
        self._layers = [[parameters.take(name) for name in of_layer] for of_layer in names]

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        self._vectors = vectors
        self._first = value = side_by_side(dense, vectors).flatten(1)  # [B, N]
        self._passed = []
        for (w, _), (v, _), (bias, _) in self._layers:
            low = value.mm(v.t())  # [B, rank]
            factor = torch.addmm(bias, low, w.t())  # [B, N]
            self._passed.append((value, low, factor))
            value = torch.addcmul(value, self._first, factor)
        return value

    def backward(self, grad: Tensor) -> Tensor:
        first, vectors, parameters = self._first, self._vectors, self._parameters
        del self._first, self._vectors
        first_grad: Tensor | None = None
        for (w, w_grad), (v, v_grad), (_, bias_grad) in reversed(self._layers):
            value, low, factor = self._passed.pop()
            factor_grad = grad * first
            parameters.product(factor_grad, low, w_grad)
            parameters.sum_rows(factor_grad, bias_grad)
            low_grad = factor_grad.mm(w)
            del factor_grad
            parameters.product(low_grad, value, v_grad)
            del value
            through_layer, through_product = low_grad.mm(v), factor.mul_(grad)
            if not self._passed:  # the first layer, whose value is x0: terms in the order of autograd
                first_grad = grad.clone() if first_grad is None else first_grad.add_(grad)
                return split_grad(first_grad.add_(through_product).add_(through_layer), vectors)
            first_grad = through_product if first_grad is None else first_grad.add_(through_product)
            grad = through_layer.add_(grad)
        raise AssertionError("there is a layer at least")


class ProjectionInteraction(Interaction):
    """The dense vector, and the products of what two MLPs make of all vectors: [B, D + F1 * F2].

    Args:
        branches: MLPs from (T + 1) * D numbers, one to F1 * D, the other to D * F2.
        dim: D.

    Attributes:
        branches: the MLPs by name in the model, ``branch1_l`` and ``branch2_l``.
    """

    def __init__(self, branches: tuple[nn.Sequential, nn.Sequential], dim: int) -> None:
        super().__init__()
        self.branches = {f"branch{number}_l": branch for number, branch in enumerate(branches, 1)}
        self.layers = dict(self.branches)
        self._dim = dim

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        """See `Interaction`."""
        together = side_by_side(dense, vectors).flatten(1)
        rows, columns = (branch(together) for branch in self.branches.values())
        return _multiplied(dense, rows.view(len(dense), -1, self._dim), columns.view(len(dense), self._dim, -1))

    def training_pass(self, parameters: PassParameters) -> InteractionPass:
        """See `Interaction`."""
        return _ProjectionPass([MlpPass(branch, parameters, name) for name, branch in self.branches.items()])


class _ProjectionPass:
    def __init__(self, branches: Sequence[MlpPass]) -> None:
        self._branches = branches

    def forward(self, dense: Tensor, vectors: Tensor) -> Tensor:
        self._vectors, dim = vectors, dense.shape[1]
        together = side_by_side(dense, vectors).flatten(1)
        rows, columns = (branch.forward(together) for branch in self._branches)
        self._factors = rows.view(len(dense), -1, dim), columns.view(len(dense), dim, -1)
        return _multiplied(dense, *self._factors)

    def backward(self, grad: Tensor) -> Tensor:
        (rows, columns), vectors, dim = self._factors, self._vectors, self._vectors.shape[2]
        del self._factors, self._vectors
        passed_on, products_grad = grad.split_with_sizes([dim, grad.shape[1] - dim], 1)
        products_grad = products_grad.reshape(len(grad), rows.shape[1], columns.shape[2])
        factor_grads = products_grad.bmm(columns.mT).flatten(1), rows.mT.bmm(products_grad).flatten(1)
        del rows, columns, products_grad
        first, second = (branch.backward(g) for branch, g in zip(self._branches, factor_grads, strict=True))
        return passed_on + split_grad(first.add_(second), vectors)


def _multiplied(dense: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, D + F1 * F2] from the dense vector [B, D], [B, F1, D] and [B, D, F2]."""
    return torch.cat([dense, torch.bmm(rows, columns).flatten(1)], dim=1)
