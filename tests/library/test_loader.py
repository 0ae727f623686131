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


def read(loader: Loader):
    with loader.generators():
        return loader.read()


def seed(number: int) -> None:
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def test_neither_sees_the_others_draws():
    seed(1)
    alone = [draws() for _ in range(3)]
    seed(1)
    loader = Loader(drawing(5), 0)
    first = [read(loader), read(loader)]
    beside = [draws()]
    first.append(read(loader))
    beside += [draws(), draws()]
    assert beside == alone
    seed(1)
    again = Loader(drawing(5), 0)
    assert [read(again) for _ in range(3)] == first
    assert not set(first) & set(alone)


def test_the_seed_and_the_number_of_the_loop_decide():
    def first(number: int, loop: int) -> tuple[float, float, float]:
        torch.manual_seed(number)
        return read(Loader(drawing(1), loop))

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
    read(loader)
    with pytest.raises(OSError, match="gone"):
        read(loader)
    assert draws() == expected


def test_a_loop_draws_the_same_whether_the_loader_reads_or_not():
    """numpy keeps the second of two normal numbers."""

    def numbers(reads: bool) -> list[float]:
        seed(3)
        loader, drawn = Loader(drawing(9), 0), []
        for _ in range(4):
            with loader.generators():
                if reads:
                    loader.read()
                    np.random.randn()
            drawn.append(np.random.randn())
        return drawn

    assert numbers(True) == numbers(False)


def test_an_interrupt_as_generators_are_exchanged_leaves_the_users(monkeypatch):
    seed(1)
    expected = draws()
    seed(1)
    loader, of_user = Loader(drawing(5), 0), np.random.get_bit_generator()

    def breaks_off(state, setstate=random.setstate):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(random, "setstate", breaks_off)
    with pytest.raises(KeyboardInterrupt):
        read(loader)
    assert np.random.get_bit_generator() is of_user
    assert draws() == expected
