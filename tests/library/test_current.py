"""The batch in training: vectors for autograd, the step, and what may not be lost."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.library.current import CurrentBatch
from cachedlrm.library.ids import bag_ids
from cachedlrm.library.lookups import JoinedBatch, Part, join
from cachedlrm.model.row_optimizers import RowStep
from support.engines import engine_of

IDS = torch.tensor([[1, 2], [1, 3]])


def part_of(ids: torch.Tensor) -> Part:
    return engine_of()[1](bag_ids(ids, None, 2))


def current(*ids: torch.Tensor) -> tuple[CurrentBatch, EmbeddingCache]:
    """A batch of parts, and its cache of tables of 6 and 4 rows."""
    engine, _ = engine_of(optimizer="sgd")
    batch = join([part_of(part) for part in ids])
    (prepared,) = engine.cache.prepare([batch])
    return CurrentBatch(engine.cache, batch, prepared), engine.cache


def rows(cache: EmbeddingCache, *numbers: int) -> torch.Tensor:
    return cache.groups[0].read(np.array(numbers))


def test_it_knows_its_parts():
    batch, _ = current(IDS, IDS.flip(0))
    assert batch.find(part_of(IDS.clone())) == 0
    assert batch.find(part_of(IDS.flip(0))) == 1
    assert batch.find(part_of(IDS[:1])) is None


def test_gradients_of_all_calls_move_the_rows():
    batch, cache = current(IDS)
    before = rows(cache, 1, 8, 1, 9).clone()
    assert torch.equal(batch.vectors(0, trains=True)[0], before)
    (2.0 * batch.vectors(0, trains=True)[0].sum() + batch.vectors(0, trains=True)[0][1].sum()).backward()
    batch.check_step()
    assert torch.equal(batch.row_gradients()[0][:, 0], torch.tensor([4.0, 3.0, 2.0]))  # row 1 is in two bags
    batch.move(RowStep(0.5, 1))
    batch.hand_back()
    expected = before[[0, 1, 3]] - 0.5 * torch.tensor([[4.0], [3.0], [2.0]])
    torch.testing.assert_close(rows(cache, 1, 8, 9), expected)


def test_rows_go_back_once_as_others_may_be_in_their_slots_after_it():
    batch, cache = current(IDS)
    batch.vectors(0, trains=True)[0].sum().backward()
    before = rows(cache, 1, 8, 9).clone()
    batch.move(RowStep(0.5, 1))
    assert torch.equal(rows(cache, 1, 8, 9), before)
    assert not cache.trained.includes(0)
    batch.hand_back()
    assert not torch.equal(rows(cache, 1, 8, 9), before)
    assert cache.trained.includes(0)
    cache.groups[0].slab.zero_()
    batch.hand_back()
    assert not cache.groups[0].slab.any()


def test_parts_make_one_step_and_a_part_without_a_gradient_adds_none():
    batch, cache = current(IDS, torch.tensor([[5, 0]]), torch.tensor([[1, 0]]))
    before = rows(cache, 1, 6, 5).clone()
    batch.vectors(0, trains=True)[0].sum().backward()
    batch.vectors(1, trains=True)
    with pytest.raises(UserError, match="after batch 1 of 3"):
        batch.check_step()
    batch.in_hand = 2
    (3.0 * batch.vectors(2, trains=True)[0].sum()).backward()
    batch.check_step()
    batch.move(RowStep(0.5, 1))
    batch.hand_back()
    torch.testing.assert_close(rows(cache, 1, 6, 5), before - 0.5 * torch.tensor([[5.0], [3.0], [0.0]]))


def test_a_part_that_was_read_is_prepared_for_the_step():
    batch, cache = current(IDS)
    batch.vectors(0, trains=True)[0].sum().backward()
    assert batch.wider() is None
    further = part_of(torch.tensor([[5, 2]]))
    number = batch.add(further, cache.pooled(join([further])))
    batch.vectors(number, trains=True)[0].sum().backward()
    before = rows(cache, 1, 5, 8).clone()
    wider = batch.wider()
    assert isinstance(wider, JoinedBatch)
    batch.leave()
    (prepared,) = cache.prepare([wider], first_batch=1)
    batch.prepare_again(wider, prepared)
    batch.check_step()
    batch.move(RowStep(0.5, 1))
    batch.hand_back()
    torch.testing.assert_close(rows(cache, 1, 5, 8), before - 0.5 * torch.tensor([[2.0], [1.0], [2.0]]))


def test_steps_out_of_order_are_named():
    batch, _ = current(IDS)
    with pytest.raises(UserError, match="before forward"):
        batch.check_step()
    batch.vectors(0, trains=True)
    with pytest.raises(UserError, match=r"loss.backward\(\)"):
        batch.check_step()


def test_only_what_awaits_no_gradient_may_be_left():
    batch, _ = current(IDS, IDS)
    batch.check_may_be_left("going on")
    batch.vectors(0, trains=False)
    batch.check_may_be_left("going on")
    batch.vectors(0, trains=True)[0].sum().backward()
    batch.vectors(1, trains=False)
    with pytest.raises(UserError, match="going on: the batch before was not trained"):
        batch.check_may_be_left("going on")
    batch.zero_grad()
    batch.check_may_be_left("going on")


def test_what_was_only_read_may_be_changed_in_place():
    batch, cache = current(IDS)
    before = rows(cache, 1, 8, 1, 9).clone()
    batch.vectors(0, trains=False)[0].zero_()
    assert torch.equal(batch.vectors(0, trains=True)[0], before)


def test_the_same_ids_in_other_bags_are_another_part():
    batch, _ = current(IDS)
    (lookups,) = part_of(IDS).lookups
    for ends, found in (([0, 1, 2, 3, 4], 0), ([0, 2, 2, 3, 4], None)):
        assert batch.find(Part((lookups._replace(offsets=np.array(ends)),), 2)) == found
