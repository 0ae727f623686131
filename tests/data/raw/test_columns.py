"""Columns that the user names, in all the types and schemas that files may have, prepared."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.columns import Schema, check_type, missing_column, split_columns
from support.raw_criteo import MISSING, hashed, prepare
from support.runs import one_line

COLUMNS = ["--label=label", "--dense=price", "--sparse=item", "--test-fraction=0"]


def prepared(folder, *tables: dict, options=()) -> list[int]:
    """The key of the item of each sample."""
    for number, columns in enumerate(tables):
        folder.mkdir(exist_ok=True)
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), folder / f"{number}.parquet")
    assert prepare("parquet", folder, "--out", folder / "out", *COLUMNS, *options) == 0
    rows, keys = np.load(folder / "out" / "train_sparse.npy")[:, 0], np.load(folder / "out" / "vocabulary.npy")
    return keys[rows].tolist()


def items(values, kind=None) -> dict:
    return {"label": [0] * len(values), "price": [1.0] * len(values), "item": pa.array(values, kind)}


def test_a_column_may_change_its_type_between_files(tmp_path):
    """Integers, then texts of the same integers, then what pandas writes where one is missing."""
    tables = items([3, 4]), items(["3", "4", "x"]), items([3.0, None, 4.0]), items(["4.0", None])
    assert prepared(tmp_path, *tables) == [3, 4, 3, 4, hashed("x"), 3, MISSING, 4, 4, MISSING]


def test_a_missing_value_has_a_row_of_its_own(tmp_path):
    assert prepared(tmp_path / "a", items([None, -(2**63), 1, 2], pa.int64())) == [MISSING, 2**63, 1, 2]
    assert prepared(tmp_path / "b", items([None, "", "x", "y"])) == [MISSING, hashed(""), hashed("x"), hashed("y")]
    folded = prepared(tmp_path / "c", items([None, MISSING % 10, 13], pa.int64()), options=["--max-ind-range=10"])
    assert folded == [MISSING, MISSING % 10, 3]
    assert prepared(tmp_path / "d", items([None, None], pa.null())) == [MISSING, MISSING]


def test_labels_and_numbers_of_other_types(tmp_path):
    labels = [["0", "1", "true", "False"], [Decimal(0), Decimal(1), Decimal(1), Decimal(0)], [0, 1, 1, 0]]
    for number, label in enumerate(labels):
        table = {"label": label, "price": [Decimal("1.50"), None, Decimal(2), Decimal(-1)], "item": [1, 2, 3, 4]}
        folder = tmp_path / str(number)
        prepared(folder, table)
        assert np.load(folder / "out" / "train_labels.npy").ravel().tolist() == [0, 1, 1, 0]
        assert np.load(folder / "out" / "train_dense.npy").ravel().tolist() == [1.5, 0.0, 2.0, -1.0]


def test_data_without_dense_features(tmp_path):
    pq.write_table(pa.table(items([1, 2, 3])), tmp_path / "a.parquet")
    command = ["parquet", tmp_path / "a.parquet", "--out", tmp_path / "out", "--label=label", "--sparse=item"]
    assert prepare(*command, "--test-fraction=0") == 0
    assert np.load(tmp_path / "out" / "train_dense.npy").shape == (3, 0)
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["command"]["dense"] == []


TWICE = pa.Table.from_arrays(
    [pa.array([0]), pa.array([1.0]), pa.array([1]), pa.array([1])], ["label", "price", "item", "item"]
)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (TWICE, "--sparse item: {} has 2 columns of that name; write it with different names"),
        (pa.table({}), "--label label: {} has no such column; it has no columns at all"),
        (pa.table({"label": [0], "price": [1.0]}), "--sparse item: {} has no such column; there are label, price"),
        (
            pa.table({"label": [0], "s": [{"price": 1.0, "item": 1}]}),
            "--dense price: {} has no such column; there are label, s",
        ),
        (pa.table(items([{"a": 1}])), "--sparse item: {} has struct<a: int64> there, where one integer or text a row"),
        (
            pa.table(items([1], pa.timestamp("s"))),
            "--sparse item: {} has timestamp[ms] there, which hardly repeats; take",
        ),
        (pa.table({**items([1]), "price": ["x"]}), "--dense price: {} has string there, where numbers are needed"),
        (pa.table({**items([1]), "label": pa.nulls(1)}), "--label label: {} has null there, where 0 and 1 are needed"),
    ],
)
def test_an_odd_schema_is_refused_at_the_start_and_leaves_nothing(tmp_path, capsys, table, words):
    """Also in the second of two files."""
    pq.write_table(pa.table(items([1])), tmp_path / "0.parquet")
    pq.write_table(table, tmp_path / "1.parquet")
    paths = tmp_path / "0.parquet", tmp_path / "1.parquet"
    message = one_line(capsys, prepare("parquet", *paths, "--out", tmp_path / "out", *COLUMNS))
    assert words.format(paths[1]) in message
    assert not (tmp_path / "out").exists()


def test_messages_name_the_option():
    with pytest.raises(UserError, match=r"^--dense a: FILE has timestamp\[s\] there"):
        check_type("--dense", "a", "FILE", pa.timestamp("s"))
    assert str(missing_column("--sparse", "a", "FILE", ["b"])) == "--sparse a: FILE has no such column; there are b"
    with pytest.raises(UserError, match="names of different columns"):
        split_columns("--dense", "a,,b")
    assert Schema("y", ("a",), ("a", "b")).names == ("y", "a", "b")
