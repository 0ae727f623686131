"""Columns of lists, from Parquet files to ragged bags, with the same bytes after a kill."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachedlrm.data.npy import NpySource
from cachedlrm.data.open import open_dataset
from cachedlrm.data.raw import parquet
from cachedlrm.data.spec import DataRequest
from cachedlrm.prepare import assemble, reading
from cachedlrm.prepare.__main__ import main
from support.runs import one_line

COUNT, TRAINED = 700, 400
RANDOM = np.random.default_rng(3)
GENRES: list[list[int] | None] = [RANDOM.integers(0, 40, RANDOM.integers(0, 5)).tolist() for _ in range(COUNT)]
GENRES[2], GENRES[3], GENRES[9] = [], None, [7] * 60  # none, missing, and one many times
WORDS = [[f"w{id_}" for id_ in RANDOM.integers(0, 9, RANDOM.integers(0, 3))] for _ in range(COUNT)]
USERS = RANDOM.integers(0, 30, COUNT)
COLUMNS = ["--label=label", "--dense=x", "--sparse=user,genres,words,pair", "--ui=off"]


def table(**changes) -> pa.Table:
    columns = {
        "label": pa.array(RANDOM.integers(0, 2, COUNT), pa.int8()),
        "x": np.arange(COUNT, dtype=np.float32),
        "user": pa.array(USERS),
        "genres": pa.array(GENRES, pa.list_(pa.int32())),
        "words": pa.array(WORDS, pa.large_list(pa.string())),
        "pair": pa.array(np.stack([USERS, USERS + 1], axis=1).tolist(), pa.list_(pa.int64(), 2)),
    }
    return pa.table(columns | changes)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 90)
    monkeypatch.setattr(assemble, "_PIECE_LISTS", 64)


@pytest.fixture
def files(tmp_path):
    pq.write_table(table().slice(0, TRAINED), tmp_path / "a.parquet", row_group_size=130)
    pq.write_table(table().slice(TRAINED), tmp_path / "b.parquet")
    return [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")]


def prepare(*arguments) -> int:
    return main(["parquet", *map(str, arguments)])


def contents(folder) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "prepare.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_lists_become_ragged_bags(tmp_path, files):
    out = tmp_path / "out"
    assert prepare(*files, *COLUMNS, "--out", out) == 0
    summary = json.loads((out / "prepared.json").read_text())
    rows, keys = summary["table_rows"], np.load(out / "vocabulary.npy")
    first = np.cumsum([0, *rows])
    for name, samples in (("train", range(TRAINED)), ("test/test", range(TRAINED, COUNT))):
        values, offsets = (np.load(out / f"{name}_sparse_{part}.npy") for part in ("values", "offsets"))
        assert (values.dtype, offsets.dtype, offsets[-1]) == (np.int32, np.int64, len(values))
        bags = [values[start:stop] for start, stop in pairwise(offsets)]
        found = [
            [keys[first[bag % 4] + bags[bag]].tolist() for bag in range(4 * n, 4 * n + 4)] for n in range(len(samples))
        ]
        for n, sample in zip(samples, found, strict=True):
            assert sample[0] == [USERS[n]]
            assert sample[1] == (GENRES[n] or [])
            assert len(sample[2]) == len(WORDS[n])
            assert sample[3] in ([USERS[n], USERS[n] + 1], [USERS[n], 0])  # a value that was held out has row 0
    trained = [GENRES[n] or [] for n in range(TRAINED)]
    assert summary["max_lookups_per_bag"] == [1, 60, max(map(len, WORDS[:TRAINED])), 2]
    assert np.load(out / "counts.npy")[first[1] : first[2]].sum() == sum(map(len, trained))
    data = open_dataset(f"npy:{out}", None, DataRequest(None, None, 1, -1))
    assert isinstance(data.train, NpySource)
    assert data.train.max_lookups_per_bag == tuple(summary["max_lookups_per_bag"])
    assert data.test is not None
    assert (data.train.num_samples, data.test.num_samples) == (TRAINED, COUNT - TRAINED)


@pytest.mark.parametrize("after", [2, 5])
def test_an_interrupted_preparation_goes_on_to_the_same_bytes(tmp_path, files, monkeypatch, after):
    assert prepare(*files, *COLUMNS, "--out", tmp_path / "whole") == 0
    monkeypatch.setattr(reading, "_COMMIT_S", -1.0)
    real, calls = reading.SampleSpool.append, []

    def killed(spool, samples):
        calls.append(len(samples))
        real(spool, samples)
        if len(calls) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reading.SampleSpool, "append", killed)
        assert prepare(*files, *COLUMNS, "--out", tmp_path / "again") == 130
    assert prepare(*files, *COLUMNS, "--out", tmp_path / "again") == 0
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_folded_and_rare_values_of_lists(tmp_path, files):
    assert prepare(*files, *COLUMNS, "--out", tmp_path / "out", "--max-ind-range=10", "--min-count=3") == 0
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["table_rows"][1] == 11


def test_bad_rows_of_lists_are_left_out(tmp_path, files, capsys):
    lists = pa.array([[1.0], [2.5, 1.0], [], [3.0]] * (COUNT // 4), pa.list_(pa.float64()))
    pq.write_table(table(genres=lists), tmp_path / "c.parquet")
    command = [tmp_path / "c.parquet", *COLUMNS, "--out", tmp_path / "out", "--test-fraction=0"]
    assert "c.parquet: row 2: genres is no whole number" in one_line(capsys, prepare(*command))
    assert prepare(*command, "--skip-bad-lines") == 0
    assert len(np.load(tmp_path / "out" / "train_labels.npy")) == COUNT - COUNT // 4
    assert np.diff(np.load(tmp_path / "out" / "train_sparse_offsets.npy"))[1::4].tolist() == [1, 0, 1] * (COUNT // 4)


def test_files_that_disagree_about_lists_are_refused(tmp_path, files, capsys):
    pq.write_table(table(user=pa.array([[1]] * COUNT)), tmp_path / "c.parquet")
    words = one_line(capsys, prepare(*files, tmp_path / "c.parquet", *COLUMNS, "--out", tmp_path / "out"))
    assert "--sparse user: " in words
    assert "list<element: int64> there, where the first file has one value a row" in words
    pq.write_table(table(user=pa.array([[[1]]] * COUNT)), tmp_path / "d.parquet")
    words = one_line(capsys, prepare(tmp_path / "d.parquet", *COLUMNS, "--out", tmp_path / "out2"))
    assert "--sparse user" in words
