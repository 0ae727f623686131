"""A group of tables: its rows pooled for training and for evaluation are the same vectors, wherever the rows are."""

import numpy as np
import pytest
import torch

from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.batch import Batch
from cachedlrm.data.lookups import Lookups
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.store.records import RecordLayout
from support.models import one_group

ROWS, DIM = (9, 4), 3


def batch_of(*rows: int) -> Batch:
    """One sample of bags of two and, in the second table, of the others."""
    offsets = np.array([0, 2, len(rows)])
    return Batch(np.empty((1, 0), np.float32), np.array(rows), offsets, np.zeros(1, np.float32))


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_for_evaluation_and_for_training_alike(weighted):
    cache = one_group(ROWS, RecordLayout(DIM, "adagrad", weighted), 4, settings=CacheSettings("lru", 0, 0, 2))
    (group,) = cache.groups
    stream = [batch_of(1, 5, 9), batch_of(2, 2, 12, 9), batch_of(7, 1, 10)]
    for batch in stream:
        before = group.pooled(Lookups(batch.rows, batch.offsets))
        (prepared,) = cache.prepare([batch], cache.trained._newest + 1)
        (update,) = cache.begin(prepared)
        torch.testing.assert_close(before, update.pooled)
        update.step(torch.ones(2, DIM), RowStep(0.1, prepared.tensors.index + 1))
        cache.finish(prepared, [update])
        again = Lookups(batch.rows, batch.offsets)
        assert not torch.equal(group.pooled(again), before)
        assert torch.equal(group.pooled(again), group.pooled(again))
    assert group.store.used_rows < group.book.num_addresses  # some only on the device


def test_an_empty_bag_is_zero():
    cache = one_group(ROWS, RecordLayout(DIM, "sgd"), 4)
    (group,) = cache.groups
    pooled = group.pooled(Lookups(np.array([3]), np.array([0, 0, 1])))
    assert not pooled[0].any()
    assert torch.equal(pooled[1:], group.read(np.array([3])))


def test_bytes_by_purpose():
    cache = one_group(ROWS, RecordLayout(DIM, "adam"), 4, 6)
    assert cache.groups[0].device_bytes == {"slab": 6 * 9 * 4, "staging": 0, "working_set": 0}
