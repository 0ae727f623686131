"""The prefetch thread: how far ahead it goes, where it pauses, how its errors arrive, and that it always ends."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.streams import StoppedError, TrainedBatches
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.batch import Batch
from cachedlrm.store.records import RecordLayout
from support.models import one_group

NUM_ROWS, DIM = 30, 3
DEPTHS = [0, 1, 2, 4]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def batch_of(rows: list[int]) -> Batch:
    empty = np.zeros((0, 1), np.float32)
    return Batch(empty, np.array(rows, np.int64), np.arange(len(rows) + 1), np.zeros(0, np.float32))


def never(index: int) -> bool:
    return False


class Preparation:
    """Stands in for the cache: numbers its batches, and notes how far it came.

    Args:
        count: batches.
        before: called with each index before its batch is made; may block or raise.
    """

    def __init__(self, count: int, before: Callable[[int], None] = lambda index: None) -> None:
        self.made: list[int] = []
        self._count = count
        self._before = before

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for index in range(self._count):
            self._before(index)
            self.made.append(index)
            yield SimpleNamespace(tensors=SimpleNamespace(index=index))


def until(condition: Callable[[], bool]) -> None:
    """Waits for something another thread does."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def index_of(batch: SimpleNamespace) -> int:
    return batch.tensors.index


def trained_batches() -> TrainedBatches:
    return TrainedBatches(torch.device("cpu"), history=2)


def close_in_time(prefetcher: Prefetcher) -> None:
    """Closes, and fails where close() would wait for ever."""
    closing = threading.Thread(target=prefetcher.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_batch_comes_once_and_in_order(depth, count):
    prefetcher = Prefetcher(iter(Preparation(count)), depth, trained_batches(), never)
    assert [index_of(batch) for batch in prefetcher] == list(range(count))
    close_in_time(prefetcher)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_it_goes_as_far_ahead_as_it_may_and_no_further(depth):
    preparation = Preparation(10)
    prefetcher = Prefetcher(iter(preparation), depth, trained_batches(), never)
    prefetcher.start()
    until(lambda: len(preparation.made) == depth)
    for batch in prefetcher:
        ahead = min(10, index_of(batch) + 1 + depth)
        until(lambda ahead=ahead: len(preparation.made) == ahead)
        time.sleep(0.005)
        assert len(preparation.made) == ahead
    close_in_time(prefetcher)


def test_without_depth_nothing_is_prepared_ahead_and_no_thread_runs():
    preparation, before = Preparation(5), threading.active_count()
    prefetcher = Prefetcher(iter(preparation), 0, trained_batches(), never)
    assert preparation.made == []
    for batch in prefetcher:
        assert preparation.made[-1] == index_of(batch)
        assert threading.active_count() == before
    close_in_time(prefetcher)


@pytest.mark.parametrize("pauses", [(0,), (2, 5), (2, 3), (9,), tuple(range(10))])
@pytest.mark.parametrize("depth", [1, 3])
def test_nothing_is_prepared_beyond_a_pause(depth, pauses):
    preparation = Preparation(10)
    prefetcher = Prefetcher(iter(preparation), depth, trained_batches(), lambda index: index in pauses)
    prefetcher.start()
    seen = []
    for batch in prefetcher:
        seen.append(index_of(batch))
        # Whatever was asked for, the next pause is not passed while it or an earlier batch is held.
        limit = min((pause for pause in pauses if pause >= index_of(batch)), default=9)
        time.sleep(0.005)
        assert preparation.made[-1] <= limit
        if index_of(batch) in pauses:
            assert preparation.made[-1] == index_of(batch)
    assert seen == list(range(10))
    close_in_time(prefetcher)


@pytest.mark.parametrize("window", [0, 3])
def test_residents_stay_the_same_during_a_pause(window):
    settings = CacheSettings("lookahead", window, prefetch_depth=4, staging_rows=2)
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 6, settings=settings)
    planner = cache.groups[0].planner
    stream = (batch_of([(3 * index + k) % 12 for k in range(3)]) for index in range(20))
    prefetcher = Prefetcher(cache.prepare(stream), 4, cache.trained, lambda index: index % 4 == 3)
    pauses = 0
    for batch in prefetcher:
        cache.finish(batch, cache.begin(batch))
        if batch.tensors.index % 4 == 3:
            first = [array.tolist() for array in planner.resident()]
            time.sleep(0.005)
            assert [array.tolist() for array in planner.resident()] == first
            pauses += 1
    close_in_time(prefetcher)
    assert pauses == 5


class BadSampleError(Exception):
    pass


