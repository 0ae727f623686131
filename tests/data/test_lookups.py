"""Two samples of three features, routed by hand."""

import numpy as np

from cachedlrm.data.batch import Batch
from cachedlrm.data.lookups import Router, TablePart, count_unique, row_bits

FEATURE_ROWS = (10, 7, 4)
# Ids of sample 0: 9 and 3, none, 2; of sample 1: 0, 6, 1 and 1. Global rows begin at 0, 10 and 17.
BATCH = Batch(
    np.zeros((2, 0), np.float32),
    np.array([9, 3, 19, 0, 16, 18, 18]),
    np.array([0, 2, 2, 3, 4, 5, 7]),
    np.zeros(2, np.float32),
)


def test_one_group_of_the_batch_s_own_tables_copies_nothing():
    router = Router(FEATURE_ROWS, [[TablePart(feature, rows) for feature, rows in enumerate(FEATURE_ROWS)]])
    (lookups,) = router(BATCH)
    assert router.is_identity
    assert lookups.rows is BATCH.rows
    assert lookups.offsets is BATCH.offsets


def test_groups_have_rows_of_their_own():
    router = Router(FEATURE_ROWS, [[TablePart(2, 4), TablePart(0, 10)], [TablePart(1, 7)]])
    assert (router.is_identity, router.num_groups) == (False, 2)
    first, second = router(BATCH)
    assert first.offsets.tolist() == [0, 1, 3, 5, 6]  # of a sample feature 2, then feature 0
    assert first.rows.tolist() == [2, 4 + 9, 4 + 3, 1, 1, 4 + 0]
    assert second.offsets.tolist() == [0, 0, 1]
    assert second.rows.tolist() == [6]


def test_quotients_and_remainders():
    parts = [TablePart(0, 3, 4), TablePart(0, 4, 4, is_remainder=True)]  # ids 9, 3 and 0 by 4
    (lookups,) = Router(FEATURE_ROWS, [parts])(BATCH)
    assert lookups.offsets.tolist() == [0, 2, 4, 5, 6]
    assert lookups.rows.tolist() == [2, 0, 3 + 1, 3 + 3, 0, 3 + 0]


def test_unique_rows_are_counted_and_the_bits_left_clear():
    rng, bits = np.random.default_rng(1), row_bits(203)
    for size in (0, 1, 50, 900):
        rows = rng.integers(0, 203, size)
        assert count_unique(rows, bits) == len(np.unique(rows))
        assert not bits.any()
    assert count_unique(np.array([202, 0, 202]), bits) == 2
    router = Router(FEATURE_ROWS, [[TablePart(2, 4), TablePart(0, 10)], [TablePart(1, 7)]])
    assert router.num_rows == (14, 7)
