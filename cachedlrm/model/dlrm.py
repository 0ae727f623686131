"""The dense part of DLRM (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091). Embeddings come in pooled; where they are stored is not known here.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cachedlrm.model.features import FeatureVectors

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
        interaction_op: ``dot`` (pairwise dot products of the T + 1 vectors) or ``cat``.
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
        interaction_itself: bool = False,
        activation: str = "relu",
        loss_threshold: float = 0.0,
        seed: int = 123,
    ) -> None:
        super().__init__()
        self.emb_l = features
        self.interaction_op = interaction_op
        self.bounds = (loss_threshold, 1.0 - loss_threshold) if 0.0 < loss_threshold < 1.0 else (0.0, 1.0)
        num_vectors = features.num_features + 1
        lower = torch.tril_indices(num_vectors, num_vectors, offset=0 if interaction_itself else -1)
        # Flat indices: one index_select instead of indexing two axes, which costs twice as much.
        self.register_buffer("pairs", lower[0] * num_vectors + lower[1], persistent=False)
        self.pairs: Tensor
        self.num_interactions = num_interactions(
            features.num_features, features.base_dim, interaction_op, interaction_itself
        )
        rng = np.random.default_rng(seed)
        between = _ACTIVATIONS[activation]
        self.bot_l = _mlp(mlp_bot, rng, between, between)
        self.top_l = _mlp((self.num_interactions, *mlp_top), rng, between, nn.Sigmoid)
        for projection in features.parameters():
            bound = np.sqrt(6.0 / sum(projection.shape))  # Glorot and Bengio, AISTATS 2010
            with torch.no_grad():
                projection.copy_(torch.from_numpy(rng.uniform(-bound, bound, tuple(projection.shape))))

    def interact(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Combines the bottom MLP's output with the pooled embeddings.

        Args:
            dense: [B, D].
            pooled: [B, T, D].

        Returns:
            [B, D + pairs] for ``dot``, [B, (T + 1) * D] for ``cat``.
        """
        vectors = torch.cat([dense.unsqueeze(1), pooled], dim=1)  # [B, T + 1, D]
        if self.interaction_op == "cat":
            return vectors.flatten(1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)  # [B, (T + 1)^2]
        return torch.cat([dense, products.index_select(1, self.pairs)], dim=1)

    def forward(self, dense: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """Predicted probability: [B], from ``dense`` [B, num_dense] and each group's pooled [B * tables, dim]."""
        interactions = self.interact(self.bot_l(dense), self.emb_l(pooled))
        return self.bounded(self.top_l(interactions).squeeze(1))

    def bounded(self, prediction: Tensor) -> Tensor:
        """Predictions within `bounds`."""
        low, high = self.bounds
        return prediction.clamp(low, high) if low > 0.0 else prediction


def num_interactions(num_features: int, dim: int, interaction_op: str, interaction_itself: bool) -> int:
    """Inputs of the top MLP: for ``cat`` all vectors, for ``dot`` the dense one and the products of all pairs."""
    num_vectors = num_features + 1
    if interaction_op == "cat":
        return num_vectors * dim
    return dim + num_vectors * (num_vectors + (1 if interaction_itself else -1)) // 2
