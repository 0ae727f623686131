"""Generated clicks: a pure function of the sample's number, skewed, and with labels that can be learned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, LIFETIME_SAMPLES, ZipfSource
from support.samples import ANY, joined, refused, same

TABLE_ROWS = (1000, 3, 50_000)


def source(**changes: int) -> ZipfSource:
    return ZipfSource(**{"table_rows": TABLE_ROWS, "num_dense": 4, "seed": 7, "num_samples": 20_000} | changes)


@pytest.mark.parametrize("most", [1, 3, (2, 1, 4)])
def test_a_sample_is_the_same_wherever_reading_began(most):
    whole, part = source(hot=most).read(0, 50), source(hot=most).read(20, 30)
    bags = slice(20 * 3, 30 * 3 + 1)
    first, last = whole.offsets[60], whole.offsets[90]
    assert (part.dense == whole.dense[20:30]).all()
    assert (part.labels == whole.labels[20:30]).all()
    assert (part.offsets == whole.offsets[bags] - first).all()
    assert (part.rows == whole.rows[first:last]).all()
    assert not np.array_equal(source(seed=8, hot=most).read(20, 30).dense, part.dense)


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
    sizes = np.diff(source(hot=3).read(0, 1000).offsets)
    assert np.unique(sizes).tolist() == [0, 1, 2, 3]


def test_sizes_of_bags_by_table():
    for text in ("hot=3-1-2,samples=50", "samples=50,hot=3,1,2", "hot=3,1,2,samples=50"):
        train = open_dataset(f"zipf:{text}", None, DataRequest(TABLE_ROWS, None, 1, -1)).train
        assert (train.num_samples, train.max_lookups_per_bag) == (50, (3, 1, 2))
        assert (np.diff(train.read(7, 50).offsets).reshape(-1, 3) == [3, 1, 2]).all()
    mlperf = "3,2,1,2,6,1,1,1,1,7,3,8,1,6,9,5,1,1,1,12,100,27,10,3,1,1"
    assert len(open_dataset(f"zipf:samples=50,hot={mlperf}", None, ANY).train.read(0, 4).rows) == 4 * 214
    assert "hot has 3 sizes and there are 26 tables" in refused("zipf:hot=3-1-2")
    for text in ("hot=3--2", "hot=3-0-2", "samples=3-2", "samples=3,2", "hot=3-b"):
        assert "is not samples=N, hot=H or hot=H-H-H" in refused(f"zipf:{text}"), text
    assert "hot can be 10000 at most" in refused("zipf:hot=3-10001")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    table_rows=st.lists(st.integers(1, 10**9), min_size=1, max_size=5).map(tuple),
    num_dense=st.integers(1, 5),
    seed=st.integers(-(2**65), 2**65),
    hot=st.integers(1, 4),
    start=st.integers(0, 10**12),
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_zipf_is_a_pure_function_of_the_samples_number(table_rows, num_dense, seed, hot, start, sizes):
    source = ZipfSource(table_rows, num_dense, seed, 10**13, hot)
    middle, stop = start + sizes[0], start + sum(sizes)
    whole = source.read(start, stop)
    assert same(whole, joined(source.read(start, middle), source.read(middle, stop)))
    assert same(whole, ZipfSource(table_rows, num_dense, seed, 10**13, hot).read(start, stop))
    bags = np.repeat(np.arange(len(whole.offsets) - 1), np.diff(whole.offsets))
    ends = np.cumsum(table_rows)
    assert (np.searchsorted(ends, whole.rows, side="right") == bags % len(table_rows)).all()
    assert np.diff(whole.offsets).max(initial=0) <= hot
    assert np.isfinite(whole.dense).all()
    assert set(whole.labels) <= {0.0, 1.0}


def test_zipf_looks_like_click_logs():
    source = ZipfSource(CRITEO_KAGGLE_ROWS, 13, 123, 10**7)
    batch = source.read(0, 20_000)
    assert 0.22 < batch.labels.mean() < 0.30
    assert np.abs(batch.dense.mean(axis=0)).max() < 0.05
    assert np.abs(batch.dense.std(axis=0) - 1).max() < 0.05
    unique, counts = np.unique(batch.rows, return_counts=True)
    assert 0.12 < len(unique) / len(batch.rows) < 0.22  # first touches
    assert 0.65 < (counts == 1).mean() < 0.80
    top = np.sort(counts)[-len(unique) // 100 :].sum() / len(batch.rows)
    assert 0.5 < top < 0.7


def test_zipf_drifts():
    source = ZipfSource((10**6,), 1, 1, 10**9)

    def favourites(start: int) -> set[int]:
        rows, counts = np.unique(source.read(start, start + 20_000).rows, return_counts=True)
        return set(rows[np.argsort(counts)[-50:]].tolist())

    now = favourites(0)
    assert len(now & favourites(100_000)) > 40
    assert len(now & favourites(LIFETIME_SAMPLES // 2)) < 45
    assert len(now & favourites(2 * LIFETIME_SAMPLES)) < 5


def test_held_out_samples_are_others_of_the_same_world():
    dataset = open_dataset("zipf:samples=30000", None, DataRequest((500, 300), 4, 7, -1))
    assert dataset.test is not None
    train, test = dataset.train.read(0, 3000), dataset.test.read(0, 3000)
    assert not same(train, test)
    # What the labels depend on is the same: a model of one ranks the other.
    weights = np.linalg.lstsq(train.dense, train.labels - train.labels.mean(), rcond=None)[0]
    score = test.dense @ weights
    assert score[test.labels == 1].mean() > score[test.labels == 0].mean() + 0.01


def test_zipf_at_its_limits():
    source = open_dataset("zipf:samples=9223372036854775807,hot=10000", None, DataRequest((5,), 1, 1, -1)).train
    assert source.read(2**63 - 3, 2**63 - 1).num_samples == 2
    assert "numbered in 64 bits" in refused("zipf:samples=9223372036854775808")
    assert "fits into no memory" in refused("zipf:hot=10001")


def test_zipf_takes_sizes_from_the_options():
    dataset = open_dataset("zipf:samples=100,hot=3", None, DataRequest((50, 60), 5, 1, 55))
    assert dataset.train.table_rows == (50, 55)
    assert dataset.train.num_dense == 5
    assert dataset.train.max_lookups_per_bag == (3, 3)
    assert open_dataset("zipf", None, ANY).train.table_rows == CRITEO_KAGGLE_ROWS
