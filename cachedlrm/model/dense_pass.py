"""Forward and backward pass through the dense part of DLRM, without autograd's graph.

The same ATen operators in the same order as `Dlrm.forward` and torch's autograd run, so the bits are theirs
(tests/model/test_dense_pass.py); it saves making and walking a graph, which takes as long as the operators themselves
if a step is small.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.losses import Loss
from cachedlrm.model.mlp_pass import MlpPass, PassParameters


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
        self._embeddings = model.emb_l
        self._loss = loss
        self._parameters = PassParameters(model, grads, dtype)
        self._bottom = MlpPass(model.bot_l, self._parameters, "bot_l")
        self._interaction = model.interaction.training_pass(self._parameters)
        self._top = MlpPass(model.top_l, self._parameters, "top_l")
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
        self._parameters.refresh()
        inputs = self._interaction.forward(self._bottom.forward(dense.to(self._dtype)), self._vectors)
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
        self._parameters.adds = adds
        grad = self._loss.grad(prediction, labels)
        if share != 1.0:
            grad *= share
        low, high = self._model.bounds
        if low > 0.0:  # of a bounded prediction, those outside do not move
            inside = (self._prediction >= low).logical_and_(self._prediction <= high)
            grad = grad.masked_fill(inside.logical_not_(), 0.0)  # torch.where would copy its 0.0 to the device
        inputs_grad = self._top.backward(grad.unsqueeze(1).to(self._dtype))
        dense_grad = self._interaction.backward(inputs_grad)
        del inputs_grad
        self._bottom.backward(dense_grad, wants_inputs=False)
        if self._features is not None:
            self._features_backward(*self._features, self._vectors)
        del self._pooled, self._features, self._vectors  # a batch of vectors is large

    def _features_backward(self, leaves: Sequence[Tensor], vectors: Tensor, grad: Tensor) -> None:
        """From the gradient of the features' vectors, [B, T, D], that of pooled vectors and projections."""
        projections = [parameter for parameter, _ in self._projections]
        with torch.inference_mode(False):
            grads = torch.autograd.grad(vectors, [*leaves, *projections], grad)
        for (_, place), projection_grad in zip(self._projections, grads[len(leaves) :], strict=True):
            self._parameters.store(projection_grad, place)
        for group, group_grad in zip(self._pooled, grads, strict=False):
            group.copy_(group_grad)
