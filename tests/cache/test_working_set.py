"""From rows to a working set, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.working_set import NEVER, AddressBook

batches = st.lists(st.lists(st.lists(st.integers(0, 19), max_size=4), max_size=8), max_size=12)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(batches)
def test_working_sets(stream):
    book = AddressBook(20)
    address_of: dict[int, int] = {}
    last_seen: dict[int, tuple[int, int]] = {}
    for index, bags in enumerate(stream):
        rows = np.array([row for bag in bags for row in bag], np.int64)
        offsets = np.cumsum([0, *(len(bag) for bag in bags)]).astype(np.int64)
        got = book.working_set(index, rows, offsets)
        unique = list(dict.fromkeys(rows.tolist()))  # in order of first appearance
        for row in unique:
            address_of.setdefault(row, len(address_of))
        assert got.index == index
        assert got.rows.tolist() == unique
        assert got.addresses.tolist() == [address_of[row] for row in unique]
        assert (got.rows[got.positions] == rows).all()
        bag_of = np.repeat(np.arange(len(bags)), np.diff(offsets))
        order = np.argsort(got.positions, kind="stable")
        assert got.lookups.tolist() == np.bincount(got.positions, minlength=len(unique)).tolist()
        assert got.first_lookups.tolist() == [rows.tolist().index(row) for row in unique]
        bags_by_position, position_offsets = got.transposed()
        assert (bags_by_position == bag_of[order]).all()
        assert np.diff(position_offsets).tolist() == np.bincount(got.positions, minlength=len(unique)).tolist()
        before = [last_seen.get(row) for row in unique]
        assert got.previous.tolist() == [NEVER if b is None else b[0] << 32 | b[1] for b in before]
        last_seen.update({row: (index, position) for position, row in enumerate(unique)})
    assert book.rows().tolist() == list(address_of)
    every = np.arange(20)
    assert book.addresses(every).tolist() == [address_of.get(row, NEVER) for row in range(20)]
    assert book.num_addresses == len(address_of)


def test_two_batches_by_hand():
    book = AddressBook(10)
    # Bags [3 5 3], [], [5], [7 3].
    first = book.working_set(4, np.array([3, 5, 3, 5, 7, 3]), np.array([0, 3, 3, 4, 6]))
    assert first.index == 4
    assert first.num_rows == 3
    assert first.rows.tolist() == [3, 5, 7]
    assert first.addresses.tolist() == [0, 1, 2]
    assert first.positions.tolist() == [0, 1, 0, 1, 2, 0]
    assert [part.tolist() for part in first.transposed()] == [[0, 0, 3, 0, 2, 3], [0, 3, 5, 6]]
    assert first.previous.tolist() == [NEVER, NEVER, NEVER]
    # Bags [], [9 7], [].
    second = book.working_set(6, np.array([9, 7]), np.array([0, 0, 2, 2]))
    assert second.rows.tolist() == [9, 7]
    assert second.addresses.tolist() == [3, 2]
    assert [part.tolist() for part in second.transposed()] == [[1, 1], [0, 1, 2]]
    assert second.previous.tolist() == [NEVER, 4 << 32 | 2]
    assert book.rows().tolist() == [3, 5, 7, 9]
    assert book.rows(2).tolist() == [3, 5]
    # The first batch's arrays are its own.
    assert first.addresses.tolist() == [0, 1, 2]


def test_a_book_that_keeps_no_previous_appearances():
    book = AddressBook(10, keeps_previous=False)
    for index in range(2):
        got = book.working_set(index, np.array([3, 5, 3, 9 - index]), np.array([0, 3, 4]))
        assert got.positions.tolist() == [0, 1, 0, 2]
        assert got.lookups.tolist() == [2, 1, 1]
        assert got.addresses.tolist() == [0, 1, 2 + index]
        assert got.previous is None


@pytest.mark.parametrize("bags", [0, 1, 5])
def test_a_batch_without_lookups(bags):
    book = AddressBook(10)
    book.working_set(0, np.array([3]), np.array([0, 1]))
    empty = book.working_set(1, np.empty(0, np.int64), np.zeros(bags + 1, np.int64))
    assert empty.num_rows == len(empty.rows) == len(empty.positions) == 0
    assert [part.tolist() for part in empty.transposed()] == [[], [0]]
    assert book.num_addresses == 1
    # It does not come between two uses of a row.
    assert book.working_set(2, np.array([3]), np.array([0, 1])).previous.tolist() == [0]


def test_large_batches_against_numpy():
    rng = np.random.default_rng(0)
    book = AddressBook(50_000)
    for index in range(3):
        sizes = rng.integers(0, 4, 3000)
        rows = rng.zipf(1.1, sizes.sum()) % 50_000
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        got = book.working_set(index, rows, offsets)
        unique, first = np.unique(rows, return_index=True)
        assert (got.rows == unique[np.argsort(first)]).all()
        assert (got.rows[got.positions] == rows).all()
        bags = np.repeat(np.arange(3000), sizes)
        # The transpose applied to one number a bag: the sum over each row's lookups.
        ends = np.cumsum(np.bincount(got.positions))
        bags_by_position, position_offsets = got.transposed()
        assert (position_offsets[1:] == ends).all()
        assert (np.diff(bags_by_position)[np.setdiff1d(np.arange(len(rows) - 1), ends - 1)] >= 0).all()
        sums = np.add.reduceat(bags_by_position.astype(np.int64), position_offsets[:-1])
        assert (sums == np.bincount(got.positions, weights=bags)).all()
        assert (book.rows()[book.addresses(rows)] == rows).all()
        assert got.positions.dtype == bags_by_position.dtype == position_offsets.dtype == np.int32


def test_more_unique_rows_than_sixteen_bits_count():
    rows = np.random.default_rng(1).permutation(70_000)
    got = AddressBook(70_000).working_set(0, np.concatenate([rows, rows]), np.arange(140_001))
    assert np.array_equal(got.rows, rows)
    assert np.array_equal(got.positions, np.concatenate([np.arange(70_000)] * 2))
    assert np.array_equal(got.transposed()[0], np.arange(140_000).reshape(2, -1).T.ravel())


def test_batches_come_in_order():
    book = AddressBook(10)
    book.working_set(3, np.array([1]), np.array([0, 1]))
    with pytest.raises(AssertionError, match="in order"):
        book.working_set(3, np.array([1]), np.array([0, 1]))
