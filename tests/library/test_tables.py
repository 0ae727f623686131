"""Tables as a state and back, and arguments that do not fit."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.ids import host_batch
from cachedlrm.library.tables import CachedTables, TableState
from cachedlrm.model.row_optimizers import RowStep

ROWS, DIM = (7, 5), 2


def make(**options) -> CachedTables:
    arguments = {
        "optimizer": "adagrad",
        "cache_ratio": None,
        "cache_rows": 4,
        "policy": "lru",
        "lookahead": 2,
        "prefetch_depth": 0,
        "weights": None,
        "seed": 3,
        "device": torch.device("cpu"),
        "host_bytes": None,
    }
    return CachedTables(ROWS, DIM, **{**arguments, **options})


def train(tables: CachedTables) -> None:
    batches = [host_batch(torch.tensor([[i % 7, i % 5]]), None, ROWS, "batch") for i in range(9)]
    for prepared in tables.cache.prepare(batches):
        (update,) = tables.cache.begin(prepared)
        update.step(torch.ones(2, DIM), RowStep(0.1, prepared.tensors.index + 1))
        tables.cache.finish(prepared, [update])


def test_a_state_has_the_rows_that_were_touched_and_restores_all():
    tables, other = make(), make(seed=4)
    assert len(tables.state().rows) == 0
    train(tables)
    state = tables.state()
    assert sorted(state.rows.tolist()) == list(range(12))
    other.load(state, tables.identity())
    assert other.identity() == tables.identity()
    for table in range(2):
        assert torch.equal(other.weight(table, None), tables.weight(table, None))
    again = other.state()
    order, expected = again.rows.argsort(), state.rows.argsort()
    assert torch.equal(again.records[order], state.records[expected])


def test_given_weights_are_all_in_the_state():
    weights = [torch.rand(rows, DIM) for rows in ROWS]
    tables = make(weights=weights)
    assert tables.identity()["seed"] is None
    assert torch.equal(tables.state().records[:, :DIM], torch.cat(weights))
    assert torch.equal(tables.weight(1, torch.tensor([4, 0])), weights[1][[4, 0]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "lamb"}, "choose sgd, adagrad"),
        ({"policy": "static"}, "choose lru"),
        ({"cache_ratio": 0.5}, "either cache_ratio or cache_rows"),
        ({"cache_ratio": 1.5, "cache_rows": None}, "above 0 and at most 1"),
        ({"prefetch_depth": -1}, "the least is 0"),
        ({"weights": [torch.zeros(7, DIM)]}, "one .* for each table"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, words):
    with pytest.raises(UserError, match=words):
        make(**options)


def test_what_does_not_fit_or_exist_is_named():
    tables = make(cache_rows=1, host_bytes=1)
    with pytest.raises(UserError, match="looks up 2 rows and the cache holds 1"):
        tables.check_fits(host_batch(torch.tensor([[0, 0]]), None, ROWS, "batch 0"), "batch 0")
    with pytest.raises(UserError, match="there is no table 2"):
        tables.weight(2, None)
    with pytest.raises(UserError, match=r"outside 0\.\.4"):
        tables.weight(1, torch.tensor([5]))
    rows, records = torch.tensor([1, 1]), torch.zeros(2, tables.layout.width)
    with pytest.raises(UserError, match="not distinct"):
        tables.load(TableState(rows, records), tables.identity())
    assert np.isfinite(tables.weight(0, None).numpy()).all()
