"""Optimizers of the dense parameters: torch.optim's formulas, operator by operator, on all parameters at once.

torch.optim runs each formula parameter by parameter; for a small model its own overhead is a tenth of a step, and
loading it (torch._dynamo with it) takes a second. The formulas are element-wise, so the bits are the same.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cachedlrm.model.dense_settings import DenseSettings
from cachedlrm.store.records import ADAM_BETAS

# Matrix libraries choose kernels by alignment, and another kernel may round differently.
ALIGNMENT = 64
"""Every parameter starts at a multiple of so many elements, as torch's allocator would put it."""


class DenseOptimizer:
    """Moves the parameters of a model, which it makes views of one tensor; so are their gradients and state.

    Args:
        settings: which optimizer.
        model: its parameters are moved to new places.

    Attributes:
        grads: by parameter name, for the caller to fill before a step, which may change them.
        all_grads: the tensor that they are views of; there are zeros between them.
    """

    def __init__(self, settings: DenseSettings, model: nn.Module) -> None:
        self._settings = settings
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        sizes = [-(-shape.numel() // ALIGNMENT) * ALIGNMENT for shape in self._shapes.values()]
        device = next(model.parameters()).device
        self._parameters = torch.zeros(sum(sizes), device=device)
        self.all_grads = torch.zeros_like(self._parameters)
        self._state = {key: torch.zeros_like(self._parameters) for key in settings.state_keys}
        self._steps = 0
        self.grads = self._views(self.all_grads)
        for parameter, view in zip(model.parameters(), self._views(self._parameters).values(), strict=True):
            view.copy_(parameter.detach())
            parameter.data = view

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """Each parameter's part of ``flat``, in its shape."""
        views, start = {}, 0
        for name, shape in self._shapes.items():
            views[name] = flat[start : start + shape.numel()].view(shape)
            start += -(-shape.numel() // ALIGNMENT) * ALIGNMENT
        return views

    def step(self, learning_rate: float) -> None:
        """Moves the parameters by `grads`."""
        self._steps += 1
        settings, parameters, grads = self._settings, self._parameters, self.all_grads
        if settings.weight_decay and settings.name == "adamw":
            parameters.mul_(1 - learning_rate * settings.weight_decay)
        elif settings.weight_decay:
            grads.add_(parameters, alpha=settings.weight_decay)
        if settings.name == "sgd":
            for momentum in self._state.values():
                grads = momentum.mul_(settings.momentum).add_(grads)
            parameters.add_(grads, alpha=-learning_rate)
        elif settings.name == "adagrad":
            (sums,) = self._state.values()
            sums.addcmul_(grads, grads)
            parameters.addcdiv_(grads, sums.sqrt().add_(settings.definite_eps), value=-learning_rate)
        else:
            beta1, beta2 = ADAM_BETAS
            first, second = self._state.values()
            first.lerp_(grads, 1 - beta1)
            second.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)
            correction = math.sqrt(1 - beta2**self._steps)
            deviations = (second.sqrt() / correction).add_(settings.definite_eps)
            parameters.addcdiv_(first, deviations, value=-learning_rate / (1 - beta1**self._steps))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """By parameter name and torch.optim's key, ``step`` among them where it has one.

        Empty where torch's would be, but for momentum before the first step, which is zero and not missing.
        """
        if not self._state or (self._settings.name in ("adam", "adamw") and not self._steps):
            return {}
        views = {key: self._views(flat) for key, flat in self._state.items()}
        steps = {"step": torch.tensor(float(self._steps))} if self._settings.counts_steps else {}
        return {name: {**steps, **{key: views[key][name] for key in views}} for name in self._shapes}

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes over the state of another run.

        Args:
            state: by parameter name and torch.optim's key, as arrays, and ``step`` as a number.
        """
        for key, flat in self._state.items():
            for name, view in self._views(flat).items():
                view.copy_(torch.tensor(state[name][key]))
        if self._settings.counts_steps:
            self._steps = int(next(iter(state.values()))["step"])
