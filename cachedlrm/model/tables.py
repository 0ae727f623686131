"""The embeddings of a model and the tables that hold them.

A plain embedding is one table. Two tricks of facebookresearch/dlrm make smaller ones, with its rules and names:

- *Quotient-remainder* (Shi et al., "Compositional Embeddings Using Complementary Partitions", arXiv:1909.02107): an id
  is looked up in two tables, ``id // collisions`` in one and ``id % collisions`` in the other, and the pooled vectors
  are combined.
- *Mixed dimensions* (Ginart et al., "Mixed Dimension Embeddings", arXiv:1909.11810): large tables get narrower rows,
  and a matrix projects the pooled vector to the common dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Table:
    """Rows as the cache keeps them.

    Attributes:
        name: in the reference's state dict.
        num_rows: rows.
        dim: columns of the weight.
    """

    name: str
    num_rows: int
    dim: int


@dataclass(frozen=True)
class Embedding:
    """One sparse feature's embedding, ``emb_l.<number>`` of the reference.

    Attributes:
        number: of the feature, from 0.
        num_ids: ids are 0 to ``num_ids - 1``.
        dim: columns of its tables.
        collisions: remainders of the quotient-remainder trick; 0 without it.
        mixed: whether its dimension follows the mixed-dimension rule.
    """

    number: int
    num_ids: int
    dim: int
    collisions: int = 0
    mixed: bool = False

    @property
    def tables(self) -> tuple[Table, ...]:
        """One table, or quotients and remainders."""
        name = f"emb_l.{self.number}"
        if self.collisions:
            quotients = -(-self.num_ids // self.collisions)
            return (
                Table(f"{name}.weight_q", quotients, self.dim),
                Table(f"{name}.weight_r", self.collisions, self.dim),
            )
        return (Table(f"{name}.embs.weight" if self.mixed else f"{name}.weight", self.num_ids, self.dim),)


def mixed_dimensions(num_ids: Sequence[int], base_dim: int, temperature: float, round_dims: bool) -> tuple[int, ...]:
    """Dimension of each table by the reference's rule: ``base_dim * (fewest ids / ids) ** temperature``, at least 1.

    Float32 throughout, as a dimension near a half rounds by the last bit.

    Args:
        num_ids: ids of each table.
        base_dim: dimension of the smallest table.
        temperature: how fast dimensions fall; 0: not at all.
        round_dims: round to the nearest power of two.
    """
    sizes = torch.tensor(num_ids).float()
    fewest = int(torch.argmin(sizes))
    dims = (torch.ones(len(sizes)) * (base_dim * sizes[fewest] ** temperature) * sizes ** (-temperature)).clamp(min=1.0)
    dims[fewest] = base_dim
    rounded = dims.round()
    if round_dims:
        rounded = 2 ** rounded.log2().round()
    return tuple(int(dim) for dim in rounded)
