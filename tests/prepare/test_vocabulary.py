"""Rows by frequency, whatever the size of the hash table; against plain Python."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.data.raw import keys
from cachedlrm.prepare import vocabulary
from support.raw_criteo import mix


@pytest.fixture(autouse=True, scope="module")
def _small_tables():
    """Tables that a handful of keys outgrow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_FIRST_SLOTS", 4)
        yield


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    column=st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=300),
    slots=st.sampled_from([4, 16, 1024]),
    min_count=st.integers(1, 4),
)
def test_counts_and_ranks_do_not_depend_on_the_table(column, slots, min_count):
    array = np.array(column, np.uint64)
    pieces = [array[:100], array[100:]]
    parts = list(vocabulary.count_keys(lambda: [(0.5, pieces[0]), (1.0, pieces[1])], slots, lambda share: None))
    assert parts[0][0] == 0
    assert parts[-1][1] == 2**64 - 1
    assert all(one[1] + 1 == other[0] for one, other in pairwise(parts))
    ranking = vocabulary.Ranking((counts for _, _, _, counts in parts), min_count)
    made = {}
    for _, _, mixed, counts in parts:
        made |= dict(zip(keys.unmix_all(mixed).tolist(), ranking.rows(counts).tolist(), strict=True))
    wanted = sorted((k for k in set(column) if column.count(k) >= min_count), key=lambda k: (-column.count(k), mix(k)))
    assert {key: row for key, row in made.items() if row} == {key: row for row, key in enumerate(wanted, 1)}
    assert set(made) == set(column)
    assert ranking.num_rows == len(wanted) + 1


def test_rows_of_equal_counts_go_on_from_part_to_part():
    parts = [np.array([5, 1, 2]), np.array([2, 5, 5])]
    ranking = vocabulary.Ranking(parts, 2)
    assert [ranking.rows(counts).tolist() for counts in parts] == [[1, 0, 4], [5, 2, 3]]
    assert ranking.num_rows == 6
    assert np.concatenate(list(ranking.row_counts())).tolist() == [1, 5, 5, 5, 2, 2]


def test_keys_are_written_by_row(tmp_path):
    ranges = ([70, 8, 9], [3, 0, 1]), ([40, 50], [2, 4])
    parts = [(np.array([mix(key) for key in keys_], np.uint64), np.array(rows, np.int32)) for keys_, rows in ranges]
    vocabulary.write_keys_by_row(tmp_path / "keys", 6, parts)
    assert np.fromfile(tmp_path / "keys", np.uint64).tolist() == [0, 9, 40, 70, 50, 0]


def test_a_map_finds_the_keys_of_its_range_alone():
    keys_ = np.arange(20, dtype=np.uint64)
    mixed = np.array([mix(int(key)) for key in keys_], np.uint64)
    rows = np.where(keys_ % 3 == 0, 0, keys_ + 1).astype(np.int32)  # a third has no row
    table_keys, table_rows = np.empty(32, np.uint64), np.zeros(32, np.int32)
    vocabulary.build_map(mixed, rows, table_keys, table_rows)
    found = np.zeros(25, np.int32)
    found[::6] = 99  # of a base: they stay
    low, high = np.uint64(2**61), np.uint64(2**64 - 2**61)
    vocabulary.map_keys(np.arange(25, dtype=np.uint32), low, high, table_keys, table_rows, found)
    inside = [low <= mix(key) <= high for key in range(25)]
    wanted = [99 if key % 6 == 0 else int(rows[key]) if key < 20 and inside[key] else 0 for key in range(25)]
    assert found.tolist() == wanted
    assert any(rows[key] and not inside[key] for key in range(20) if key % 6)
