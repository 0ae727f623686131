"""The product's first promise: a cached run gives the bits of an uncached one.

Each cached run here evicts, writes back and fetches rows again, and says so. Its losses and final parameters are
compared with ``==``: to a run whose rows are all resident, and to a trainer of plain torch modules that shares no code.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.data.batch import Batch, table_offsets
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.graphed_pass import Recorder
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.report.metrics import CacheCounters
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.records import RecordLayout
from models import POLICIES, inform, one_group, plain_features
from plain_torch import train_plain

TABLE_ROWS = (300, 40, 1000, 7)
ALL_ROWS = sum(TABLE_ROWS)
NUM_TABLES, BATCH, STEPS, DIM, DENSE, LR = len(TABLE_ROWS), 32, 60, 8, 5, 0.05
EVALUATE_AFTER = frozenset({3, 4, 30})  # steps


@functools.cache
def batches(lookups_per_bag: int) -> tuple[Batch, ...]:
    """Skewed ids; with several lookups a bag may be empty and may hold a row twice. The last batch is smaller."""
    rng = np.random.default_rng(1)
    first_rows = table_offsets(TABLE_ROWS)
    stream = []
    for step in range(STEPS):
        num_samples = BATCH if step < STEPS - 1 else 5
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

    table_rows, num_dense, max_lookups_per_bag = TABLE_ROWS, DENSE, 3

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
        assert (self.records == other.records).all()

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
) -> Result:
    stream = batches(lookups_per_bag)
    settings = CacheSettings(policy, window=5, prefetch_depth=prefetch_depth, staging_rows=16)
    layout = RecordLayout(DIM, optimizer)
    cache = one_group(TABLE_ROWS, layout, quota_slots, num_slots, settings, seed=3, device=device)
    group = cache.groups[0]
    book = AddressBook(ALL_ROWS)
    inform(group.policy, [book.working_set(index, b.rows, b.offsets) for index, b in enumerate(stream)])
    model = Dlrm(plain_features(NUM_TABLES, DIM), (DENSE, 16, DIM), (16, 1), interaction, seed=3).to(device)
    loss = make_loss("bce", (), torch.device(device))
    trainer = Trainer(cache, model, LearningRate(LR), loss, BATCH, record=record)
    losses, predictions, counters = [], [], CacheCounters()
    prefetcher = Prefetcher(
        cache.prepare(iter(stream)), prefetch_depth, cache.trained, lambda index: evaluate and index in EVALUATE_AFTER
    )
    try:
        for batch in prefetcher:
            losses.append(trainer.step(batch).item())
            counters += batch.counters
            if evaluate and batch.tensors.index in EVALUATE_AFTER:
                predictions.append(trainer.evaluate(Samples(stream[-2]), batch_size=7)[1])
    finally:
        prefetcher.close()
    tables = [t.cpu() for t in group.read(np.arange(ALL_ROWS)).split(TABLE_ROWS)]
    cache.flush()
    records = group.records(np.arange(group.book.num_addresses))
    dense = {name: value.cpu().clone() for name, value in model.state_dict().items()}
    return Result(losses, tables, dense, records, counters, predictions)


resident = functools.cache(train)


@pytest.mark.parametrize("prefetch_depth", [0, 1, 4])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_a_cached_run_has_the_bits_of_a_resident_one(optimizer, lookups_per_bag, policy, prefetch_depth):
    cached = train(optimizer, lookups_per_bag, 170, policy=policy, prefetch_depth=prefetch_depth)
    cached.assert_rows_travelled()
    uncached = resident(optimizer, lookups_per_bag)
    assert uncached.counters.evicted_rows == 0
    cached.assert_same_bits(uncached)


@pytest.mark.parametrize("prefetch_depth", [0, 3])
@pytest.mark.parametrize("policy", ["lru", "lookahead", "oracle"])
def test_a_working_set_beyond_the_quota_trains_in_temporary_slots(policy, prefetch_depth):
    cached = train("adagrad", 3, quota_slots=30, num_slots=400, policy=policy, prefetch_depth=prefetch_depth)
    assert max(len(np.unique(batch.rows)) for batch in batches(3)) > 30
    cached.assert_rows_travelled()
    cached.assert_same_bits(resident("adagrad", 3))


@pytest.mark.parametrize("prefetch_depth", [0, 2])
def test_evaluation_leaves_training_untouched(prefetch_depth):
    plain = train("adam", 3, 170, prefetch_depth=prefetch_depth)
    evaluated = train("adam", 3, 170, prefetch_depth=prefetch_depth, evaluate=True)
    evaluated.assert_rows_travelled()
    evaluated.assert_same_bits(plain)
    assert evaluated.counters == plain.counters
    uncached = resident("adam", 3, evaluate=True)
    assert len(evaluated.predictions) == len(EVALUATE_AFTER)
    for ours, theirs in zip(evaluated.predictions, uncached.predictions, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize("interaction", ["dot", "cat"])
@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_a_cached_run_equals_plain_torch(optimizer, lookups_per_bag, interaction):
    cached = train(optimizer, lookups_per_bag, 170, policy="lrfu", prefetch_depth=2, interaction=interaction)
    cached.assert_rows_travelled()
    losses, tables, dense = plain(optimizer, lookups_per_bag, STEPS, interaction)
    assert losses == cached.losses
    assert all(torch.equal(a, b) for a, b in zip(tables, cached.tables, strict=True))
    assert all(torch.equal(dense[name], cached.dense[name]) for name in dense)


@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_embedding_bag_differs_by_the_order_of_summation_only(optimizer, lookups_per_bag):
    cached = train(optimizer, lookups_per_bag, 170)
    losses, _, _ = plain(optimizer, lookups_per_bag, 20, ordered=False)
    torch.testing.assert_close(torch.tensor(cached.losses[:20]), torch.tensor(losses), rtol=1e-6, atol=1e-6)


def plain(optimizer: str, lookups_per_bag: int, num_steps: int, interaction: str = "dot", ordered: bool = True):
    """`train_plain` from the initial parameters of `train`."""
    fresh = one_group(TABLE_ROWS, RecordLayout(DIM, "sgd"), 1, seed=3).groups[0]
    tables = [table.clone() for table in fresh.read(np.arange(ALL_ROWS)).split(TABLE_ROWS)]
    dense = Dlrm(plain_features(NUM_TABLES, DIM), (DENSE, 16, DIM), (16, 1), interaction, seed=3).state_dict()
    return train_plain(list(batches(lookups_per_bag))[:num_steps], tables, dense, optimizer, LR, interaction, ordered)
