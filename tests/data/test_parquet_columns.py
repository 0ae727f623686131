"""Which columns of Parquet files are what, by name and by type."""

from pathlib import Path

import pyarrow as pa
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.parquet_columns import Columns, NamedColumns, check_columns, choose_columns, read_columns

TYPES = {
    "user": pa.int64(),
    "price": pa.float32(),
    "label": pa.int8(),
    "ad.id": pa.dictionary(pa.int32(), pa.uint16()),
    "age": pa.float64(),
    "mobile": pa.bool_(),
}
SCHEMA = pa.schema(TYPES | {"__index_level_0__": pa.int64()})


def schema(**types: pa.DataType) -> pa.Schema:
    """The schema with other columns; None leaves one out."""
    return pa.schema({name: kind for name, kind in (TYPES | types).items() if kind is not None})


def test_a_path_and_what_is_named_after_it():
    assert read_columns("x", "a:b/c.parquet") == (Path("a:b/c.parquet"), NamedColumns())
    text = "a.parquet:sparse=c, d:label=l:dense=a=b"
    assert read_columns("x", text) == (Path("a.parquet"), NamedColumns("l", ("a=b",), ("c", "d")))


@pytest.mark.parametrize(
    ("named", "dense", "sparse"),
    [
        ("", ("price", "age"), ("user", "ad.id", "mobile")),
        (":label=mobile", ("price", "age"), ("user", "label", "ad.id")),
        (":dense=user,price", ("user", "price"), ("ad.id", "mobile")),
        (":sparse=mobile", ("price", "age"), ("mobile",)),
        (":sparse=ad.id,user:dense=age", ("age",), ("ad.id", "user")),
    ],
)
def test_columns_that_are_not_named_follow_from_their_types(named, dense, sparse):
    columns = choose_columns("x", SCHEMA, read_columns("x", f"a.parquet{named}")[1])
    assert (columns.dense, columns.sparse) == (dense, sparse)
    assert columns.all == ("mobile" if "label" in named else "label", *dense, *sparse)
    check_columns(Path("a.parquet"), SCHEMA, columns)


@pytest.mark.parametrize(
    ("schema_", "named", "words"),
    [
        (schema(label=None), "", "x: no column label in it; there are user, price, ad.id, age, mobile: name one, as in "
         "parquet:PATH:label=user"),
        (SCHEMA, ":label=click", "x: no such label in it; there are user"),
        (SCHEMA, ":label=label:label=user", "x: label is given more than once"),
        (SCHEMA, ":label=label,user", "x: label names 2 columns; name one"),
        (SCHEMA, ":sparse=", "names of different columns, joined by commas, are needed"),
        (SCHEMA, ":dense=user:sparse=user", "x: a column is named twice among label, dense and sparse"),
        (SCHEMA, ":dense=label", "x: a column is named twice among label, dense and sparse"),
        (schema(site=pa.string()), "", "x: site holds string, not numbers; convert it, leave it out by naming the ids"),
        (pa.schema({"label": pa.int8(), "age": pa.float64()}), "", "x: no column of ids (integers) in it; name some"),
    ],
)  # fmt: skip
def test_names_that_do_not_fit_are_refused(schema_, named, words):
    with pytest.raises(UserError) as caught:
        choose_columns("x", schema_, read_columns("x", f"a.parquet{named}")[1])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("dense", "sparse", "words"),
    [
        (("price",), ("user", "none"), "a.parquet has no column none; there are user, price"),
        (("price",), ("user", "site"), "site holds string where ids, integers from 0 on, are needed"),
        (("price",), ("user", "age"), "age holds double where ids, integers from 0 on, are needed"),
        (("tags",), ("user",), "tags holds list<"),
        (("twice",), ("user",), "a.parquet has 2 columns called twice"),
    ],
)
def test_a_file_of_other_columns_is_refused(dense, sparse, words):
    wide = schema(site=pa.string(), tags=pa.list_(pa.int64())).append(pa.field("twice", pa.float32()))
    with pytest.raises(UserError) as caught:
        check_columns(Path("a.parquet"), wide.append(pa.field("twice", pa.float32())), Columns("label", dense, sparse))
    assert words in str(caught.value)
