"""A table from its keys, against plain Python; many ranges, and what an earlier process built."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.prepare import tables, vocabulary
from cachedlrm.prepare.spool import keys_file
from cachedlrm.prepare.tables import TableBuilder
from support.raw_criteo import number

KEYS = np.random.default_rng(4).zipf(1.4, 500).astype(np.uint32) % 1000
NUM_TRAIN = 400


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """Of tables that need several ranges, in chunks of 60 keys."""
    monkeypatch.setattr(vocabulary, "_FIRST_SLOTS", 4)
    monkeypatch.setattr(tables, "_CHUNK", 60)
    KEYS.tofile(tmp_path / keys_file(3))
    return TableBuilder(tmp_path, KEYS.dtype, NUM_TRAIN, len(KEYS), min_count=1, max_slots=16, stop=threading.Event())


@pytest.mark.parametrize("min_count", [1, 3, 1000])
@pytest.mark.parametrize("max_slots", [16, 1 << 12])
def test_a_table_is_what_the_model_says(builder, min_count, max_slots):
    shares: list[float] = []
    table = replace(builder, min_count=min_count, max_slots=max_slots).build(3, "c", shares.append)
    sparse, table_rows, counts, keys = number([KEYS.tolist()], NUM_TRAIN, min_count)
    assert table.num_rows == table_rows[0]
    assert table.num_keys == len(set(KEYS[:NUM_TRAIN].tolist()))
    assert np.fromfile(table.rows, np.int32).tolist() == sparse[:, 0].tolist()
    assert np.fromfile(table.counts, np.int64).tolist() == counts
    assert np.fromfile(table.keys, np.uint64).tolist() == keys
    assert sorted(path.name for path in table.folder.iterdir()) == ["counts.bin", "keys.bin", "rows.bin", "table.json"]
    assert not (builder.folder / keys_file(3)).exists()
    assert 0 < min(shares) < max(shares) == shares[-1] == 1.0


def test_many_ranges_are_counted(builder):
    parts = builder._count(builder.folder, builder._keys(builder.folder / keys_file(3)), lambda share: None)
    assert len(parts) > 5


def test_a_table_that_is_complete_is_found(builder):
    table = builder.build(3, "c", lambda share: None)
    shares: list[float] = []
    assert builder.build(3, "c", shares.append) == table  # its keys are gone by now
    assert shares == [1.0]


def test_work_that_is_given_up_begins_anew(builder):
    builder.stop.set()
    with pytest.raises(KeyboardInterrupt):
        builder.build(3, "c", lambda share: None)
    assert (builder.folder / "table_003.partial").exists()
    builder.stop.clear()
    assert builder.build(3, "c", lambda share: None).num_rows == number([KEYS.tolist()], NUM_TRAIN)[1][0]


def test_more_rows_than_can_be_numbered_are_refused(builder, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 20)
    with pytest.raises(UserError, match=r"table c has \d+ rows, of which there can be 20; raise --min-count"):
        builder.build(3, "c", lambda share: None)
