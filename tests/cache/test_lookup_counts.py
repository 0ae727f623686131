"""Lookups of each row, exact up to many."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.lookup_counts import MANY, add_lookups, lookups_left


def test_lookups_are_counted_up_to_many():
    counts = np.zeros(300, np.uint16)
    rows = np.random.default_rng(2).integers(0, 300, 5000)
    add_lookups(rows, counts, 1)
    assert counts.tolist() == np.bincount(rows, minlength=300).tolist()
    counts[:] = MANY - 2
    add_lookups(np.array([7, 7, 7, 8, 7]), counts, 1)
    assert (counts[7], counts[8], counts[9]) == (MANY, MANY - 1, MANY - 2)
    add_lookups(np.array([8]), counts, 3)
    assert counts[8] == MANY


@settings(deadline=None, derandomize=True, max_examples=200)
@given(count=st.integers(0, 2**62), epochs=st.integers(1, 2**62), passed=st.integers(0, MANY))
def test_lookups_left_are_those_of_all_epochs_but_those_that_passed(count, epochs, passed):
    left = lookups_left(np.array([count]), epochs, np.array([passed], np.uint16))
    many_passed = passed == MANY  # who knows how many
    assert left.tolist() == [MANY if many_passed else min(MANY, max(0, count * epochs - passed))]
    assert lookups_left(np.array([count]), epochs).tolist() == [min(MANY, count * epochs)]


def test_lookups_of_a_run_over_many_rows():
    counts = np.arange(2**20 + 7) % 40_000  # more rows than are taken over at a time
    assert (lookups_left(counts, 2) == np.minimum(2 * counts, MANY)).all()
