"""From rows to a working set, against numpy."""

import numpy as np
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
        assert (got.bags_by_position == bag_of[order]).all()
        assert np.diff(got.position_offsets).tolist() == np.bincount(got.positions, minlength=len(unique)).tolist()
        before = [last_seen.get(row) for row in unique]
        assert got.previous.tolist() == [NEVER if b is None else b[0] << 32 | b[1] for b in before]
        last_seen.update({row: (index, position) for position, row in enumerate(unique)})
    assert book.rows().tolist() == list(address_of)
    every = np.arange(20)
    assert book.addresses(every).tolist() == [address_of.get(row, NEVER) for row in range(20)]
    assert book.num_addresses == len(address_of)
