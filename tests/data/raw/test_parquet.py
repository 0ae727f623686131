"""Parquet with a schema, prepared, against plain Python."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cachedlrm.data.raw import parquet
from cachedlrm.data.raw.columns import Schema
from cachedlrm.data.raw.samples import Position
from support.raw_criteo import MISSING, Expected, assert_equal, hashed, missing, number, prepare, write
from support.runs import one_line

SCHEMA = ["--label=y", "--dense=a,b", "--sparse=c,d,e,f"]


def columns(count: int, seed: int = 1) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    texts = ["", "ä", "word", "a much longer text than eight bytes", None]
    return {
        "y": [bool(value) for value in rng.random(count) < 0.5],
        "a": [float(np.float32(value)) if value > -1 else None for value in rng.normal(size=count)],
        "unused": [[[1]]] * count,
        "b": rng.integers(-5, 100, count).tolist(),
        "c": [int(value) if value < 5 else None for value in rng.integers(-3, 6, count)],
        "d": [texts[value] for value in rng.integers(0, 5, count)],
        "e": [texts[value] for value in rng.integers(0, 5, count)],
        "f": [bool(value) for value in rng.random(count) < 0.1],
    }


def write_parquet(path, data, **options):
    table = pa.table(data)
    if "e" in data:
        table = table.set_column(table.schema.get_field_index("e"), "e", table.column("e").dictionary_encode())
    pq.write_table(table, path, **options)
    return path


def expected_parquet(data: dict[str, list], num_test: int, log_dense: bool = False) -> Expected:
    dense = np.array([[value or 0 for value in data[name]] for name in ("a", "b")], np.float32).T
    if log_dense:
        dense = torch.log(torch.from_numpy(np.maximum(dense, 0)) + 1).numpy()
    keys = [
        [missing(key) for key in data["c"]],
        *([MISSING if t is None else hashed(t) for t in data[name]] for name in "de"),
        data["f"],
    ]
    labels = np.array(data["y"], np.int32)[:, None]
    return Expected(dense, labels, *number([list(map(int, k)) for k in keys], len(data["y"]) - num_test))


@pytest.mark.parametrize("log_dense", [False, True])
def test_parquet(tmp_path, monkeypatch, log_dense):
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 37)
    data = columns(500)
    path = write_parquet(tmp_path / "a.parquet", data, row_group_size=100)
    flags = ["--log-dense"] if log_dense else []
    assert prepare("parquet", path, "--out", tmp_path / "out", *SCHEMA, *flags) == 0
    assert_equal(tmp_path / "out", expected_parquet(data, 71, log_dense), 71)
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["command"]["log_dense"] is log_dense


@pytest.mark.parametrize("start", [0, 1, 36, 37, 99, 100, 101, 299, 300])
def test_parquet_is_read_from_any_row_on(tmp_path, monkeypatch, start):
    monkeypatch.setattr(parquet, "_BLOCK_ROWS", 37)
    path = write_parquet(tmp_path / "a.parquet", columns(300), row_group_size=100)
    format_ = parquet.Parquet(Schema("y", ("a", "b"), ("c",)))
    blocks = list(format_.blocks(path, Position(start, start)))
    assert sum(len(block.content) for block in blocks) == 300 - start
    places = [start, *(block.end.offset for block in blocks)]
    assert [block.start.offset for block in blocks] == places[:-1]
    whole = [value for block in format_.blocks(path, Position()) for value in block.content["b"].to_pylist()]
    assert [value for block in blocks for value in block.content["b"].to_pylist()] == whole[start:]


def test_bad_rows_are_named_or_left_out(tmp_path, capsys):
    data = columns(60)
    data["y"] = [int(value) for value in data["y"]]
    data["y"][41], data["y"][50], data["a"][45] = 3, None, float("nan")
    path = write_parquet(tmp_path / "a.parquet", data)
    message = one_line(capsys, prepare("parquet", path, "--out", tmp_path / "out", *SCHEMA))
    assert f"{path}: row 42: the label, y, is neither 0 nor 1; correct it, or leave out such rows" in message
    assert prepare("parquet", path, "--out", tmp_path / "b", *SCHEMA, "--skip-bad-lines", "--test-fraction=0") == 0
    good = {name: [v for row, v in enumerate(values) if row not in (41, 45, 50)] for name, values in data.items()}
    assert_equal(tmp_path / "b", expected_parquet(good, 0), 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label=z"], "--label z: {} has no such column; there are y, a, unused, b, c, d, e, f"),
        (["--dense=a,d"], "--dense d: {} has string there, where numbers are needed"),
        (["--sparse=c,unused"], "--sparse unused: {} has list<"),
        (["--sparse=c,,d"], "--sparse c,,d: names of different columns"),
        (["--dense=a,a"], "--dense a,a: names of different columns"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(tmp_path, capsys, options, words):
    path = write_parquet(tmp_path / "a.parquet", columns(10))
    names = {option.partition("=")[0] for option in options}
    schema = [option for option in SCHEMA if option.partition("=")[0] not in names]
    message = one_line(capsys, prepare("parquet", path, "--out", tmp_path / "out", *schema, *options))
    assert words.format(path) in message


def test_a_file_that_is_not_parquet_is_refused(tmp_path, capsys):
    path = write(tmp_path / "a.parquet", ["text"] * 20)
    message = one_line(capsys, prepare("parquet", path, "--out", tmp_path / "out", *SCHEMA))
    assert f"{path} is not a Parquet file, or damaged" in message
