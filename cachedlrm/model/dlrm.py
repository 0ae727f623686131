"""The dense part of DLRM (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
Systems", arXiv:1906.00091). Embeddings come in pooled; where they are stored is not known here.
"""

import itertools

import numpy as np
import torch
from torch import Tensor, nn

from cachedlrm.errors import UserError


def _mlp(sizes: tuple[int, ...], rng: np.random.Generator, last_activation: nn.Module) -> nn.Sequential:
    """Linear layers with ReLU between and ``last_activation`` at the end.

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
        layers += [linear, nn.ReLU()]
    layers[-1] = last_activation
    return nn.Sequential(*layers)


class Dlrm(nn.Module):
    """Bottom MLP, feature interaction, top MLP, sigmoid.

    Args:
        num_tables: T.
        mlp_bot: layer sizes from the number of dense features to the embedding dimension D.
        mlp_top: layer sizes after the interaction, ending in 1; its input size is derived.
        interaction_op: ``dot`` (pairwise dot products of the T + 1 vectors) or ``cat``.
        interaction_itself: whether ``dot`` includes each vector with itself.
        seed: of the initial parameters.

    Raises:
        UserError: sizes that do not fit; names the options.
    """

    def __init__(
        self,
        num_tables: int,
        mlp_bot: tuple[int, ...],
        mlp_top: tuple[int, ...],
        interaction_op: str = "dot",
        interaction_itself: bool = False,
        seed: int = 123,
    ) -> None:
        super().__init__()
        self.num_tables = num_tables
        self.dim = mlp_bot[-1]
        self.interaction_op = interaction_op
        if mlp_top[-1] != 1:
            raise UserError(f"--arch-mlp-top must end in 1 (one prediction a sample), not in {mlp_top[-1]}")
        num_vectors = num_tables + 1
        lower = torch.tril_indices(num_vectors, num_vectors, offset=0 if interaction_itself else -1)
        # Flat indices: one index_select instead of indexing two axes, which costs twice as much.
        self.register_buffer("pairs", lower[0] * num_vectors + lower[1], persistent=False)
        self.pairs: Tensor
        num_interactions = self.dim + len(self.pairs) if interaction_op == "dot" else num_vectors * self.dim
        self.mlp_top = (num_interactions, *mlp_top)
        rng = np.random.default_rng(seed)
        self.bot_l = _mlp(mlp_bot, rng, nn.ReLU())
        self.top_l = _mlp(self.mlp_top, rng, nn.Sigmoid())

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

    def forward(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """Predicted probability: [B], from ``dense`` [B, num_dense] and ``pooled`` [B * T, D]."""
        bottom = self.bot_l(dense)
        interactions = self.interact(bottom, pooled.view(-1, self.num_tables, self.dim))
        prediction: Tensor = self.top_l(interactions)
        return prediction.squeeze(1)
