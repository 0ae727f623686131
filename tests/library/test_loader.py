"""A loader draws from generators of its own."""

import random

import numpy as np
import pytest
import torch

from cachedlrm.library.loader import Loader


def draws() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def drawing(count: int):
    for _ in range(count):
        yield draws()


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def test_neither_sees_the_others_draws():
    seed(1)
    alone = [draws() for _ in range(3)]
    seed(1)
    loader = Loader(drawing(5), 0)
    first = [loader.read(), loader.read()]
    beside = [draws()]
    first.append(loader.read())
    beside += [draws(), draws()]
    assert beside == alone
    seed(1)
    again = Loader(drawing(5), 0)
    assert [again.read() for _ in range(3)] == first
    assert not set(first) & set(alone)


def test_the_seed_and_the_number_of_the_loop_decide():
    def first(number: int, loop: int) -> tuple[float, float, float]:
        torch.manual_seed(number)
        return Loader(drawing(1), loop).read()

    assert first(1, 0) == first(1, 0)
    assert len({first(1, 0), first(2, 0), first(1, 1)}) == 3


def test_states_are_put_back_after_an_error():
    def broken():
        yield 1
        draws()
        raise OSError("gone")

    seed(2)
    expected = draws()
    seed(2)
    loader = Loader(broken(), 0)
    loader.read()
    with pytest.raises(OSError, match="gone"):
        loader.read()
    assert draws() == expected
