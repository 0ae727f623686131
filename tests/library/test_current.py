"""The batch in training: vectors for autograd, the step, and what may not be lost."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.library.current import CurrentBatch
from cachedlrm.library.ids import host_batch
from cachedlrm.library.stream import Lookup
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.store.records import RecordLayout
from support.models import one_group

ROWS = (6, 4)
IDS = torch.tensor([[1, 2], [1, 3]])


def current() -> tuple[CurrentBatch, torch.Tensor]:
    """A batch, and the rows that it looks up."""
    cache = one_group(ROWS, RecordLayout(2, "sgd"), 10, settings=CacheSettings(prefetch_depth=0))
    host = host_batch(IDS, None, ROWS, "batch 0")
    (prepared,) = cache.prepare([host])
    return CurrentBatch(cache, Lookup(IDS, None, host), prepared), cache.groups[0].read(np.array([1, 8, 1, 9]))


def test_it_knows_its_ids():
    batch, _ = current()
    assert batch.is_given(IDS, None)
    assert not batch.is_given(IDS.clone(), None)
    assert batch.looks_up(host_batch(IDS.clone(), None, ROWS, "again"))
    assert not batch.looks_up(host_batch(IDS.flip(0), None, ROWS, "others"))


def test_gradients_of_all_calls_move_the_rows():
    batch, rows = current()
    assert torch.equal(batch.pooled(trains=True), rows)
    (2.0 * batch.pooled(trains=True).sum() + batch.pooled(trains=True)[1].sum()).backward()
    batch.step(RowStep(0.5, 1))
    moved = batch._cache.groups[0].read(np.array([1, 8, 9]))
    expected = rows[[0, 1, 3]] - 0.5 * torch.tensor([[4.0], [3.0], [2.0]])  # row 1 is in two bags
    torch.testing.assert_close(moved, expected)


def test_steps_out_of_order_are_named():
    batch, _ = current()
    with pytest.raises(UserError, match="before forward"):
        batch.step(RowStep(0.5, 1))
    batch.pooled(trains=True)
    with pytest.raises(UserError, match=r"loss.backward\(\)"):
        batch.step(RowStep(0.5, 1))


def test_only_what_awaits_no_gradient_may_be_left():
    batch, _ = current()
    batch.check_may_be_left("going on")
    batch.pooled(trains=False)
    batch.check_may_be_left("going on")
    batch.pooled(trains=True).sum().backward()
    with pytest.raises(UserError, match="going on: the batch before was not trained"):
        batch.check_may_be_left("going on")
    batch.zero_grad()
    batch.check_may_be_left("going on")
