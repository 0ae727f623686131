"""The dense part of DLRM (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091). Embeddings come in pooled, wherever they are stored.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cachedlrm.model.features import FeatureVectors
from cachedlrm.model.interaction import DOT, CatInteraction, DotInteraction, Interaction, InteractionKind
from cachedlrm.model.learned_interaction import CrossInteraction, CrossNet, ProjectionInteraction

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def _mlp(
    sizes: tuple[int, ...], rng: np.random.Generator, activation: type[nn.Module], last_activation: type[nn.Module]
) -> nn.Sequential:
    """Linear layers with ``activation`` between and ``last_activation`` at the end.

    Weights are normal with variance 2 / (inputs + outputs), biases with variance 1 / outputs, as in
    facebookresearch/dlrm; module numbers, and so names, are its own too.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(max(1, inputs), outputs)
        if not inputs:  # data without dense features; torch would warn that there is nothing to draw
            linear.in_features, linear.weight = 0, nn.Parameter(torch.empty(outputs, 0))
        weight = rng.normal(0.0, np.sqrt(2.0 / (inputs + outputs)), (outputs, inputs))
        bias = rng.normal(0.0, np.sqrt(1.0 / outputs), outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, activation()]
    layers[-1] = last_activation()
    return nn.Sequential(*layers)


def _interaction(
    kind: InteractionKind, features: FeatureVectors, rng: np.random.Generator, activation: type[nn.Module]
) -> Interaction:
    """With initial parameters from ``rng``. Those of cross layers are TorchRec's: Glorot's normal, biases zero."""
    num_vectors, dim = features.num_features + 1, features.base_dim
    if kind.op == "dot":
        return DotInteraction(features.num_features, dim, kind.itself)
    if kind.op == "cat":
        return CatInteraction()
    if kind.op == "dcn":
        numbers, rank = num_vectors * dim, kind.cross_rank

        def draw(*shape: int) -> Tensor:
            return torch.from_numpy(rng.normal(0.0, np.sqrt(2.0 / (numbers + rank)), shape).astype(np.float32))

        return CrossInteraction(
            CrossNet([(draw(numbers, rank), draw(rank, numbers)) for _ in range(kind.cross_layers)])
        )
    first, second = (_mlp((num_vectors * dim, *sizes), rng, activation, activation) for sizes in kind.branches)
    return ProjectionInteraction((first, second), dim)


class Dlrm(nn.Module):
    """Bottom MLP, feature interaction, top MLP, sigmoid. Parameters have the reference's names.

    Args:
        features: from pooled vectors to one of each sparse feature.
        mlp_bot: layer sizes from the number of dense features to D.
        mlp_top: layer sizes after the interaction, ending in 1; its input size is derived.
        interaction: how the bottom MLP's output and the features' vectors interact.
        activation: between layers.
        loss_threshold: predictions are kept within this and one minus it, if it is between 0 and 1.
        seed: of the initial parameters.
    """

    def __init__(
        self,
        features: FeatureVectors,
        mlp_bot: tuple[int, ...],
        mlp_top: tuple[int, ...],
        interaction: InteractionKind = DOT,
        *,
        activation: str = "relu",
        loss_threshold: float = 0.0,
        seed: int = 123,
    ) -> None:
        super().__init__()
        self.emb_l = features
        self.bounds = (loss_threshold, 1.0 - loss_threshold) if 0.0 < loss_threshold < 1.0 else (0.0, 1.0)
        rng = np.random.default_rng(seed)
        between = _ACTIVATIONS[activation]
        self.bot_l = _mlp(mlp_bot, rng, between, between)
        self.interaction = _interaction(interaction, features, rng, between)
        for name, layers in self.interaction.layers.items():
            self.add_module(name, layers)
        inputs = interaction.num_outputs(features.num_features + 1, features.base_dim)
        self.top_l = _mlp((inputs, *mlp_top), rng, between, nn.Sigmoid)
        for projection in features.parameters():
            bound = np.sqrt(6.0 / sum(projection.shape))  # Glorot and Bengio, AISTATS 2010
            with torch.no_grad():
                projection.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(projection.shape))))

    def forward(self, dense: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Predicted probability: [B], from ``dense`` [B, num_dense] and each group's pooled [B * tables, dim]."""
        inputs = self.interaction(self.bot_l(dense), self.emb_l(pooled))
        return self.bounded(self.top_l(inputs).squeeze(1))

    def bounded(self, prediction: Tensor) -> Tensor:
        """Predictions within `bounds`."""
        low, high = self.bounds
        return prediction.clamp(low, high) if low > 0.0 else prediction
