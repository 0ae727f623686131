"""Row groups of a small file, column by column."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.row_groups import RowGroup, row_groups

COLUMNS = {
    "user": pa.array([3, 1, 2, 9, 4, 0, 5], pa.int16()),
    "site": pa.array([7, 7, 0, 7, 2**40, 7, 1], pa.int64()).dictionary_encode(),
    "mobile": pa.array([True, False, True, False, False, True, True]),
    "price": pa.array([0.5, 1.0, -2.0, 0.25, 8.0, 0.0, 4.0], pa.float64()),
}


def groups_of(path: Path, changes: dict[str, list] | None = None, **options) -> list[RowGroup]:
    """Row groups of three, three and one rows."""
    table = pa.table(COLUMNS | {"struct": [{"user": 99}] * 7} | (changes or {}))
    pyarrow.parquet.write_table(table, path, **({"row_group_size": 3} | options))
    return list(row_groups(path, pyarrow.parquet.read_metadata(path)))


@pytest.fixture
def groups(tmp_path):
    return groups_of(tmp_path / "a.parquet")


def test_rows_are_counted_over_the_file(groups, tmp_path):
    assert [(len(group), group.number, group.first_row) for group in groups] == [(3, 0, 0), (3, 1, 3), (1, 2, 6)]
    assert groups[1].place(2, "user") == f"{tmp_path / 'a.parquet'}: row 6: user"
    empty = tmp_path / "empty.parquet"
    pyarrow.parquet.write_table(pa.table(COLUMNS).slice(0, 0), empty)
    assert list(row_groups(empty, pyarrow.parquet.read_metadata(empty))) == []


def test_values_of_a_column(groups):
    assert np.concatenate([group.ids("user", -1)[0] for group in groups]).tolist() == COLUMNS["user"].to_pylist()
    assert groups[1].ids("site", 10)[0].tolist() == [7, 2**40 % 10, 7]
    assert groups[0].ids("mobile", -1)[0].tolist() == [1, 0, 1]
    floats = groups[1].floats("price")
    assert (floats.dtype, floats.tolist()) == (np.float32, [0.25, 8.0, 0.0])
    assert groups[2].floats("user").tolist() == [5.0]


@pytest.mark.parametrize("statistics", [True, False])
def test_the_largest_id_with_statistics_and_without(tmp_path, statistics):
    group = groups_of(tmp_path / "a.parquet", write_statistics=statistics)[1]
    assert [group.largest_id("user", fold) for fold in (-1, 10, 9, 5)] == [9, 9, 4, 4]  # of 9, 4 and 0
    assert group.largest_id("site", -1) == 2**40


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("user", [0, 1, 2, 3, -4, 5, 6], "row 5: user: id -4 is negative"),
        ("price", [0.0, 1.0, 2.0, 3.0, float("nan"), 5.0, 6.0], "row 5: price is nan, which is not a finite float32"),
        ("price", [0.0, 1.0, 2.0, 3.0, 1e300, 5.0, 6.0], "row 5: price is 1e+300, which is not a finite float32"),
    ],
)
def test_values_that_are_none_are_named(tmp_path, column, values, words):
    groups = groups_of(tmp_path / "a.parquet", {column: values})
    for group in (groups[0], groups[2]):
        assert len(group.ids(column, -1)[0] if column == "user" else group.floats(column)) == len(group)
    with pytest.raises(UserError) as caught:
        groups[1].ids(column, -1) if column == "user" else groups[1].floats(column)
    assert words in str(caught.value)


def test_missing_values(tmp_path):
    missing = {"user": [0, 1, 2, 3, None, 5, None], "mobile": [True, None, None, None, None, False, False]}
    for statistics in (True, False):
        groups = groups_of(tmp_path / "a.parquet", missing, write_statistics=statistics)
        assert [group.largest_id("user", -1) for group in groups] == [2, 5, -1]
        ids, which = groups[1].ids("mobile", -1)
        assert (ids.tolist(), which.tolist()) == ([0, 0, 0], [True, True, False])
        assert groups[0].ids("user", -1)[1] is None
        assert groups[1].floats("user").tolist() == [3.0, 0.0, 5.0]


def test_missing_labels_are_looked_for_where_statistics_count_them(tmp_path):
    missing = {"user": [0, 1, 0, 1, None, 1, 1]}
    for statistics in (True, False):
        groups = groups_of(tmp_path / "a.parquet", missing, write_statistics=statistics)
        groups[0].check_label("user")
        if not statistics:
            groups[1].check_label("user")
        with pytest.raises(UserError, match="row 5: user is missing \\(null\\) and a label is needed"):
            groups[1].labels("user")
    with pytest.raises(UserError, match="row 5: user is missing"):
        groups_of(tmp_path / "a.parquet", missing)[1].check_label("user")
