"""A group of tables: its rows pooled for training and for evaluation are the same vectors, wherever the rows are."""

import numpy as np
import pytest
import torch

from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.table_group import CacheSettings, GroupSlots
from cachedlrm.data.batch import Batch
from cachedlrm.data.lookups import Router, TablePart
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.store.init import ArrayInit
from cachedlrm.store.packing import Packing, numbers_of
from cachedlrm.store.records import GroupShape, RecordLayout
from support.models import one_group

ROWS, DIM = (9, 4), 3


def batch_of(*rows: int) -> Batch:
    """One sample of bags of two and, in the second table, of the others."""
    offsets = np.array([0, 2, len(rows)])
    return Batch(np.empty((1, 0), np.float32), np.array(rows), offsets, np.zeros(1, np.float32))


@pytest.mark.parametrize("kept", [{}, {"row_dtype": "bf16"}, {"row_dtype": "fp16", "state_dtype": "bf16"}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_for_evaluation_and_for_training_alike(weighted, kept):
    layout = RecordLayout(DIM, "adagrad", weighted, **kept)
    cache = one_group(ROWS, layout, 4, settings=CacheSettings("lru", 0, 0, 2))
    (group,) = cache.groups
    stream = [batch_of(1, 5, 9), batch_of(2, 2, 12, 9), batch_of(7, 1, 10)]
    for batch in stream:
        (before,) = cache.pooled(batch)
        (prepared,) = cache.prepare([batch], cache.trained._newest + 1)
        (update,) = cache.begin(prepared)
        torch.testing.assert_close(before, update.pooled)
        update.step(torch.ones(2, DIM), RowStep(0.1, prepared.tensors.index + 1))
        cache.finish(prepared, [update])
        assert not torch.equal(cache.pooled(batch)[0], before)
        assert torch.equal(cache.pooled(batch)[0], cache.pooled(batch)[0])
    assert group.store.used_rows < group.book.num_addresses  # some only on the device


@pytest.mark.parametrize("row_dtype", ["bf16", "fp16"])
def test_a_step_is_made_in_32_bits_and_rounded_once_by_its_number(row_dtype):
    layout = RecordLayout(DIM, "sgd", row_dtype=row_dtype)
    cache, rows = one_group(ROWS, layout, 4, settings=CacheSettings(prefetch_depth=0), seed=6), np.array([1, 5, 12, 9])
    (group,) = cache.groups
    for index, step in ((0, 1), (1, 70)):
        before = group.read(rows)
        (prepared,) = cache.prepare([batch_of(*rows)], index)
        (update,) = cache.begin(prepared)
        assert torch.equal(update.records, before)
        update.step(torch.ones(2, DIM), RowStep(1e-5, step))
        assert torch.equal(update.records, before - np.float32(1e-5))
        cache.finish(prepared, [update])
        kept = np.empty((4, layout.width), np.float32)
        Packing(layout, 6).pack(update.records.numpy(), rows, step, kept)
        assert torch.equal(group.read(rows), torch.from_numpy(numbers_of(layout, kept)))
        assert not torch.equal(group.read(rows), before - np.float32(1e-5))


def test_groups_have_noise_of_their_own():
    layouts = [RecordLayout(DIM, "sgd", row_dtype="bf16"), RecordLayout(DIM + 1, "sgd", row_dtype="bf16")]
    init = ArrayInit([[np.full((9, DIM + 1), 0.1, np.float32)]])
    cache = EmbeddingCache(
        Router((9, 9), [[TablePart(0, 9)], [TablePart(1, 9)]]),
        groups=[GroupShape((9,), layout) for layout in layouts],
        slots=[GroupSlots(4, 4)] * 2,
        store_rows=[9, 9],
        inits=[ArrayInit([[np.full((9, DIM), 0.1, np.float32)]]), init],
        settings=CacheSettings(),
        device=torch.device("cpu"),
    )
    first, second = (group.read(np.arange(9))[:, :DIM] for group in cache.groups)
    assert first.unique().tolist() == second.unique().tolist()  # the neighbours of 0.1
    assert not torch.equal(first, second)


def test_an_empty_bag_is_zero():
    cache = one_group(ROWS, RecordLayout(DIM, "sgd"), 4)
    (group,) = cache.groups
    (pooled,) = cache.pooled(Batch(np.empty((1, 0), np.float32), np.array([3]), np.array([0, 0, 1]), np.zeros(1)))
    assert not pooled[0].any()
    assert torch.equal(pooled[1:], group.read(np.array([3])))


def test_bytes_by_purpose():
    cache = one_group(ROWS, RecordLayout(DIM, "adam"), 4, 6)
    assert cache.groups[0].device_bytes == {"slab": 6 * 9 * 4, "staging": 0, "working_set": 0}
