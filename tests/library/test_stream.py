"""A model's own batches come out in order, each with its rows; whatever is left over is left as it is."""

import numpy as np
import pytest
import torch

from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.library.ids import host_batch
from cachedlrm.library.stream import Lookup, Stream
from cachedlrm.store.records import RecordLayout
from support.models import one_group

ROWS = (12,)


def stream_of(batches, depth=2, pause_every=0):
    cache = one_group(ROWS, RecordLayout(2, "sgd"), 5, settings=CacheSettings(prefetch_depth=depth))

    def look_up(row: int, number: int) -> Lookup:
        ids = torch.tensor([[row]])
        return Lookup(ids, None, host_batch(ids, None, ROWS, f"batch {number}"))

    stream = Stream(cache, iter(batches), look_up, first_batch=0, depth=depth, pause_every=pause_every)
    return cache, stream


@pytest.mark.parametrize("depth", [0, 2])
def test_batches_in_order_with_their_rows(depth):
    cache, stream = stream_of([(5 * row) % 12 for row in range(20)], depth)
    for index, (batch, lookup, prepared) in enumerate(stream):
        assert batch == lookup.host.rows[0] == (5 * index) % 12
        assert prepared.tensors.index == index
        assert stream.next_batch == index + 1
        (update,) = cache.begin(prepared)
        update.records += 1.0
        cache.finish(prepared, [update])
    assert stream.at_rest
    initial = np.empty((12, 2), np.float32)
    cache.groups[0].init.fill(np.arange(12), initial)
    found = cache.groups[0].read(np.arange(12)).numpy()
    uses = np.bincount([(5 * row) % 12 for row in range(20)], minlength=12)
    np.testing.assert_allclose(found - initial, np.repeat(uses[:, None], 2, axis=1), rtol=1e-6)


def test_pauses_are_moments_of_rest():
    cache, stream = stream_of(range(9), pause_every=3)
    rests = []
    for batch, _, prepared in stream:
        rests += [batch] if stream.at_rest else []
        cache.trained.mark(prepared.tensors.index)
    assert rests == [2, 5, 8]


def test_an_error_comes_after_the_batches_before_it():
    def broken():
        yield from (1, 2)
        raise ZeroDivisionError

    cache, stream = stream_of(broken())
    seen = []

    def consume() -> None:
        for batch, _, prepared in stream:
            seen.append(batch)
            cache.trained.mark(prepared.tensors.index)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert seen == [1, 2]


def test_the_end_leaves_rows_as_they_are():
    cache, stream = stream_of(range(10))
    before = cache.groups[0].read(np.arange(12)).clone()
    _, _, prepared = next(iter(stream))
    cache.trained.mark(prepared.tensors.index)
    stream.end()
    assert torch.equal(cache.groups[0].read(np.arange(12)), before)
    assert stream.next_batch <= 10
