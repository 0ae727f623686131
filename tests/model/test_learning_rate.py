"""The schedule: by hand, and beside torch's."""

import itertools
import math

import pytest
import torch
from torch.optim import lr_scheduler

from cachedlrm.model.learning_rate import LearningRate


def test_without_a_schedule_the_rate_stays():
    assert [LearningRate(0.5)(step) for step in (1, 2, 1000)] == [0.5, 0.5, 0.5]
    assert [LearningRate(0.5, policy="constant")(step) for step in (1, 2, 1000)] == [0.5, 0.5, 0.5]


def test_warm_up_then_the_base():
    rate = LearningRate(1.0, num_warmup_steps=4)
    assert [rate(step) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    constant = LearningRate(1.0, num_warmup_steps=4, policy="constant")
    assert [constant(step) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_with_a_decay_the_plateau_is_the_last_of_the_warm_up():
    rate = LearningRate(1.0, num_warmup_steps=4, decay_start_step=6, num_decay_steps=4)
    squares = [1.0, 0.75**2, 0.5**2, 0.25**2]
    assert [rate(step) for step in range(3, 12)] == [0.75, 0.75, 0.75, *squares, 0.25**2, 0.25**2]


def test_a_warm_up_of_one_step_is_none():
    rate = LearningRate(0.5, num_warmup_steps=1, decay_start_step=3, num_decay_steps=2)
    assert [rate(step) for step in range(1, 6)] == [0.5, 0.5, 0.5, 0.125, 0.125]


def test_a_decaying_rate_stays_above_zero():
    assert LearningRate(1e-4, decay_start_step=1, num_decay_steps=1000)(2000) == 1e-7


def test_a_linear_decay_by_hand():
    rate = LearningRate(1.0, 4, 6, 4, "linear", 0.5)
    assert [rate(step) for step in range(1, 13)] == [
        *(0.25, 0.5, 0.75, 1.0, 1.0),
        *(1.0, 0.875, 0.75, 0.625),
        *(0.5, 0.5, 0.5),
    ]


def test_a_decay_begins_where_the_warm_up_ends():
    rate = LearningRate(1.0, 4, 4, 2, "linear")
    assert [rate(step) for step in range(3, 8)] == [0.75, 1.0, 0.5, 0.0, 0.0]


def test_powers():
    steps = range(1, 8)
    linear, power_one = LearningRate(0.3, 0, 1, 5, "linear", 0.1), LearningRate(0.3, 0, 1, 5, "polynomial", 0.1, 1.0)
    assert [linear(step) for step in steps] == [power_one(step) for step in steps]
    squared = LearningRate(1.0, 0, 1, 4, "polynomial")
    assert [squared(step) for step in (1, 2, 3, 4, 5)] == [1.0, 0.75**2, 0.5**2, 0.25**2, 0.0]


TORCH = {
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=20),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.05),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20, power=1.7),
}


@pytest.mark.parametrize("policy", TORCH)
def test_decays_are_those_of_torch(policy):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = TORCH[policy](optimizer)
    end = 0.0 if policy == "polynomial" else 0.05  # torch's has none
    rate = LearningRate(0.5, 0, 1, 20, policy, end, 1.7)
    for step in range(1, 21):
        optimizer.step()
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-15)
        scheduler.step()
    assert [rate(step) for step in (21, 22, 1000)] == [end] * 3


@pytest.mark.parametrize("policy", ["linear", "cosine", "polynomial"])
def test_a_decay_falls_from_the_base_to_the_end(policy):
    rate = LearningRate(0.7, 5, 9, 30, policy, 0.013)
    rates = [rate(step) for step in range(1, 60)]
    assert rates[4:9] == [0.7] * 5
    assert rates[38:] == [0.013] * (59 - 38)
    assert all(math.isfinite(rate) and 0 < rate <= 0.7 for rate in rates)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[8:39]))
