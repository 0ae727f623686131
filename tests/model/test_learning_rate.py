"""The schedule, by hand."""

from cachedlrm.model.learning_rate import LearningRate


def test_without_a_schedule_the_rate_stays():
    assert [LearningRate(0.5)(step) for step in (1, 2, 1000)] == [0.5, 0.5, 0.5]


def test_warm_up_then_the_base():
    rate = LearningRate(1.0, num_warmup_steps=4)
    assert [rate(step) for step in range(1, 7)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_with_a_decay_the_plateau_is_the_last_of_the_warm_up():
    rate = LearningRate(1.0, num_warmup_steps=4, decay_start_step=6, num_decay_steps=4)
    squares = [1.0, 0.75**2, 0.5**2, 0.25**2]
    assert [rate(step) for step in range(3, 12)] == [0.75, 0.75, 0.75, *squares, 0.25**2, 0.25**2]


def test_a_warm_up_of_one_step_is_none():
    rate = LearningRate(0.5, num_warmup_steps=1, decay_start_step=3, num_decay_steps=2)
    assert [rate(step) for step in range(1, 6)] == [0.5, 0.5, 0.5, 0.125, 0.125]


def test_a_decaying_rate_stays_above_zero():
    assert LearningRate(1e-4, decay_start_step=1, num_decay_steps=1000)(2000) == 1e-7
