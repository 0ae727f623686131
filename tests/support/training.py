"""A small model trained over a cache, with all that came of it; what the exactness tests compare."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cachedlrm.base.kernels import table_offsets
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.data.batch import Batch
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.graphed_pass import Recorder
from cachedlrm.model.interaction import InteractionKind
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.records import RecordLayout
from support.models import inform, one_group, plain_features

TABLE_ROWS = (300, 40, 1000, 7)
ALL_ROWS = sum(TABLE_ROWS)
NUM_TABLES, BATCH, STEPS, DIM, DENSE, LR = len(TABLE_ROWS), 32, 60, 8, 5, 0.05
EVALUATE_AFTER = frozenset({3, 4, 30})  # steps


@functools.cache
def batches(lookups_per_bag: int, steps: int = STEPS) -> tuple[Batch, ...]:
    """Skewed ids; with several lookups a bag may be empty and may hold a row twice. The last batch is smaller."""
    rng = np.random.default_rng(1)
    first_rows = table_offsets(TABLE_ROWS)
    stream = []
    for step in range(steps):
        num_samples = BATCH if step < steps - 1 else 5
        num_bags = num_samples * NUM_TABLES
        sizes = np.ones(num_bags, int) if lookups_per_bag == 1 else rng.integers(0, lookups_per_bag + 1, num_bags)
        tables = np.repeat(np.arange(num_bags), sizes) % NUM_TABLES
        rows = rng.zipf(1.2, len(tables)) % np.array(TABLE_ROWS)[tables] + first_rows[tables]
        dense = rng.standard_normal((num_samples, DENSE)).astype(np.float32)
        labels = (rng.random(num_samples) < 0.3).astype(np.float32)
        stream.append(Batch(dense, rows, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), labels))
    return tuple(stream)


class Samples:
    """A source of one fixed batch, for evaluation."""

    table_rows, num_dense, max_lookups_per_bag, pieces = TABLE_ROWS, DENSE, (3,) * NUM_TABLES, None
    has_labels = True

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.num_samples = batch.num_samples

    def read(self, start: int, stop: int) -> Batch:
        first, last = self._batch.offsets[start * NUM_TABLES], self._batch.offsets[stop * NUM_TABLES]
        return Batch(
            self._batch.dense[start:stop],
            self._batch.rows[first:last],
            self._batch.offsets[start * NUM_TABLES : stop * NUM_TABLES + 1] - first,
            self._batch.labels[start:stop],
        )


@dataclass(frozen=True)
class Result:
    losses: list[float]
    tables: list[torch.Tensor]
    dense: dict[str, torch.Tensor]
    records: np.ndarray  # of touched rows, by first touch
    counters: CacheCounters
    predictions: list[np.ndarray]

    def assert_same_bits(self, other: "Result") -> None:
        assert self.losses == other.losses
        assert all(torch.equal(a, b) for a, b in zip(self.tables, other.tables, strict=True))
        assert all(torch.equal(self.dense[name], other.dense[name]) for name in self.dense)
        assert self.records.tobytes() == other.records.tobytes()

    def assert_rows_travelled(self) -> None:
        assert self.counters.evicted_rows > 0
        assert self.counters.written_back_rows > 0
        assert self.counters.fetched_rows > 0


def train(
    optimizer: str,
    lookups_per_bag: int,
    quota_slots: int = ALL_ROWS,
    num_slots: int | None = None,
    policy: str = "lru",
    prefetch_depth: int = 0,
    evaluate: bool = False,
    interaction: str = "dot",
    device: str = "cpu",
    record: Recorder | None = None,
    steps: int = STEPS,
    row_dtype: str = "fp32",
    state_dtype: str = "fp32",
    rate: LearningRate | None = None,
    **of_trainer: Any,
) -> Result:
    """A run; ``of_trainer`` are further arguments of `Trainer`."""
    stream = batches(lookups_per_bag, steps)
    settings = CacheSettings(policy, window=5, prefetch_depth=prefetch_depth, staging_rows=16)
    layout = RecordLayout(DIM, optimizer, False, row_dtype, state_dtype)
    cache = one_group(TABLE_ROWS, layout, quota_slots, num_slots, settings, seed=3, device=device)
    group = cache.groups[0]
    book = AddressBook(ALL_ROWS)
    inform(group.policy, [book.working_set(index, b.rows, b.offsets) for index, b in enumerate(stream)])
    model = Dlrm(plain_features(NUM_TABLES, DIM), (DENSE, 16, DIM), (16, 1), InteractionKind(interaction), seed=3).to(
        device
    )
    loss = make_loss("bce", (), torch.device(device))
    trainer = Trainer(cache, model, rate or LearningRate(LR), loss, BATCH, record=record, **of_trainer)
    losses, predictions, counters = [], [], CacheCounters()
    prefetcher = Prefetcher(
        cache.prepare(iter(stream)), prefetch_depth, cache.trained, lambda index: evaluate and index in EVALUATE_AFTER
    )
    try:
        for batch in prefetcher:
            losses.append(trainer.step(batch).item())
            counters += batch.counters
            if evaluate and batch.tensors.index in EVALUATE_AFTER:
                predictions.append(trainer.evaluate(Samples(stream[-2]), batch_size=7).predictions)
    finally:
        prefetcher.close()
    tables = [t.cpu() for t in group.read(np.arange(ALL_ROWS)).split(TABLE_ROWS)]
    cache.flush()
    records = group.records(np.arange(group.book.num_addresses))
    dense = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    return Result(losses, tables, dense, records, counters, predictions)


resident = functools.cache(train)
