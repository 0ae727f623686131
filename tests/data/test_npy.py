"""Triples of npy files: one stream of all, ids folded, and errors that name the file."""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.npy import NpySource
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from cachedlrm.train import main
from support.runs import parameters, report
from support.samples import ANY, joined, refused, same, write_npy


def opened(folder, table_rows=None, max_ind_range=-1) -> NpySource:
    return open_dataset(f"npy:{folder}", None, DataRequest(table_rows, None, 1, max_ind_range)).train


def test_npy_joins_files_in_natural_order_and_maps_them(tmp_path):
    for day, count in ((10, 3), (2, 4), (0, 5)):
        write_npy(tmp_path, f"day_{day}", count, labels=np.full((count, 1), day / 16, np.float32))
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


def test_one_prefix_alone_is_read(tmp_path):
    write_npy(tmp_path, "train", 5)
    write_npy(tmp_path, "test", 4, labels=np.full((4, 1), -1), dense=np.ones((4, 9), np.float32))
    spec = f"npy:{tmp_path}:only=train"
    data = open_dataset(spec, spec, ANY)
    assert (data.train.num_samples, data.test.num_samples, data.train.num_dense) == (5, 5, 2)
    assert open_dataset(f"{spec}:fold=rows", None, DataRequest((2, 3, 4), None, 1, -1)).train.read(4, 5).rows.tolist() \
        == [12 % 7 % 2, 2 + 13 % 7 % 3, 5]  # fmt: skip
    assert "tes_dense.npy is not there; name the prefix of other files" in refused(f"npy:{tmp_path}:only=tes")
    assert "test=PREFIX or only=PREFIX, and fold=rows" in refused(f"{spec}:test=test")


@pytest.mark.parametrize("dtype", [np.int8, np.int32, ">i4", np.int64, np.uint8, np.uint64])
def test_npy_folds_ids_in_the_type_of_the_file(tmp_path, dtype):
    largest = np.iinfo(dtype).max  # of uint64 beyond int64
    write_npy(tmp_path, sparse=np.array([[largest, 3, 17]] * 10, dtype))
    assert opened(tmp_path, None, 5).table_rows == (largest % 5 + 1, 4, 3)
    assert opened(tmp_path, (5, 9, 5), 5).read(0, 1).rows.tolist() == [largest % 5, 5 + 3, 10 + 2]
    assert opened(tmp_path, (9, 3, 9), 5).table_rows == (5, 3, 5)
    if largest < 300:  # a range that the type cannot hold folds nothing
        assert opened(tmp_path, (300, 9, 18), 2**60).read(0, 1).rows[0] == largest


@pytest.mark.parametrize("max_ind_range", [-1, 20])
def test_negative_ids_are_refused_before_they_are_folded(tmp_path, max_ind_range):
    sparse = np.ones((10, 3), np.int32)
    sparse[4, 2] = -1
    write_npy(tmp_path, sparse=sparse)
    words = r"day_0_sparse\.npy: sample 4, table 2: id -1 is negative; "
    message = refused(f"npy:{tmp_path}", max_ind_range=max_ind_range)
    assert re.search(words, message), message
    with pytest.raises(UserError, match=words) as caught:
        opened(tmp_path, (20, 20, 20), max_ind_range).read(0, 10)
    assert "--arch-embedding-size" not in str(caught.value)


def test_ids_beyond_int64_are_named_as_in_the_file(tmp_path):
    write_npy(tmp_path, sparse=np.array([[1, 2, 2**63 + 5]] * 10, np.uint64))
    words = "sample 0, table 2: id 9223372036854775813 is above 9223372036854775807; .*--max-ind-range"
    assert re.search(words, refused(f"npy:{tmp_path}"))
    with pytest.raises(UserError, match=words):
        opened(tmp_path, (9, 9, 9)).read(0, 1)
    assert opened(tmp_path, None, 10).read(0, 1).rows.tolist() == [1, 2 + 2, 5 + (2**63 + 5) % 10]


