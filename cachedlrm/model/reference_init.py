"""The initial parameters of facebookresearch/dlrm: the same numbers from the same seed.

The reference seeds numpy's and torch's generators alike. Numpy's gives weights: of each table in turn, then of the
bottom and the top MLP. Torch's gives those that numpy does not overwrite: the tables of the quotient-remainder trick
and the projections of mixed dimensions. But it also moves on at every module whose numbers are overwritten.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cachedlrm.base.errors import UserError
from cachedlrm.model.tables import Embedding

_PIECE = 1 << 20  # numbers drawn at once; numpy draws float64


def reference_parameters(
    seed: int, embeddings: Sequence[Embedding], base_dim: int, mlp_bot: tuple[int, ...], mlp_top: tuple[int, ...]
) -> dict[str, NDArray[np.float32]]:
    """All parameters by their names in the reference's state dict.

    The peak of memory is the result and some 8 MiB.

    Args:
        seed: 0 to 2^32 - 1.
        embeddings: in the order of their numbers.
        base_dim: the dimension after projections of mixed dimensions.
        mlp_bot: layer sizes.
        mlp_top: layer sizes, the derived input size first.

    Returns:
        ``emb_l.<number>...`` [rows, dim] and, for a mixed dimension below ``base_dim``, ``emb_l.<number>.proj.weight``
        [base_dim, dim]; then ``bot_l`` and ``top_l``, ``.<layer>.weight`` [outputs, inputs] and ``.bias`` [outputs].

    Raises:
        UserError: a seed that the reference's generator does not take.
    """
    try:
        numpy_rng = np.random.RandomState(seed)
    except ValueError:
        raise UserError(f"--numpy-rand-seed is {seed}; the reference's is 0 to {2**32 - 1}") from None
    torch_rng = torch.Generator().manual_seed(seed)
    parameters: dict[str, NDArray[np.float32]] = {}
    last_with_torch = max((index for index, one in enumerate(embeddings) if _keeps_torch(one, base_dim)), default=-1)
    for index, embedding in enumerate(embeddings):
        drawn_by_torch = torch_rng if index <= last_with_torch else None
        if embedding.collisions:
            parameters |= _quotient_remainder(embedding, torch_rng)
        else:
            parameters |= _one_table(embedding, base_dim, numpy_rng, drawn_by_torch)
    for name, sizes in (("bot_l", mlp_bot), ("top_l", mlp_top)):
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            weight, bias = np.empty((outputs, inputs), np.float32), np.empty(outputs, np.float32)
            _fill(weight, partial(numpy_rng.normal, 0.0, np.sqrt(2 / (outputs + inputs))))
            _fill(bias, partial(numpy_rng.normal, 0.0, np.sqrt(1 / outputs)))
            # An activation follows each layer, so layers have even numbers.
            parameters |= {f"{name}.{2 * layer}.weight": weight, f"{name}.{2 * layer}.bias": bias}
    return parameters


def _keeps_torch(embedding: Embedding, base_dim: int) -> bool:
    """Whether numbers of torch's generator remain in its parameters."""
    return embedding.collisions > 0 or (embedding.mixed and embedding.dim < base_dim)


def _fill(out: NDArray[np.float32], draw: Callable[..., Any]) -> None:
    """Fills ``out`` piece by piece, which gives the numbers of one call."""
    flat = out.reshape(-1)
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        piece[:] = draw(size=len(piece))


def _quotient_remainder(embedding: Embedding, torch_rng: torch.Generator) -> dict[str, NDArray[np.float32]]:
    """Uniform from sqrt(1 / ids) to 1: the reference passes only the lower bound."""
    weights = {table.name: np.empty((table.num_rows, table.dim), np.float32) for table in embedding.tables}
    for weight in weights.values():
        torch.from_numpy(weight).uniform_(np.sqrt(1 / embedding.num_ids), 1.0, generator=torch_rng)
    return weights


def _one_table(
    embedding: Embedding, base_dim: int, numpy_rng: np.random.RandomState, torch_rng: torch.Generator | None
) -> dict[str, NDArray[np.float32]]:
    """Uniform in ±sqrt(1 / ids), and a projection where there is one.

    Args:
        embedding: without the quotient-remainder trick.
        base_dim: of the projection.
        numpy_rng: gives the table.
        torch_rng: moves on as at the construction of the reference's module; None: no longer needed.
    """
    (table,) = embedding.tables
    weight = np.empty((table.num_rows, table.dim), np.float32)
    parameters = {table.name: weight}
    if torch_rng is not None:
        # Into the array that numpy fills next, for torch's numbers depend on the size and place is needed anyway.
        discarded = torch.from_numpy(weight).normal_(generator=torch_rng)  # nn.EmbeddingBag
        if embedding.mixed:
            discarded.uniform_(generator=torch_rng)  # xavier_uniform_
    if embedding.mixed and table.dim < base_dim:
        assert torch_rng is not None
        projection = np.empty((base_dim, table.dim), np.float32)
        discarded = torch.from_numpy(projection).uniform_(generator=torch_rng)  # nn.Linear
        nn.init.xavier_uniform_(discarded, generator=torch_rng)
        parameters[f"emb_l.{embedding.number}.proj.weight"] = projection
    bound = np.sqrt(1 / embedding.num_ids)
    _fill(weight, partial(numpy_rng.uniform, -bound, bound))
    return parameters
