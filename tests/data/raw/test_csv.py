"""CSV files, as people write them, prepared: the same values as the same columns in Parquet."""

import csv as standard_csv
import gzip
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachedlrm.data.raw.columns import Schema
from cachedlrm.data.raw.csv import Csv, Dialect
from cachedlrm.data.raw.samples import Position
from cachedlrm.prepare import formats
from support.raw_criteo import MISSING, contents, hashed, prepare
from support.runs import one_line

COLUMNS = ["--label=y", "--dense=a,b", "--sparse=c,d"]


def columns(count: int) -> dict[str, list]:
    random = np.random.default_rng(5)
    texts = ["", "ä", 'with "quotes"', "a,b", "two\nlines", "two\r\nlines", "7", None]
    return {
        "y": random.integers(0, 2, count).tolist(),
        "unused": ["x,\n"] * count,
        "a": [None if value < -1 else float(np.float32(value)) for value in random.normal(size=count)],
        "b": random.integers(-5, 100, count).tolist(),
        "c": [int(value) if value < 5 else None for value in random.integers(-3, 6, count)],
        "d": [texts[value] for value in random.integers(0, 8, count)],
    }


def as_csv(data: dict[str, list], line_end="\n", delimiter=",", header=True) -> bytes:
    """Missing values as empty fields, empty texts in quotes, as RFC 4180 has quotes."""

    def field(value: object) -> str:
        text = "" if value is None else str(value)
        quoted = value == "" or any(one in text for one in '\r\n"' + delimiter)
        return '"' + text.replace('"', '""') + '"' if quoted else text

    rows = [delimiter.join(field(value) for value in row) for row in zip(*data.values(), strict=True)]
    return "".join(f"{row}{line_end}" for row in [*([delimiter.join(data)] if header else []), *rows]).encode()


def arrays(out) -> dict[str, bytes]:
    return {name: content for name, content in contents(out).items() if name.endswith(".npy")}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """What the same columns in Parquet give."""
    folder = tmp_path_factory.mktemp("parquet")
    pq.write_table(pa.table(columns(400)), folder / "a.parquet")
    assert prepare("parquet", folder / "a.parquet", "--out", folder / "out", *COLUMNS) == 0
    return arrays(folder / "out")