def test_ids_that_make_too_many_rows_are_named(tmp_path):
    sparse = np.ones((10, 3), np.int64)
    write_npy(tmp_path / "a", "day_0", sparse=sparse)
    sparse[6, 1] = 2**40
    write_npy(tmp_path / "a", "day_1", sparse=sparse)
    words = r"day_1_sparse\.npy: sample 6, column 1 holds id 1099511627776, .* --max-ind-range 715827882$"
    assert re.search(words, refused(f"npy:{tmp_path / 'a'}"))
    assert sum(opened(tmp_path / "a", None, 715827882).table_rows) < 2**31
    write_npy(tmp_path / "b", sparse=np.full((10, 3), 2**63 - 1))  # no sum of int64
    assert "id 9223372036854775807, and" in refused(f"npy:{tmp_path / 'b'}")
    write_npy(tmp_path / "c", sparse=np.full((10, 3), 2**31))
    assert "lower --max-ind-range to 715827882" in refused(f"npy:{tmp_path / 'c'}", max_ind_range=2**32)


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
            ["day_sparse.npy is missing but day_labels.npy is"],
        ),
        (lambda folder: _replace(folder, lambda path: path.symlink_to("gone")), ["day_0_labels.npy is a link to noth"]),
        (lambda folder: _replace(folder, lambda path: path.symlink_to(path.name)), ["day_0_labels.npy cannot be read"]),
        (lambda folder: _replace(folder, Path.mkdir), ["day_0_labels.npy is not a regular file"]),
        (lambda folder: _replace(folder, os.mkfifo), ["day_0_labels.npy is not a regular file"]),
        (lambda folder: _replace(folder, lambda path: path.symlink_to("/dev/zero")), ["is not a regular file"]),
        (lambda folder: _replace(folder, _archive), ["day_0_labels.npy is a .npz archive"]),
        (lambda folder: (folder / "day_0_dense.npy").write_bytes(b""), ["day_0_dense.npy is empty"]),
        (
            lambda folder: (folder / "day_0_dense.npy").write_text("0.5 1\n" * 100),
            ["day_0_dense.npy is not an .npy file"],
        ),
        (lambda folder: _truncate(folder / "day_0_sparse.npy"), ["day_0_sparse.npy is truncated"]),
        (lambda folder: _garble(folder / "day_0_sparse.npy", b"'descr'", b"((((((("), ["day_0_sparse.npy is trunc"]),
        (lambda folder: _garble(folder / "day_0_sparse.npy", b"(10, 3)", b"(9**99)"), ["day_0_sparse.npy is trunc"]),
        (lambda folder: _garble(folder / "day_0_sparse.npy", b"(10, 3)", b"(-1, 3)"), ["day_0_sparse.npy is trunc"]),
        (lambda folder: np.save(folder / "day_0_sparse.npy", np.array([{}], object)), ["day_0_sparse.npy", "objects"]),
        (lambda folder: write_npy(folder, sparse=np.zeros((10, 3, 1), np.int32)), ["day_0_sparse.npy", "[10, 3, 1]"]),
        (lambda folder: write_npy(folder, sparse=np.int32(5)), ["day_0_sparse.npy is int32 []"]),
        (
            lambda folder: write_npy(folder, sparse=np.zeros((10, 3))),
            ["day_0_sparse.npy is float64", "int64", "convert"],
        ),
        (lambda folder: write_npy(folder, sparse=np.zeros((10, 3), bool)), ["day_0_sparse.npy is bool", "int64"]),
        (lambda folder: write_npy(folder, sparse=np.zeros((10, 0), np.int32)), ["day_0_sparse.npy has no columns"]),
        (lambda folder: (folder / "day_0_labels.npy").unlink(), ["day_0_labels.npy is missing but day_0_sparse.npy"]),
        (lambda folder: write_npy(folder, "day_1", dense=np.zeros((10, 0), np.float32)), ["day_1_dense.npy has 0 col"]),
        (lambda folder: write_npy(folder, dense=np.zeros((10, 2), int)), ["day_0_dense.npy is int64", "float32"]),
        (lambda folder: write_npy(folder, labels=np.zeros((10, 2), np.int32)), ["day_0_labels.npy is", "[10, 2]"]),
        (lambda folder: write_npy(folder, labels=np.array(["0"] * 10)), ["day_0_labels.npy is <U1", "int32 [N, 1]"]),
        (lambda folder: write_npy(folder, labels=np.zeros(10, complex)), ["day_0_labels.npy is complex128"]),
        (lambda folder: write_npy(folder, labels=np.zeros(10, [("a\nb", "f4")])), ["day_0_labels.npy is"]),
        (lambda folder: write_npy(folder, labels=np.zeros(9, np.int32)), ["day_0_labels.npy has 9 samples", "has 10"]),
        (lambda folder: write_npy(folder, "day_1", 0), ["day_1_dense.npy", "no samples"]),
        (
            lambda folder: write_npy(folder, "day_1", dense=np.zeros((10, 5), np.float32)),
            ["day_1_dense", "5", "day_0", "2"],
        ),
        (lambda folder: write_npy(folder, "day_1", sparse=np.zeros((10, 5), int)), ["day_1_sparse", "5", "day_0", "3"]),
        (lambda folder: write_npy(folder, "a\nb\x1b", 0), ["a\\nb\\x1b_dense.npy", "no samples"]),
        (lambda folder: write_npy(folder, os.fsdecode(b"\xff"), 0), ["\\udcff_dense.npy", "no samples"]),
    ],
)
def test_damaged_npy_files_are_named(tmp_path, damage, words):
    folder = tmp_path / "data"
    write_npy(folder)
    damage(folder)
    message = refused(f"npy:{folder}")
    assert all(word in message for word in words), message
    assert "pickle" not in message
    assert str(folder) in message