@pytest.mark.parametrize("error", [BadSampleError, KeyboardInterrupt])
@pytest.mark.parametrize("place", [0, 1, 3, 6])
@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_surfaces_in_its_place(depth, place, error):
    def fail(index: int) -> None:
        if index == place:
            raise error

    prefetcher = Prefetcher(iter(Preparation(8, fail)), depth, trained_batches(), lambda index: index in (0, 2))
    seen = []

    def consume() -> None:
        for batch in prefetcher:
            seen.append(index_of(batch))  # noqa: PERF401 - what came before the error counts

    with pytest.raises(error):
        consume()
    assert seen == list(range(place))
    close_in_time(prefetcher)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_close_while_the_thread_has_gone_as_far_as_it_may(taken):
    preparation = Preparation(20)
    prefetcher = Prefetcher(iter(preparation), 2, trained_batches(), never)
    prefetcher.start()
    for _, _ in zip(range(taken), prefetcher, strict=False):
        pass
    until(lambda: len(preparation.made) >= taken + 2)
    time.sleep(0.005)
    close_in_time(prefetcher)
    made = len(preparation.made)
    time.sleep(0.005)
    assert len(preparation.made) == made <= taken + 3


def test_close_at_a_pause():
    preparation = Preparation(20)
    prefetcher = Prefetcher(iter(preparation), 4, trained_batches(), lambda index: index == 1)
    prefetcher.start()
    until(lambda: len(preparation.made) == 2)
    time.sleep(0.005)
    close_in_time(prefetcher)
    assert preparation.made == [0, 1]


def test_close_while_the_thread_waits_for_training():
    trained, waits = trained_batches(), threading.Event()

    def wait(index: int) -> None:
        if index == 1:
            waits.set()
            trained.wait(0)

    preparation = Preparation(20, wait)
    prefetcher = Prefetcher(iter(preparation), 4, trained, never)
    prefetcher.start()
    assert waits.wait(5)
    time.sleep(0.005)
    close_in_time(prefetcher)
    assert preparation.made == [0]


@pytest.mark.parametrize("pause", [False, True])
def test_close_while_the_thread_works(pause):
    works, go_on = threading.Event(), threading.Event()

    def work(index: int) -> None:
        if index == 1:
            works.set()
            assert go_on.wait(5)

    preparation = Preparation(20, work)
    prefetcher = Prefetcher(iter(preparation), 4, trained_batches(), lambda index: pause and index == 1)
    prefetcher.start()
    assert works.wait(5)
    threading.Timer(0.02, go_on.set).start()
    close_in_time(prefetcher)
    assert preparation.made == [0, 1]  # the batch in work is finished, no other is begun
    until(lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()))


@pytest.mark.parametrize("depth", DEPTHS)
def test_close_after_the_end_and_again(depth):
    prefetcher = Prefetcher(iter(Preparation(3)), depth, trained_batches(), lambda index: index == 2)
    assert len(list(prefetcher)) == 3
    close_in_time(prefetcher)
    close_in_time(prefetcher)


def test_close_drops_an_error_nobody_asked_for():
    failed = threading.Event()

    def fail(index: int) -> None:
        failed.set()
        raise BadSampleError

    prefetcher = Prefetcher(iter(Preparation(3, fail)), 2, trained_batches(), never)
    prefetcher.start()
    assert failed.wait(5)
    close_in_time(prefetcher)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_close_the_cache_wherever_it_waits(taken):
    # With two slots and one row a batch, the thread soon waits for training that never happens.
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 2)
    prefetcher = Prefetcher(cache.prepare(batch_of([i]) for i in range(20)), 4, cache.trained, lambda index: index == 4)
    for batch in prefetcher:
        if batch.tensors.index >= taken:
            break
        cache.finish(batch, cache.begin(batch))
    time.sleep(0.02)
    close_in_time(prefetcher)


def test_waiting_for_training():
    trained, went_on = trained_batches(), []
    trained.wait(-1)  # before the first batch
    trained.mark(3)
    trained.wait(3)
    trained.wait(0)  # long past, beyond the history
    waiting = threading.Thread(target=lambda: (trained.wait(5), went_on.append(True)))
    waiting.start()
    trained.mark(4)
    time.sleep(0.01)
    assert not went_on
    trained.mark(5)
    waiting.join(5)
    assert went_on
    trained.stop()
    for index in (9, 0, -1):
        with pytest.raises(StoppedError):
            trained.wait(index)


def test_nothing_is_prepared_before_it_starts():
    preparation = Preparation(3)
    prefetcher = Prefetcher(iter(preparation), 2, trained_batches(), never)
    time.sleep(0.02)
    assert preparation.made == []
    assert len(list(prefetcher)) == 3
    close_in_time(prefetcher)


@pytest.mark.parametrize("error", [None, OSError])
def test_after_the_end_nothing_is_waited_for(monkeypatch, error):
    def fails(index: int) -> None:
        if error is not None and index == 1:
            raise error

    prefetcher = Prefetcher(iter(Preparation(2, fails)), 1, trained_batches(), never)
    with suppress(OSError):
        list(prefetcher)
    monkeypatch.setattr(prefetcher, "_take", lambda: pytest.fail("waits for a thread that has ended"))
    assert list(prefetcher) == []
    close_in_time(prefetcher)