FORMS = {
    "plain": (as_csv(columns(400)), []),
    "crlf": (as_csv(columns(400), "\r\n"), []),
    "mark": (b"\xef\xbb\xbf" + as_csv(columns(400)), []),
    "tabs": (as_csv(columns(400), delimiter="\t"), ["--delimiter=tab"]),
    "no header": (as_csv(columns(400), header=False), ["--columns=y,unused,a,b,c,d"]),
    "mark, no header": (b"\xef\xbb\xbf" + as_csv(columns(400), header=False), ["--columns=y,unused,a,b,c,d"]),
    "gzip": (gzip.compress(as_csv(columns(400))), []),
    "no last line end": (as_csv(columns(400)).rstrip(b"\n"), []),
    "nulls": (as_csv(columns(400)).replace(b",,", rb",\N,"), [r"--nulls=NULL,\N"]),
    "other order": (as_csv(dict(reversed(columns(400).items()))), []),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_values_of_parquet(tmp_path, monkeypatch, wanted, form):
    monkeypatch.setattr(formats, "_LARGEST_BLOCK", 700)  # records of several lines straddle blocks
    monkeypatch.setattr(formats, "_LEAST_BLOCK", 700)
    content, options = FORMS[form]
    (tmp_path / "a").write_bytes(content)
    assert prepare("csv", tmp_path / "a", "--out", tmp_path / "out", *COLUMNS, *options) == 0
    assert arrays(tmp_path / "out") == wanted


def test_records_are_those_of_the_standard_library():
    text = as_csv(columns(200))
    format_ = Csv(Schema("y", (), ("c",)), Dialect(), 500)
    ends = format_._line_ends(text)
    records = [text[start:stop].decode() for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    assert len(records) == 201
    read = list(standard_csv.reader(io.StringIO(text.decode(), newline="")))
    assert [next(standard_csv.reader(io.StringIO(record, newline=""))) for record in records] == read
    stray = b'a 5" pipe,b\n"x ""y"", z",c\n'  # a quote within a field is one more character
    assert format_._line_ends(stray).tolist() == [12, len(stray)]


def test_any_record_may_be_the_next(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(as_csv(columns(100)))
    format_ = Csv(Schema("y", (), ("d",)), Dialect(), 500)
    blocks = list(format_.blocks(path, Position()))
    assert len(blocks) > 5
    again = list(Csv(Schema("y", (), ("d",)), Dialect(), 500).blocks(path, blocks[3].end))
    assert b"".join(block.content for block in again) == b"".join(block.content for block in blocks[4:])
    assert sum(len(format_.parse(block, skip_bad=False)[0]) for block in blocks) == 100


def test_columns_may_change_places_and_types_between_files(tmp_path):
    (tmp_path / "0.csv").write_text("y,c,a\n1,7,0.5\n0,,\n")
    (tmp_path / "1.csv").write_text('a,y,c\n1.5,True,7.0\n2,false,"7"\n,1,""\n')
    arguments = ["csv", tmp_path / "0.csv", tmp_path / "1.csv", "--label=y", "--sparse=c", "--dense=a"]
    assert prepare(*arguments, "--out", tmp_path / "out", "--test-fraction=0") == 0
    out = tmp_path / "out"
    rows, keys = np.load(out / "train_sparse.npy")[:, 0], np.load(out / "vocabulary.npy")
    assert keys[rows].tolist() == [7, MISSING, 7, 7, hashed("")]
    assert np.load(out / "train_labels.npy").ravel().tolist() == [1, 0, 1, 0, 1]
    assert np.load(out / "train_dense.npy").ravel().tolist() == [0.5, 0.0, 1.5, 2.0, 0.0]


HEADER, GOOD = "y,a,b,c,d", "1,2,3,4,x"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1,2,3,4", "4 fields between ',' where 5 columns are named"),
        ("1,2,3,4,5,6", "6 fields"),
        ("2,2,3,4,x", "the label, y, is neither 0 nor 1"),
        (",2,3,4,x", "the label, y, is neither 0 nor 1"),
        ("1,two,3,4,x", "a is 'two', which is no number"),
        ("1,2,nan,4,x", "b is NaN, infinite, or more than a float32 holds"),
        ("", "the label, y, is neither 0 nor 1"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path, capsys, line, words):
    two_lines = '1,2,3,4,"two\nlines"'
    path = tmp_path / "a.csv"
    path.write_text("\n".join([HEADER, GOOD, two_lines, line, GOOD, ""]))
    message = one_line(capsys, prepare("csv", path, "--out", tmp_path / "out", *COLUMNS))
    assert f"{path}: line 5: " in message
    assert words in message
    assert prepare("csv", path, "--out", tmp_path / "b", *COLUMNS, "--skip-bad-lines", "--test-fraction=0") == 0
    assert len(np.load(tmp_path / "b" / "train_labels.npy")) == 3


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (f"{HEADER},c\n{GOOD},1\n", [], "--sparse c: {} has 2 columns of that name; write it with different names"),
        (
            "y,a\n1,2\n",
            [],
            "--dense b: {} has no such column; there are y, a; of files without a header name all columns",
        ),
        ("y;a;b;c;d\n1;2;3;4;x\n", [], "say what is between the fields, which is ',' so far, with --delimiter"),
        (f"{HEADER}\n{GOOD}\n", ["--columns=y,a,b,c,d"], "{}: line 1 holds the names in --columns, so it is a header"),
        (f"{HEADER}\n{GOOD}\n", ["--columns=y,a,b,c"], "--sparse d: {} has no such column; there are y, a, b, c"),
        (f"{HEADER}\n{GOOD}\n", ["--delimiter=;;"], "Must be one character"),
        (f"{HEADER}\n", [], "{}: no samples to train on; name other files"),
        ("", [], "{}: no samples to train on; name other files"),
        ('"' + "x\n" * 800_000, [], "{}: line 1 is longer than a line is, or has a quote that nothing closes"),
        (f"{HEADER}\nnone of it\nfits\n", [], "{} holds no samples of csv: line 2: 1 fields between ','"),
    ],
)
def test_what_cannot_be_read_is_refused_at_the_start(tmp_path, capsys, content, options, words):
    path = tmp_path / "a.csv"
    path.write_text(content)
    message = one_line(capsys, prepare("csv", path, "--out", tmp_path / "out", *COLUMNS, *options))
    assert words.format(path) in message
    assert not (tmp_path / "out").exists()
