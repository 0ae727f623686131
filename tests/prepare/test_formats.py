"""Which parser a command gets."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.avazu import Avazu
from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.prepare.formats import make_format
from cachedlrm.prepare.options import ColumnOptions, Command, PrepareOptions

COMMAND = Command("criteo", (Path("a"),), PrepareOptions(Path("out"), threads=3))
COLUMNS = ColumnOptions(label="y", dense="a, b", sparse="c,d", log_dense=True)


@pytest.mark.parametrize(("memory", "block_bytes"), [(96 * 4 * 100_000, 100_000), (1, 1 << 16), (1 << 40, 8 << 20)])
def test_blocks_are_a_share_of_the_memory_within_limits(memory, block_bytes):
    for source, kind in (("criteo", Criteo), ("avazu", Avazu)):
        options = replace(COMMAND.options, memory=memory)
        format_ = make_format(replace(COMMAND, source=source, options=options))
        assert isinstance(format_, kind)
        assert format_._block_bytes == block_bytes


def test_columns_of_parquet_are_the_ones_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"y": [1], "a": [0.5], "b": [0.5], "c": [3], "d": [[4, 5]]}), path)
    lists = make_format(replace(COMMAND, source="parquet", columns=COLUMNS, paths=(path,)))
    assert (lists.list_tables, lists.settings["lists"]) == ({1}, ["d"])
    pq.write_table(pa.table({"y": [1], "a": [0.5], "b": [0.5], "c": [3], "d": [4]}), path)
    format_ = make_format(replace(COMMAND, source="parquet", columns=COLUMNS, paths=(path,)))
    assert format_.list_tables == frozenset()
    assert (format_.dense_names, format_.table_names) == (("a", "b"), ("c", "d"))
    assert format_.settings == {"label": "y", "log_dense": True}


@pytest.mark.parametrize("columns", [replace(COLUMNS, sparse="c,y"), replace(COLUMNS, dense="y")])
def test_a_label_among_the_features_is_refused(columns):
    with pytest.raises(UserError, match="--label y is also in --dense or --sparse, which would give the answer away"):
        make_format(replace(COMMAND, source="parquet", columns=columns))
