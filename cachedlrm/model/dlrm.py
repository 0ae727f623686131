"""The dense part of DLRM (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091). Embeddings come in pooled, wherever they are stored.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cachedlrm.model.features import FeatureVectors
from cachedlrm.model.interaction import Interaction, num_interactions

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
        linear = nn.Linear(inputs, outputs)
        weight = rng.normal(0.0, np.sqrt(2.0 / (inputs + outputs)), (outputs, inputs))
        bias = rng.normal(0.0, np.sqrt(1.0 / outputs), outputs)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, activation()]
    layers[-1] = last_activation()
    return nn.Sequential(*layers)


class Dlrm(nn.Module):
    """Bottom MLP, feature interaction, top MLP, sigmoid. Parameters have the reference's names.

    Args:
        features: from pooled vectors to one of each sparse feature.
        mlp_bot: layer sizes from the number of dense features to D.
        mlp_top: layer sizes after the interaction, ending in 1; its input size is derived.
        interaction_op: ``dot`` or ``cat``; see `Interaction`.
        interaction_itself: whether ``dot`` includes each vector with itself.
        activation: between layers.
        loss_threshold: predictions are kept within this and one minus it, if it is between 0 and 1.
        seed: of the initial parameters.
    """

    def __init__(
        self,
        features: FeatureVectors,
        mlp_bot: tuple[int, ...],
        mlp_top: tuple[int, ...],
        interaction_op: str = "dot",
        *,
        interaction_itself: bool = False,
        activation: str = "relu",
        loss_threshold: float = 0.0,
        seed: int = 123,
    ) -> None:
        super().__init__()
        self.emb_l = features
        self.interaction = Interaction(features.num_features, features.base_dim, interaction_op, interaction_itself)
        self.bounds = (loss_threshold, 1.0 - loss_threshold) if 0.0 < loss_threshold < 1.0 else (0.0, 1.0)
        inputs = num_interactions(features.num_features, features.base_dim, interaction_op, interaction_itself)
        rng = np.random.default_rng(seed)
        between = _ACTIVATIONS[activation]
        self.bot_l = _mlp(mlp_bot, rng, between, between)
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
