"""Generated clicks: a pure function of the sample's number, skewed, and with labels that can be learned."""

import numpy as np
import pytest

from cachedlrm.data.zipf import ZipfSource

TABLE_ROWS = (1000, 3, 50_000)


def source(**changes: int) -> ZipfSource:
    return ZipfSource(**{"table_rows": TABLE_ROWS, "num_dense": 4, "seed": 7, "num_samples": 20_000} | changes)


@pytest.mark.parametrize("most", [1, 3])
def test_a_sample_is_the_same_wherever_reading_began(most):
    whole, part = source(max_lookups_per_bag=most).read(0, 50), source(max_lookups_per_bag=most).read(20, 30)
    bags = slice(20 * 3, 30 * 3 + 1)
    first, last = whole.offsets[60], whole.offsets[90]
    assert (part.dense == whole.dense[20:30]).all()
    assert (part.labels == whole.labels[20:30]).all()
    assert (part.offsets == whole.offsets[bags] - first).all()
    assert (part.rows == whole.rows[first:last]).all()
    assert not np.array_equal(source(seed=8, max_lookups_per_bag=most).read(20, 30).dense, part.dense)


def test_ids_are_in_their_tables_and_few_are_most_of_them():
    batch = source().read(0, 20_000)
    rows = batch.rows.reshape(-1, 3) - np.array([0, 1000, 1003])
    assert (rows >= 0).all()
    assert (rows < TABLE_ROWS).all()
    counts = np.sort(np.bincount(rows[:, 2]))[::-1]
    assert counts[:500].sum() > 0.5 * 20_000  # a hundredth of the rows
    assert 0.15 < batch.labels.mean() < 0.4
    assert abs(batch.dense.mean()) < 0.02
    assert abs(batch.dense.var() - 1) < 0.05


def test_bags_have_no_more_lookups_than_asked_for():
    sizes = np.diff(source(max_lookups_per_bag=3).read(0, 1000).offsets)
    assert np.unique(sizes).tolist() == [0, 1, 2, 3]
