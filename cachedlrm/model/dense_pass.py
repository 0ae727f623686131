"""Forward and backward pass through the dense part of DLRM, without autograd's graph.

The same ATen operators in the same order as `Dlrm.forward` and torch's autograd run, so the bits are theirs
(tests/model/test_dense_pass.py); it saves making and walking a graph, which takes as long as the operators themselves
if a step is small.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.losses import Loss

_aten = torch.ops.aten

# Gradient by an activation's input, from the gradient by its output, its output, and its input.
_BACKWARD: dict[type[nn.Module], Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda grad, output, _: _aten.threshold_backward.default(grad, output, 0),
    nn.Tanh: lambda grad, output, _: _aten.tanh_backward.default(grad, output),
    nn.Sigmoid: lambda grad, output, _: _aten.sigmoid_backward.default(grad, output),
    nn.GELU: lambda grad, _, value: _aten.gelu_backward.default(grad, value),
    nn.SiLU: lambda grad, _, value: _aten.silu_backward.default(grad, value),
}
# Those whose gradient needs no input run in place.
_FORWARD: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
    nn.GELU: torch.nn.functional.gelu,
    nn.SiLU: torch.nn.functional.silu,
}


class _Gradients:
    """Where gradients of parameters go: each pass over a part of a batch adds to those of the parts before."""

    def __init__(self) -> None:
        self.adds = False

    def sum_rows(self, grad: Tensor, out: Tensor) -> None:
        """The sum [n] of ``grad`` [B, n] over the batch."""
        if self.adds:
            out.add_(grad.sum(0, dtype=out.dtype))
        else:
            torch.sum(grad, 0, dtype=out.dtype, out=out)

    def product(self, grad: Tensor, inputs: Tensor, out: Tensor) -> None:
        """The product [n, m] of ``grad`` [B, n], transposed, and ``inputs`` [B, m]."""
        if self.adds:
            out.add_(grad.mT.mm(inputs))
        elif grad.dtype != out.dtype:
            out.copy_(grad.mT.mm(inputs))
        else:
            torch.mm(grad.mT, inputs, out=out)

    def store(self, grad: Tensor, out: Tensor) -> None:
        """The gradient itself."""
        if self.adds:
            out.add_(grad)
        else:
            out.copy_(grad)


class _Mlp:
    """Linear layers and activations of an nn.Sequential, with the tensors that a pass keeps for its backward.

    With another ``dtype`` than the parameters' it computes on copies of them, which are made anew for each pass.
    """

    def __init__(self, layers: nn.Sequential, grads: Mapping[str, Tensor], name: str, dtype: torch.dtype) -> None:
        self._layers = []
        self._copies: list[tuple[Tensor, Tensor]] = []
        for number in range(0, len(layers), 2):
            linear, activation = layers[number], type(layers[number + 1])
            assert isinstance(linear, nn.Linear)
            weight, bias = (self._as(dtype, parameter.detach()) for parameter in (linear.weight, linear.bias))
            places = grads[f"{name}.{number}.weight"], grads[f"{name}.{number}.bias"]
            self._layers.append((weight, weight.t(), bias, *places, _FORWARD[activation], _BACKWARD[activation]))

    def _as(self, dtype: torch.dtype, parameter: Tensor) -> Tensor:
        if parameter.dtype == dtype:
            return parameter
        self._copies.append((torch.empty_like(parameter, dtype=dtype), parameter))
        return self._copies[-1][0]

    def forward(self, inputs: Tensor) -> Tensor:
        for copy, parameter in self._copies:
            copy.copy_(parameter)
        self._passed = []
        for _, transposed, bias, _, _, activate, _ in self._layers:
            value = torch.addmm(bias, inputs, transposed)
            output = activate(value)
            self._passed.append((inputs, value, output))
            inputs = output
        return inputs

    def backward(self, grad: Tensor, gradients: _Gradients, wants_inputs: bool) -> Tensor | None:
        """The gradient by the inputs, if it is wanted; those by parameters go to their places."""
        for layer, (weight, _, _, weight_grad, bias_grad, _, backward) in enumerate(reversed(self._layers), 1):
            inputs, value, output = self._passed.pop()
            grad = backward(grad, output, value)
            del value, output
            gradients.product(grad, inputs, weight_grad)
            gradients.sum_rows(grad, bias_grad)
            if layer == len(self._layers) and not wants_inputs:
                return None
            grad = grad.mm(weight)
        return grad


class DensePass:
    """Computes losses and gradients of a model that is trained.

    Args:
        model: on its device, its parameters at their final place in memory.
        grads: by parameter name, where their gradients go.
        loss: from predictions and labels.
        dtype: of layers and interaction. Parameters, their gradients, predictions and losses are float32.
    """

    def __init__(
        self, model: Dlrm, grads: Mapping[str, Tensor], loss: Loss, dtype: torch.dtype = torch.float32
    ) -> None:
        self._model = model
        self._dtype = dtype
        # A module looks its parts up by a function of Python.
        self._embeddings, self._interaction = model.emb_l, model.interaction
        self._loss = loss
        self._bottom = _Mlp(model.bot_l, grads, "bot_l", dtype)
        self._top = _Mlp(model.top_l, grads, "top_l", dtype)
        self._gradients = _Gradients()
        self._projections = [(parameter, grads[f"emb_l.{name}"]) for name, parameter in model.emb_l.named_parameters()]

    def forward(self, dense: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Predictions [B] of `Dlrm.forward`, from ``dense`` [B, num_dense] and each group's [B * tables, dim]."""
        self._pooled = pooled
        self._features: tuple[Sequence[Tensor], Tensor] | None = None
        if self._embeddings.is_plain:
            self._vectors = self._embeddings.forward(pooled)  # [B, T, D]
        else:
            with torch.inference_mode(False), torch.enable_grad():
                leaves = [group.clone().requires_grad_() for group in pooled]
                self._features = leaves, self._embeddings(leaves)
            self._vectors = self._features[1].detach()
        self._dense = self._bottom.forward(dense.to(self._dtype))  # [B, D]
        inputs = self._interaction.forward(self._dense, self._vectors)
        self._prediction = self._top.forward(inputs).squeeze(1).float()
        return self._model.bounded(self._prediction)

    def loss(self, prediction: Tensor, labels: Tensor, share: float = 1.0) -> Tensor:
        """The scalar loss of a pass over ``share`` of a mini-batch."""
        loss = self._loss(prediction, labels)
        return loss if share == 1.0 else loss * share

    def backward(self, prediction: Tensor, labels: Tensor, adds: bool, share: float = 1.0) -> None:
        """The gradient of pooled vectors takes their place; those of parameters go to theirs.

        Args:
            prediction: the result of `forward`, [B].
            labels: [B].
            adds: whether gradients of parameters are added to those that are there.
            share: of its mini-batch in this pass.
        """
        self._gradients.adds = adds
        grad = self._loss.grad(prediction, labels)
        if share != 1.0:
            grad *= share
        low, high = self._model.bounds
        if low > 0.0:  # of a bounded prediction, those outside do not move
            inside = (self._prediction >= low).logical_and_(self._prediction <= high)
            grad = grad.masked_fill(inside.logical_not_(), 0.0)  # torch.where would copy its 0.0 to the device
        inputs_grad = self._top.backward(grad.unsqueeze(1).to(self._dtype), self._gradients, wants_inputs=True)
        assert inputs_grad is not None
        dense_grad = self._interaction.backward(self._dense, self._vectors, inputs_grad)
        del inputs_grad, self._dense
        self._bottom.backward(dense_grad, self._gradients, wants_inputs=False)
        if self._features is not None:
            self._features_backward(*self._features, self._vectors)
        del self._pooled, self._features, self._vectors  # a batch of vectors is large

    def _features_backward(self, leaves: Sequence[Tensor], vectors: Tensor, grad: Tensor) -> None:
        """From the gradient of the features' vectors, [B, T, D], that of pooled vectors and projections."""
        projections = [parameter for parameter, _ in self._projections]
        with torch.inference_mode(False):
            grads = torch.autograd.grad(vectors, [*leaves, *projections], grad)
        for (_, place), projection_grad in zip(self._projections, grads[len(leaves) :], strict=True):
            self._gradients.store(projection_grad, place)
        for group, group_grad in zip(self._pooled, grads, strict=False):
            group.copy_(group_grad)
