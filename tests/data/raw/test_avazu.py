"""Avazu's CSV, prepared, against plain Python."""

import gzip
from datetime import date

import numpy as np
import pytest

from cachedlrm.data.raw import avazu
from cachedlrm.prepare import formats
from support.raw_criteo import Expected, assert_equal, missing, number, prepare, write
from support.runs import one_line

HEX = avazu._HEX


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


def test_a_byte_order_mark_and_a_quoted_header(tmp_path):
    records = impressions(20)
    header, *rest = csv_lines(records)
    quoted = ",".join(f'"{name}"' for name in header.split(","))
    write(tmp_path / "plain", [header, *rest])
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([quoted, *rest]).encode())
    for name in ("plain", "marked"):
        assert prepare("avazu", tmp_path / name, "--out", tmp_path / f"{name}.out", "--test-fraction=0") == 0
        assert_equal(tmp_path / f"{name}.out", expected_avazu(records, 0), 0)
