"""Which samples each step trains, and what is due after it, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch
from cachedlrm.options.schedule import Schedule
from support.options import resolved
from support.runs import MODEL


class Numbered:
    """Samples whose dense feature is their number."""

    table_rows, num_dense, max_lookups_per_bag = (400, 30, 900, 5), 1, 1

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def read(self, start: int, stop: int) -> Batch:
        dense = np.arange(start, stop, dtype=np.float32)[:, None]
        return Batch(dense, np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(stop - start, np.float32))


def schedule(num_samples: int, *arguments: str, test_freq: int = -1) -> Schedule:
    options = resolved("--data=zipf:samples=200", *MODEL, "--mini-batch-size=10", *arguments)
    return Schedule(
        dataclasses.replace(options, batches=dataclasses.replace(options.batches, test_freq=test_freq)),
        Numbered(num_samples),
    )


def samples(plan: Schedule) -> list[tuple[int, int]]:
    """First sample and number of samples of each batch."""
    return [(int(batch.dense[0, 0]), batch.num_samples) for batch in plan.batches()]


def test_an_epoch_ends_in_a_smaller_batch_and_steps_go_round():
    plan = schedule(25, "--steps=5")
    assert (plan.num_steps, plan.num_batches, plan.steps_per_epoch) == (5, 5, 3)
    assert samples(plan) == [(0, 10), (10, 10), (20, 5), (0, 10), (10, 10)]
    assert [plan.epoch(step) for step in range(5)] == [0, 0, 0, 1, 1]
    assert [batch.num_samples for batch in plan.one_epoch()] == [10, 10, 5]
    assert samples(schedule(25, "--nepochs=2", "--num-batches=2")) == [(0, 10), (10, 10)] * 2


def test_accumulated_mini_batches_are_one_batch():
    plan = schedule(45, "--mlperf-grad-accum-iter=2", "--steps=8")
    assert (plan.num_batches, plan.batches_per_epoch) == (5, 3)
    assert [plan.steps(batch) for batch in range(5)] == [(0, 2), (2, 4), (4, 5), (5, 7), (7, 8)]
    assert samples(plan) == [(0, 20), (20, 20), (40, 5), (0, 20), (20, 10)]
    assert [plan.repeats(number, 0, 5) for number in range(3)] == [2, 2, 1]
    assert [plan.repeats(number, 2, 5) for number in range(3)] == [1, 1, 1]


def test_what_is_due_after_a_batch():
    plan = schedule(50, "--nepochs=2", "--checkpoint-every=3", test_freq=4)
    assert [batch for batch in range(10) if plan.evaluates_after(batch)] == [3, 7, 9]
    assert [batch for batch in range(10) if plan.checkpoint_after(batch)] == [2, 5, 8, 9]
    never = schedule(50, "--nepochs=2")
    assert not any(map(never.evaluates_after, range(10)))
    assert [batch for batch in range(10) if never.checkpoint_after(batch)] == [9]


def test_more_batches_than_can_be_numbered_are_refused():
    with pytest.raises(UserError, match=r"longer than 2,147,483,647 batches; lower --steps"):
        schedule(50, f"--steps={2**31}")
