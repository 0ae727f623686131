"""Avazu's CSV and Parquet with a schema, prepared, against plain Python."""

import gzip
import json
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cachedlrm.data.raw import avazu, parquet
from cachedlrm.data.raw.samples import Position
from cachedlrm.prepare import formats
from support.raw_criteo import Expected, assert_equal, mix, number, prepare, write
from support.runs import one_line

HEX = avazu._HEX


def missing(key: int | None) -> int:
    return 1 << 63 if key is None else key % 2**64


# --- Avazu


def impressions(count: int) -> list[dict[str, str]]:
    rng = np.random.default_rng(3)
    records = []
    for row in range(count):
        record = {name: str(rng.integers(1000, 1006)) for name in avazu._HEADER}
        record |= {name: f"{int(rng.zipf(1.5)) * 40503 % 2**32:08x}" for name in HEX}
        record |= {"id": str(10**19 + row), "click": str(int(rng.random() < 0.2)), "C20": "-1"}
        record["hour"] = f"1410{rng.integers(21, 31)}{rng.integers(0, 24):02}"
        records.append(record)
    records[5]["C1"] = ""
    return records


def csv_lines(records: list[dict[str, str]]) -> list[str]:
    return [",".join(avazu._HEADER), *(",".join(record.values()) for record in records)]


def expected_avazu(records: list[dict[str, str]], num_test: int) -> Expected:
    hours = [int(record["hour"][6:]) for record in records]
    days = [date(2000 + int(r["hour"][:2]), int(r["hour"][2:4]), int(r["hour"][4:6])).weekday() for r in records]
    columns = [hours, days]
    for name in avazu._HEADER[3:]:
        texts = [record[name] for record in records]
        columns.append([int(t, 16) if name in HEX else missing(int(t) if t else None) for t in texts])
    angles = 2 * np.pi * np.array(hours) / 24
    dense = np.column_stack([np.sin(angles), np.cos(angles)]).astype(np.float32)
    labels = np.array([[int(record["click"])] for record in records], np.int32)
    return Expected(dense, labels, *number(columns, len(records) - num_test))


def test_avazu(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_LARGEST_BLOCK", 3000)
    monkeypatch.setattr(formats, "_LEAST_BLOCK", 1000)
    records = impressions(300)
    (tmp_path / "train.gz").write_bytes(gzip.compress("\n".join(csv_lines(records)).encode()))
    assert prepare("avazu", tmp_path / "train.gz", "--out", tmp_path / "out", "--test-fraction=0.1") == 0
    assert_equal(tmp_path / "out", expected_avazu(records, 30), 30)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("click", "2", "line 5: the label is neither 0 nor 1"), ("hour", "14133001", "line 5: hour 14133001 is not"),
     ("site_id", "xyz", "line 5: a category is not up to 8 hexadecimal digits"), ("C1", "x", "line 5: ")],
)  # fmt: skip
def test_a_bad_line_of_avazu_is_named_with_the_header_counted(tmp_path, capsys, field, value, words):
    records = impressions(10)
    records[3][field] = value
    path = write(tmp_path / "train", csv_lines(records))
    assert f"{path}: {words}" in one_line(capsys, prepare("avazu", path, "--out", tmp_path / "out"))
    assert prepare("avazu", path, "--out", tmp_path / "out2", "--test-fraction=0", "--skip-bad-lines") == 0
    assert_equal(tmp_path / "out2", expected_avazu(records[:3] + records[4:], 0), 0)


def test_a_file_that_is_not_avazus_is_refused(tmp_path, capsys):
    path = write(tmp_path / "test", [line.partition(",")[2] for line in csv_lines(impressions(6))])
    assert "line 1 is not the header of Avazu's train file" in one_line(
        capsys, prepare("avazu", path, "--out", tmp_path / "out")
    )


# --- Parquet

SCHEMA = ["--label=y", "--dense=a,b", "--sparse=c,d,e,f"]


def hashed(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return mix(value)


def columns(count: int, seed: int = 1) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    texts = ["", "ä", "word", "a much longer text than eight bytes", None]
    return {
        "y": [bool(value) for value in rng.random(count) < 0.5],
        "a": [float(np.float32(value)) if value > -1 else None for value in rng.normal(size=count)],
        "unused": [[1]] * count,
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
    keys = [[missing(key) for key in data["c"]], *([hashed(t or "") for t in data[name]] for name in "de"), data["f"]]
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
    format_ = parquet.Parquet("y", ["a", "b"], ["c"])
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
        (["--dense=a,d"], "--dense d: {} has string there where numbers are needed"),
        (["--sparse=c,a"], "--sparse a: {} has double there where integers, booleans or texts are needed"),
        (["--sparse=c,unused"], "--sparse unused: {} has list<"),
        (["--sparse=c,,d"], "--sparse c,,d: names of different columns"),
        (["--dense=a,a"], "--dense a,a: names of different columns"),
        (["--sparse=c,y"], "--label y is also in --dense or --sparse"),
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
    assert f"{path} is no Parquet file, or damaged" in message
