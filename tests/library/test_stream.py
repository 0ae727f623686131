"""Batches come out in order, each with its rows; whatever is left over is left as it is."""

import threading

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.engine import Engine
from cachedlrm.library.ids import bag_ids
from cachedlrm.library.lookups import JoinedBatch, join
from cachedlrm.library.stream import Stream
from support.engines import engine_of


def batch_of(row: int) -> JoinedBatch:
    return join([engine_of((12,))[1](bag_ids(torch.tensor([[row]]), None, 1))])


def stream_of(depth: int = 2, pause_every: int = 0, **changes) -> tuple[Engine, Stream]:
    engine, _ = engine_of((12,), optimizer="sgd", cache_rows=5, prefetch_depth=depth, **changes)
    stream = Stream(engine.cache, engine.check_fits, first_batch=0, depth=depth, pause_every=pause_every)
    return engine, stream


@pytest.mark.parametrize("depth", [0, 2])
def test_batches_in_order_with_their_rows(depth):
    engine, stream = stream_of(depth)
    cache, rows = engine.cache, [(5 * number) % 12 for number in range(20)]
    assert stream.ahead == depth
    for row in rows:
        stream.feed(batch_of(row))
    stream.feed(None)
    index = 0
    while (prepared := stream.take()) is not None:
        assert prepared.tensors.index == index
        index += 1
        assert stream.next_batch == index
        (update,) = cache.begin(prepared)
        update.records += 1.0
        cache.finish(prepared, [update])
    assert index == 20
    assert stream.at_rest
    initial = np.empty((12, 2), np.float32)
    engine.inits[0].fill(np.arange(12), initial)
    found = cache.groups[0].read(np.arange(12)).numpy()
    uses = np.bincount(rows, minlength=12)
    np.testing.assert_allclose(found - initial, np.repeat(uses[:, None], 2, axis=1), rtol=1e-6)


def test_pauses_are_moments_of_rest():
    engine, stream = stream_of(pause_every=3)
    for row in range(9):
        stream.feed(batch_of(row))
    stream.feed(None)
    rests = []
    while (prepared := stream.take()) is not None:
        rests += [prepared.tensors.index] if stream.at_rest else []
        engine.cache.trained.mark(prepared.tensors.index)
    assert rests == [2, 5, 8]


def test_an_error_comes_after_the_batches_before_it():
    engine, stream = stream_of()
    for item in (batch_of(1), batch_of(2), ZeroDivisionError()):
        stream.feed(item)
    for _ in range(2):
        engine.cache.trained.mark(stream.take().tensors.index)
    with pytest.raises(ZeroDivisionError):
        stream.take()


def test_a_batch_that_does_not_fit_is_an_error_in_its_place_in_the_words_of_arguments():
    engine, stream = stream_of(host_budget=16)  # two records
    for row in range(3):
        stream.feed(batch_of(row))
    stream.feed(None)
    for _ in range(2):
        engine.cache.trained.mark(stream.take().tensors.index)
    with pytest.raises(UserError, match=r"batch 2: 3 rows of 8 bytes were touched .* raise host_bytes or host_budget"):
        stream.take()


@pytest.mark.parametrize("depth", [0, 2])
def test_the_end_leaves_rows_as_they_are(depth):
    engine, stream = stream_of(depth)
    before = engine.cache.groups[0].read(np.arange(12)).clone()
    for row in range(10):
        stream.feed(batch_of(row))
    engine.cache.trained.mark(stream.take().tensors.index)
    stream.end()
    assert torch.equal(engine.cache.groups[0].read(np.arange(12)), before)
    assert stream.next_batch <= 10


def test_a_thread_that_waits_for_a_batch_ends():
    before = threading.active_count()
    _, stream = stream_of()
    assert threading.active_count() == before
    stream.feed(batch_of(1))
    assert threading.active_count() == before + 1
    stream.abort()
    assert threading.active_count() == before
