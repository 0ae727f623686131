"""From the pooled vectors of each table to one vector of each sparse feature."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cachedlrm.model.tables import Embedding, Table

_COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mult": torch.mul,
    "add": torch.add,
    "concat": lambda quotient, remainder: torch.cat([quotient, remainder], dim=1),
}


class FeatureVectors(nn.ModuleDict):
    """Combines quotient and remainder tables and projects narrow vectors; plain tables pass as they are.

    Projections are its only parameters: ``<feature>.proj.weight`` [base_dim, dim], as in facebookresearch/dlrm.

    Args:
        embeddings: of the T features.
        groups: tables of each group, in the order in which their pooled vectors come.
        base_dim: D, the dimension of every feature's vector.
        qr_operation: how quotients and remainders combine: ``mult``, ``add`` or ``concat``.
    """

    def __init__(
        self, embeddings: Sequence[Embedding], groups: Sequence[Sequence[Table]], base_dim: int, qr_operation: str
    ) -> None:
        super().__init__()
        self.num_features = len(embeddings)
        self.base_dim = base_dim
        self._combine = _COMBINE[qr_operation]
        self._group_sizes = [(len(group), group[0].dim) for group in groups]
        places = {table.name: (g, t) for g, group in enumerate(groups) for t, table in enumerate(group)}
        self._places = [[places[table.name] for table in embedding.tables] for embedding in embeddings]
        self.is_plain = len(groups) == 1 and all(
            not embedding.collisions and embedding.dim == base_dim for embedding in embeddings
        )
        for embedding in embeddings:
            if embedding.mixed and embedding.dim < base_dim:
                projection = nn.Linear(embedding.dim, base_dim, bias=False)
                self[str(embedding.number)] = nn.ModuleDict({"proj": projection})

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """[B, T, D] from the pooled vectors of each group, [B * tables, dim]."""
        if self.is_plain:
            return pooled[0].view(-1, self.num_features, self.base_dim)
        # Taken apart at once: the gradient of a slice would be as large as all of them.
        groups = [
            vectors.view(-1, num_tables, dim).unbind(1)
            for vectors, (num_tables, dim) in zip(pooled, self._group_sizes, strict=True)
        ]
        return torch.stack([self._vector(feature, groups) for feature in range(self.num_features)], dim=1)

    def _vector(self, feature: int, groups: Sequence[Sequence[Tensor]]) -> Tensor:
        """[B, D] of one feature, from the pooled vectors [B, dim] of each table of each group."""
        parts = [groups[group][table] for group, table in self._places[feature]]
        vector = self._combine(*parts) if len(parts) == 2 else parts[0]
        if str(feature) in self:
            vector = self[str(feature)]["proj"](vector)  # type: ignore[index]
        return vector
