"""Things made ahead of their use come in order, with their errors, and end with their owner."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from cachedlrm.base.ahead import ahead


def numbers(count: int, made: list[int], fails: bool = False) -> Iterator[int]:
    for number in range(count):
        made.append(number)
        yield number
    if fails:
        raise ValueError("no more")


@pytest.mark.parametrize("depth", [0, 1, 3, 20])
def test_items_come_in_order(depth):
    made: list[int] = []
    assert list(ahead(numbers(10, made), depth)) == list(range(10))
    assert made == list(range(10))
    assert list(ahead(iter([]), depth)) == []


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_in_its_place(depth):
    got = []
    with pytest.raises(ValueError, match="no more"):
        got.extend(ahead(numbers(3, [], fails=True), depth))
    taken = ahead(numbers(3, [], fails=True), depth)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(taken)


def test_no_more_are_made_than_asked_for_and_leaving_ends_the_thread():
    made: list[int] = []
    before = threading.active_count()
    with closing(ahead(numbers(100, made), 3)) as taken:
        assert next(taken) == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert len(made) <= 5