FORMS = {
    "sparse.npy": np.save,
    "sparse_multi_hot.npz": lambda path, ids: np.savez(path, **{str(t): ids[:, [t, t]] for t in range(3)}),
    "sparse_values.npy": lambda path, ids: (
        np.save(path, ids.ravel()), np.save(path.with_name("d_sparse_offsets.npy"), np.arange(ids.size + 1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parts", [("dense",), ("labels",), ()], ids=["dense", "labels", "neither"])
def test_labels_and_dense_features_may_be_missing(tmp_path, form, parts):
    ids = np.arange(30, dtype=np.int32).reshape(10, 3) % 7
    FORMS[form](tmp_path / f"d_{form}", ids)
    values = {"dense": np.ones((10, 2), np.float32), "labels": np.ones((10, 1), np.int32)}
    for part in parts:
        np.save(tmp_path / f"d_{part}.npy", values[part])
    request = DataRequest(None, None, 1, -1, needs_labels=False)
    if form == "sparse_values.npy" and not parts:
        with pytest.raises(UserError, match=r"d_sparse_offsets.npy does not say how many samples .* write d_dense.npy"):
            open_dataset(f"npy:{tmp_path}", None, request)
        return
    dataset = open_dataset(f"npy:{tmp_path}", None, request)
    source = dataset.train
    assert (source.num_samples, source.num_dense, source.has_labels) == (10, 2 * ("dense" in parts), "labels" in parts)
    batch = source.read(3, 10)
    assert batch.dense.tolist() == [[1.0] * source.num_dense] * 7
    assert batch.labels.tolist() == [float(source.has_labels)] * 7
    assert batch.rows.reshape(7, 3, -1)[:, :, 0].tolist() == (ids[3:] + np.array([0, 7, 14])).tolist()
    assert dataset.notes == (() if "dense" in parts else (f"--data npy:{tmp_path} has no dense features",))
    if "labels" not in parts:
        with pytest.raises(UserError, match=r"d_labels.npy is missing but d_.* is there"):
            open_dataset(f"npy:{tmp_path}", None, DataRequest(None, None, 1, -1))


@pytest.mark.parametrize("interaction", ["dot", "cat"])
def test_data_without_dense_features_train(tmp_path, capsys, interaction):
    write_npy(tmp_path / "data", count=600, sparse=np.random.default_rng(1).integers(0, 90, (600, 3)).astype(np.int32))
    (tmp_path / "data" / "day_0_dense.npy").unlink()
    options = [
        f"--data=npy:{tmp_path / 'data'}",
        "--arch-sparse-feature-size=8",
        f"--arch-interaction-op={interaction}",
    ]
    model = ["--arch-mlp-top=4-1", "--mini-batch-size=50", "--nepochs=2", "--print-freq=1", "--ui=plain"]
    found = []
    for name, cached in (("resident", []), ("cached", ["--gpu-cache-rows=160", "--checkpoint-every=6"])):
        assert main([*options, *model, *cached, f"--run-dir={tmp_path / name}"]) == 0
        found.append((parameters(tmp_path / name), report(tmp_path / name)))
    (resident, _), (rows, counted) = found
    assert all(np.array_equal(rows[name], values) for name, values in resident.items())
    assert (resident["bot_l.0.weight"].shape, resident["bot_l.0.bias"].shape) == ((8, 0), (8,))
    assert counted["evicted_rows"] > 0
    assert f"npy:{tmp_path / 'data'} has no dense features" in capsys.readouterr().out


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
        write_npy(tmp_path, name, number + 1)
    np.save(tmp_path / "xdense.npy", np.zeros(3))  # belongs to no triple
    assert opened(tmp_path).num_samples == 15


def test_an_npy_folder_that_cannot_be_read(tmp_path, monkeypatch):
    assert refused(f"npy:{tmp_path}/no").endswith("no: no such folder; name another one")
    assert "no such folder" in refused("npy:a\0b")
    assert "no *_dense.npy" in refused(f"npy:{tmp_path}", tmp_path)
    (tmp_path / "file").touch()
    assert "not a directory" in refused(f"npy:{tmp_path}/file")
    write_npy(tmp_path / "data")

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
    write_npy(tmp_path, dense=dense)
    with pytest.raises(UserError, match=r"day_0_dense\.npy: sample 7, column 1 is -1e\+300, which float32 cannot hold"):
        opened(tmp_path).read(5, 10)
    dense[7, 1] = np.inf
    write_npy(tmp_path, dense=dense)
    with pytest.raises(UserError, match=r"sample 7: dense feature 1 is inf"):
        opened(tmp_path).read(5, 10)
    write_npy(tmp_path, labels=np.full(10, 1e40))
    with pytest.raises(UserError, match=r"day_0_labels\.npy: sample 5 is 1e\+40, which float32 cannot hold"):
        opened(tmp_path).read(5, 10)


def test_held_out_files_are_read_when_opened(tmp_path):
    write_npy(tmp_path / "train")
    sparse = np.zeros((70_000, 3), np.int32)
    sparse[-1, 1] = 40
    write_npy(tmp_path / "test", count=70_000, dense=np.zeros((70_000, 2), np.float32), sparse=sparse)
    train, test = (f"npy:{tmp_path / name}" for name in ("train", "test"))
    for rows in ((7, 7, 7), (9, 9, 9)):
        message = refused(train, test, table_rows=rows)
        assert re.search(rf"test/day_0_\*\.npy: sample 69999, table 1: id 40 is outside 0\.\.{rows[1] - 1};", message)
    dataset = open_dataset(train, test, ANY)
    assert dataset.train.table_rows == dataset.test.table_rows == (7, 41, 7)
    assert "day_0_sparse.npy: sample 69999, column 1 holds id 2" in _too_many(tmp_path, train, test, sparse)
    write_npy(tmp_path / "test", labels=np.full(10, np.nan))
    assert "sample 0: label is nan" in refused(train, test)


def _too_many(folder, train, test, sparse):
    sparse[-1, 1] = 2**31 - 1
    write_npy(folder / "test", count=70_000, dense=np.zeros((70_000, 2), np.float32), sparse=sparse)
    return refused(train, test)


def test_a_bad_sample_is_named_by_its_file_and_number(tmp_path):
    write_npy(tmp_path, "day_0")
    sparse = np.zeros((10, 3), np.int32)
    sparse[6, 1] = 40
    write_npy(tmp_path, "day_1", sparse=sparse)
    source = opened(tmp_path, (7, 7, 7))
    with pytest.raises(UserError, match=r"day_1_\*\.npy: sample 6, table 1: id 40 is outside 0\.\.6"):
        source.read(8, 20)
    with pytest.raises(UserError, match=r"id 40 is outside 0\.\.6; raise .*lower --max-ind-range.* from 50 to 7"):
        opened(tmp_path, (7, 7, 7), 50).read(8, 20)
