"""Steps, batches and epochs by hand: ten samples in mini-batches of three."""

from collections.abc import Iterable
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch
from cachedlrm.options.schedule import Schedule


class Numbers:
    """Samples whose label is their number; of one table and one id."""

    table_rows, num_dense, max_lookups_per_bag, num_samples, pieces = (1,), 0, (1,), 10, None

    def read(self, start: int, stop: int) -> Batch:
        labels = np.arange(start, stop, dtype=np.float32)
        return Batch(
            np.zeros((stop - start, 0), np.float32), np.zeros(stop - start, int), np.arange(stop - start + 1), labels
        )


def schedule(
    steps=None, nepochs=2, num_batches=0, at_once=1, test_freq=None, checkpoint_every=None, shuffle=False
) -> Schedule:
    return Schedule(
        SimpleNamespace(
            batches=SimpleNamespace(
                mini_batch_size=3,
                num_batches=num_batches,
                nepochs=nepochs,
                test_freq=test_freq,
                numpy_rand_seed=1,
            ),
            data=SimpleNamespace(shuffle=shuffle),
            optimisation=SimpleNamespace(mlperf_grad_accum_iter=at_once),
            run=SimpleNamespace(steps=steps, checkpoint_every=checkpoint_every),
        ),
        Numbers(),
    )


def samples(run: Schedule, first_batch: int = 0) -> list[list[float]]:
    return [batch.labels.tolist() for batch in run.batches(first_batch)]


def together(parts: Iterable[list[float]]) -> list[float]:
    return list(chain.from_iterable(parts))


EPOCH = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_epochs_repeat_and_their_last_batch_is_smaller():
    run = schedule()
    assert (run.steps_per_epoch, run.num_steps, run.num_batches) == (4, 8, 8)
    assert samples(run) == EPOCH * 2
    assert samples(run, 6) == EPOCH[2:]
    assert [run.epoch(step) for step in (0, 3, 4, 7)] == [0, 0, 1, 1]


def test_steps_and_num_batches_cut():
    assert samples(schedule(steps=5)) == [*EPOCH, EPOCH[0]]
    assert samples(schedule(num_batches=2)) == EPOCH[:2] * 2
    assert samples(schedule(steps=0)) == []


def test_accumulated_steps_come_together_but_not_over_the_end_of_an_epoch():
    run = schedule(steps=7, at_once=3)
    assert [run.steps(batch) for batch in range(run.num_batches)] == [(0, 3), (3, 4), (4, 7)]
    assert samples(run) == [[*range(9)], [9], [*range(9)]]


def test_a_shuffled_epoch_has_every_sample_in_an_order_of_its_own():
    run = schedule(nepochs=3, shuffle=True)
    epochs = [together(samples(run)[first : first + 4]) for first in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len(set(map(tuple, epochs))) == 3
    assert samples(run, 6) == samples(run)[6:]
    assert [run.read(batch).labels.tolist() for batch in (11, 0, 5)] == [samples(run)[batch] for batch in (11, 0, 5)]
    assert schedule(shuffle=True).shuffled_bytes > 0 == schedule().shuffled_bytes
    assert samples(schedule(num_batches=2, shuffle=True)) == [*samples(run)[:2], *samples(run)[4:6]]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("at_once", "num_batches"), [(1, 0), (3, 0), (1, 2)])
def test_the_lookups_of_some_batches_are_counted_by_reading_fewer(at_once, num_batches, shuffle):
    run = schedule(steps=11, at_once=at_once, num_batches=num_batches, shuffle=shuffle)
    fewer = 0
    for first in range(run.num_batches + 1):
        for end in range(first, run.num_batches + 1):
            wanted = sorted(together(samples(run)[first:end]))
            counted = run.same_lookups(first, end)
            assert sorted(together(run.read(batch).labels.tolist() * times for batch, times in counted)) == wanted
            fewer += len(counted) < end - first
    assert fewer or (shuffle and num_batches), "an epoch that is cut has other samples each time"


def test_when_it_evaluates_and_saves():
    run = schedule(steps=7, test_freq=3, checkpoint_every=2)
    assert [batch for batch in range(7) if run.evaluates_after(batch)] == [2, 5, 6]
    assert [batch for batch in range(7) if run.checkpoint_after(batch)] == [1, 3, 5, 6]
    assert not any(schedule(test_freq=-1).evaluates_after(batch) for batch in range(8))
    assert [batch for batch in range(8) if schedule().checkpoint_after(batch)] == [7]
    at_once = schedule(steps=7, at_once=3, test_freq=2)  # steps 0 to 2, 3, 4 to 6
    assert [batch for batch in range(3) if at_once.evaluates_after(batch)] == [0, 1, 2]


def test_more_batches_than_31_bits_are_refused():
    assert schedule(steps=2**31 - 1).num_batches == 2**31 - 1
    with pytest.raises(UserError, match=r"2,147,483,648 steps .* lower --steps"):
        schedule(steps=2**31)


def test_the_largest_working_set_of_the_run():
    def router(batch: Batch) -> tuple[SimpleNamespace, SimpleNamespace]:
        rows = batch.labels.astype(int)
        return SimpleNamespace(rows=rows), SimpleNamespace(rows=rows // 3)

    router.num_rows = (10, 4)
    shares: list[float] = []
    assert schedule().largest_working_sets(router, shares.append) == (3, 1)
    assert shares == [0.0, 0.25, 0.5, 0.75]
    assert schedule(steps=0).largest_working_sets(router, shares.append) == (0, 0)


def test_how_many_lookups_counting_reads_at_most():
    assert (schedule().lookups_per_batch, schedule().lookups_to_count) == (3, 12)  # of an epoch
    assert schedule(shuffle=True).lookups_to_count == 24
    assert schedule(steps=2).lookups_to_count == 6
    assert schedule(at_once=9).lookups_per_batch == 10


def test_the_largest_working_set_of_a_shuffled_run_is_that_of_all_epochs():
    def router(batch: Batch) -> tuple[SimpleNamespace]:
        return (SimpleNamespace(rows=batch.labels[batch.labels < 3].astype(int)),)

    router.num_rows = (10,)
    assert schedule(nepochs=1, shuffle=True).largest_working_sets(router, [].append) < (3,)
    assert schedule(nepochs=99, shuffle=True).largest_working_sets(router, [].append) == (3,)
