"""The count of MIN's moves against Belady's rule followed row by row, and against every choice there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.minimum import MinimumMoves
from support.models import NUM_ROWS, fewest_moves, fewest_moves_of_all, working_sets

Stream = list[list[int]]


def moves(stream: Stream, quota: int) -> list[int]:
    """By batch."""
    minimum = MinimumMoves(quota)
    return [minimum.add(working_set) for working_set in working_sets(stream)]


@settings(deadline=None, derandomize=True, max_examples=300)
@given(stream=st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=9), quota=st.integers(1, 6))
def test_no_choice_of_residents_moves_fewer_rows(stream, quota):
    assert sum(moves(stream, quota)) == fewest_moves_of_all(stream, quota)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    stream=st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=14), min_size=1, max_size=40),
    quota=st.integers(1, 30),
)
def test_at_every_batch_it_is_the_minimum_of_the_stream_so_far(stream, quota):
    by_batch = moves(stream, quota)
    for end in (1, len(stream) // 2, len(stream)):
        assert sum(by_batch[:end]) == fewest_moves(stream[:end], quota)


@pytest.mark.parametrize("quota", [1, 4, 9, 17, 40])
def test_a_long_skewed_stream(quota):
    rng = np.random.default_rng(0)
    stream = [(rng.zipf(1.2, rng.integers(0, 10)) % NUM_ROWS).tolist() for _ in range(400)]
    assert sum(moves(stream, quota)) == fewest_moves(stream, quota)


def test_by_hand():
    # Two slots. 1 can wait through batch 1 or, from there on, 2 through batch 2, but batch 2 has a place for one only.
    assert moves([[1], [2], [3], [1], [2]], 2) == [1, 1, 1, 0, 1]
    # A working set beyond the quota leaves no place for anyone else.
    assert moves([[1], [2, 3, 4], [1], [3]], 2) == [1, 3, 1, 0]


def test_a_stream_that_begins_late():
    # A run that goes on from a checkpoint starts with an empty cache and numbers its batches on.
    minimum, first = MinimumMoves(3), 700
    whole = working_sets([[1, 2], [3], [1, 4], [2]])
    shifted = [type(ws)(**{**vars(ws), "index": ws.index + first, "previous": _shift(ws, first)}) for ws in whole]
    assert [minimum.add(working_set) for working_set in shifted] == moves([[1, 2], [3], [1, 4], [2]], 3)


def _shift(working_set, first: int) -> np.ndarray:
    previous = working_set.previous
    return np.where(previous < 0, previous, previous + (first << 32))


@pytest.mark.parametrize(("quota", "most"), [(5, 70), (20, 200), (NUM_ROWS, 4200)])
def test_it_keeps_only_batches_that_matter(quota, most):
    # Nine rows a batch of 39 in turn: with 20 slots no row waits for more than the few batches that it takes to fill.
    minimum = MinimumMoves(quota)
    for working_set in working_sets([list(range(number % 30, number % 30 + 9)) for number in range(2000)]):
        minimum.add(working_set)
    assert len(minimum._places) == len(minimum._counts) <= most
