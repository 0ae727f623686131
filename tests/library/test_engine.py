"""The cache behind a collection: its sizes, its first rows, its words."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.engine import in_words_of_arguments, size
from cachedlrm.library.ids import bag_ids
from cachedlrm.library.lookups import join
from support.engines import engine_of


def test_given_tables_begin_as_they_are_and_others_as_without_them():
    given = torch.rand(4, 2)
    engine, _ = engine_of(weights={1: given})
    drawn, _ = engine_of()
    assert torch.equal(engine.weight(1, None), given)
    assert torch.equal(engine.weight(0, None), drawn.weight(0, None))
    given.zero_()
    assert engine.weight(1, None).any()
    records = np.empty((2, 4), np.float32)
    engine.inits[0].fill(np.array([7, 2]), records)
    assert torch.equal(torch.from_numpy(records[:1, :2]), engine.weight(1, torch.tensor([1])))
    assert not records[:, 2:].any()


def test_touched_rows_come_in_order_and_go_in_again():
    engine, routes = engine_of()
    for row in (5, 2, 5):
        batch = join([routes(bag_ids(torch.tensor([[row, 3]]), None, 2))])
        number = engine.cache.trained._newest + 1
        (prepared,) = engine.cache.prepare([batch], number)
        (update,) = engine.cache.begin(prepared)
        update.step(torch.ones(2, 2), engine.row_step(0.1, 1))
        engine.cache.finish(prepared, [update])
    ((rows, records),) = engine.touched()
    assert rows.tolist() == [2, 5, 9]
    before, found = engine.weight(0, None), np.array(records(0, 3))
    assert found[:, 2:].tolist() == [[1, 1], [2, 2], [3, 3]]  # sums of squares
    engine.open()
    assert not torch.equal(engine.weight(0, None), before)
    engine.put(0, [(rows[:1], found[:1]), (rows[1:], found[1:])])
    assert torch.equal(engine.weight(0, None), before)


def test_a_store_on_disk_is_room_and_goes_with_its_owner(tmp_path):
    engine, _ = engine_of((3000,), store="lmdb", host_budget="100KB")
    folder = engine._folder
    assert folder is not None
    assert (folder / "data.mdb").exists()
    engine.close()
    assert not folder.exists()
    assert engine.is_closed
    for _ in range(2):  # what is in the user's folder is no state
        named, _ = engine_of((3000,), store="lmdb", host_budget="100KB", store_path=tmp_path)
        with pytest.raises(UserError, match="wait for it"):
            engine_of((3000,), store="lmdb", host_budget="100KB", store_path=tmp_path)
        named.close()
    assert (tmp_path / "data.mdb").exists()


def test_messages_name_arguments():
    message = str(in_words_of_arguments(UserError("raise --host-budget, or choose another --store-path")))
    assert message == "raise host_budget, or choose another store_path"
    with pytest.raises(UserError, match=r"n: .* is not a size"):
        size("2 elephants", "n")
    assert size("2KiB", "n") == size(2048, "n") == 2048
    with pytest.raises(UserError, match="device is cuda"):
        engine_of(device="cuda")
