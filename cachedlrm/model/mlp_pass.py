"""Forward and backward pass of linear layers, and the parameters that all parts of a pass share."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

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


class PassParameters:
    """The parameters of a model as its passes compute with them, and where their gradients go.

    Args:
        model: its parameters are at their final place in memory.
        grads: by parameter name, where their gradients go.
        dtype: to compute in. With another one than the parameters', passes compute on copies; see `refresh`.

    Attributes:
        adds: whether gradients are added to those that are there, as in all passes over a batch but the first.
    """

    def __init__(self, model: nn.Module, grads: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self.adds = False
        self._parameters = dict(model.named_parameters())
        self._grads = grads
        self._dtype = dtype
        self._copies: list[tuple[Tensor, Tensor]] = []

    def take(self, name: str) -> tuple[Tensor, Tensor]:
        """The parameter to compute with, and the place of its gradient."""
        parameter, place = self._parameters[name].detach(), self._grads[name]
        if parameter.dtype == self._dtype:
            return parameter, place
        self._copies.append((torch.empty_like(parameter, dtype=self._dtype), parameter))
        return self._copies[-1][0], place

    def refresh(self) -> None:
        """Makes the copies anew; before each pass, as parameters move."""
        for copy, parameter in self._copies:
            copy.copy_(parameter)

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


class MlpPass:
    """Linear layers and activations of an nn.Sequential, with the tensors that a pass keeps for its backward.

    Args:
        layers: linear layers and activations in turn.
        parameters: of the model.
        name: of the layers in it.
    """

    def __init__(self, layers: nn.Sequential, parameters: PassParameters, name: str) -> None:
        self._parameters = parameters
        self._layers = []
        for number in range(0, len(layers), 2):
            weight, weight_grad = parameters.take(f"{name}.{number}.weight")
            bias, bias_grad = parameters.take(f"{name}.{number}.bias")
            activation = type(layers[number + 1])
            functions = _FORWARD[activation], _BACKWARD[activation]
            self._layers.append((weight, weight.t(), bias, weight_grad, bias_grad, *functions))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, outputs] of the last layer, from [B, inputs] of the first."""
        self._passed = []
        for _, transposed, bias, _, _, activate, _ in self._layers:
            value = torch.addmm(bias, inputs, transposed)
            output = activate(value)
            self._passed.append((inputs, value, output))
            inputs = output
        return inputs

    def backward(self, grad: Tensor, wants_inputs: bool = True) -> Tensor:
        """The gradient by the inputs, if it is wanted, else an empty tensor; those by parameters go to their places."""
        for layer, (weight, _, _, weight_grad, bias_grad, _, backward) in enumerate(reversed(self._layers), 1):
            inputs, value, output = self._passed.pop()
            grad = backward(grad, output, value)
            del value, output
            self._parameters.product(grad, inputs, weight_grad)
            self._parameters.sum_rows(grad, bias_grad)
            if layer == len(self._layers) and not wants_inputs:
                return grad.new_empty(0)
            grad = grad.mm(weight)
        return grad
