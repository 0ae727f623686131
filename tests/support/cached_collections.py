"""Small models over collections of tables, and the same over plain torch: tests of the library compare the two."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cachedlrm import CachedEmbeddingBagCollection, EmbeddingTable
from cachedlrm.library.module import CachedTables

torch.sparse.check_sparse_tensor_invariants.disable()  # torch.optim builds valid ones; without a choice it warns

BATCH, STEPS, RATE = 16, 30, 0.05

TABLES = (
    EmbeddingTable("user", 300, 8, ("user", "friend")),
    EmbeddingTable("place", 60, 4, pooling="mean"),
    EmbeddingTable("item", 500, 8, ("item",)),
    EmbeddingTable("tag", 40, 4, ("item_tags", "user_tags")),
)
"""Two dimensions, features that share a table, sums and means."""

FEATURES = tuple(feature for table in TABLES for feature in (table.feature_names or (table.name,)))
WIDTH = sum(table.embedding_dim * max(1, len(table.feature_names)) for table in TABLES)


@functools.cache
def initial_weights() -> dict[str, Tensor]:
    """[rows, columns] of each table."""
    generator = torch.Generator().manual_seed(4)
    return {
        table.name: torch.rand(table.num_embeddings, table.embedding_dim, generator=generator) - 0.5 for table in TABLES
    }


class Batch:
    """Skewed ids in bags of 0 to 2.

    An id is in one feature of its table, and there at most twice, where rows are averaged once: so no sum and no step
    of plain torch depends on an order.

    Attributes:
        features: (values, offsets) by name.
        labels: [BATCH].
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.features: dict[str, tuple[Tensor, Tensor]] = {}
        for table in TABLES:
            names = table.feature_names or (table.name,)
            ids = rng.permutation(np.unique(rng.zipf(1.1, 300) % table.num_embeddings))
            for name, own in zip(names, np.array_split(ids, len(names)), strict=True):
                values = rng.permutation(np.repeat(own, 1 if table.pooling == "mean" else 2))
                sizes = rng.integers(0, 3, BATCH)
                offsets = np.minimum(np.concatenate([[0], np.cumsum(sizes)]), len(values))
                self.features[name] = torch.from_numpy(values[: offsets[-1]]), torch.from_numpy(offsets)
        self.labels = torch.from_numpy((rng.random(BATCH) < 0.4).astype(np.float32))


@functools.cache
def batches(count: int = STEPS, seed: int = 7) -> tuple[Batch, ...]:
    """A stream."""
    rng = np.random.default_rng(seed)
    return tuple(Batch(rng) for _ in range(count))


class PlainTables(nn.Module):
    """The same tables as parameters, pooled by nn.EmbeddingBag's function, with torch's own optimizer of rows.

    Args:
        optimizer: by our name.
        rate: of the rows.
    """

    def __init__(self, optimizer: str, rate: float = RATE) -> None:
        super().__init__()
        self.weights = {name: nn.Parameter(weight.clone()) for name, weight in initial_weights().items()}
        kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
        self._optimizer = kinds[optimizer](list(self.weights.values()), lr=rate)

    def forward(self, features: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        pooled = []
        for table in TABLES:
            for name in table.feature_names or (table.name,):
                ids, offsets = features[name]
                pooled.append(
                    nn.functional.embedding_bag(
                        ids, self.weights[table.name], offsets, mode=table.pooling, sparse=table.pooling == "sum",
                        include_last_offset=True,
                    )
                )  # fmt: skip
        return torch.cat(pooled, dim=1)

    def step(self) -> None:
        for weight in self.weights.values():
            if weight.grad is not None and not weight.grad.is_sparse:
                rows = weight.grad.abs().sum(1).nonzero()[:, 0]
                weight.grad = torch.sparse_coo_tensor(rows[None], weight.grad[rows], weight.shape)
        self._optimizer.step()
        self._optimizer.zero_grad()


class Model(nn.Module):
    """A model of a user's own over whatever gives [B, WIDTH]."""

    def __init__(self, embeddings: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = embeddings
        self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 1))

    def forward(self, features: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        found = self.embeddings(features)
        values = found if isinstance(found, Tensor) else found.values()
        return self.layers(values).squeeze(1)


def make_collection(**arguments) -> CachedEmbeddingBagCollection:
    """The tables in a cache that evicts."""
    arguments = {
        "optimizer": "sgd",
        "learning_rate": RATE,
        "cache_rows": 200,
        "weights": initial_weights(),
        **arguments,
    }
    return CachedEmbeddingBagCollection(TABLES, **arguments)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch.features), batch.labels)


def dense_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def train_batch(model: Model, dense: torch.optim.Optimizer, batch: Batch) -> float:
    """One step of a user's loop; the loss."""
    loss = loss_of(model, batch)
    dense.zero_grad()
    loss.backward()
    dense.step()
    model.embeddings.step()
    return loss.item()


def train(model: Model, stream: Iterable[Batch], dense: torch.optim.Optimizer | None = None) -> list[float]:
    """A user's loop; its losses."""
    dense = dense or dense_optimizer(model)
    return [train_batch(model, dense, batch) for batch in stream]


@functools.cache
def plain_run(optimizer: str) -> tuple[list[float], Model]:
    """Losses and model of plain torch."""
    model = Model(PlainTables(optimizer))
    return train(model, batches()), model


def assert_rows_travelled(module: CachedTables) -> None:
    """Rows were evicted, written back and fetched again."""
    assert module.counters.evicted_rows > 0
    assert module.counters.written_back_rows > 0
    assert module.counters.fetched_rows > 0


def assert_same_rows(collection: CachedEmbeddingBagCollection, weights: dict[str, Tensor]) -> None:
    """All rows of all tables, to the last bit."""
    for name, weight in weights.items():
        assert torch.equal(collection.weight(name), weight.detach()), name


def child_environment() -> dict[str, str]:
    """Of a process that imports these."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
