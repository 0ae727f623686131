"""Rows in a list are found by one bit each; rows of grown tables begin as the old and the new tables have them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.store import grown
from cachedlrm.store.grown import GrownInit, RowPlaces, SavedInit
from cachedlrm.store.init import ArrayInit
from cachedlrm.store.records import GroupShape, RecordLayout

NUM_ROWS = 300


@settings(deadline=None)
@given(st.sets(st.integers(0, NUM_ROWS - 1)), st.lists(st.integers(0, NUM_ROWS - 1)))
def test_places_are_those_of_a_dictionary(held, asked):
    rows = np.array(sorted(held), np.int64)
    expected = {row: place for place, row in enumerate(rows.tolist())}
    assert RowPlaces(rows, NUM_ROWS)(np.array(asked, np.int64)).tolist() == [expected.get(row, -1) for row in asked]


def test_rows_are_taken_in_pieces(monkeypatch):
    monkeypatch.setattr(grown, "_PIECE_ROWS", 7)
    rows = np.arange(0, NUM_ROWS, 3)
    assert RowPlaces(rows, NUM_ROWS)(rows).tolist() == list(range(100))


def table(rows: int, columns: int, start: float) -> np.ndarray:
    return (start + np.arange(rows * columns, dtype=np.float32)).reshape(rows, columns)


@pytest.mark.parametrize("optimizer", ["adagrad", "sgd"])
def test_old_rows_first_and_new_ones_after_them_in_each_table(optimizer):
    old, new = GroupShape((3, 2), RecordLayout(2, "adagrad")), GroupShape((4, 4), RecordLayout(2, optimizer))
    saved, initial = table(2, 4, 1000.0), ArrayInit([[table(3, 4, 0.0)], [table(2, 4, 100.0)]])
    left = SavedInit(RowPlaces(np.array([1, 4]), 5), saved.__getitem__, initial)
    fresh = ArrayInit([[table(4, 2, 500.0)], [table(4, 2, 600.0)]])
    init = GrownInit(left, old, fresh, new)
    out = np.full((8, new.layout.columns), np.nan, np.float32)
    order = np.array([7, 0, 1, 2, 3, 4, 5, 6])
    init.fill(order, out)
    of = dict(zip(order.tolist(), out.tolist(), strict=True))
    kept = slice(0, new.layout.columns)
    assert of[0] == table(3, 4, 0.0)[0, kept].tolist()
    assert of[1] == saved[0, kept].tolist()
    assert of[4] == table(2, 4, 100.0)[0, kept].tolist()
    assert of[5] == saved[1, kept].tolist()
    state = [0.0, 0.0] if optimizer == "adagrad" else []
    assert of[3] == [*table(4, 2, 500.0)[3].tolist(), *state]
    assert of[7] == [*table(4, 2, 600.0)[3].tolist(), *state]
    assert init.new_numbers(np.arange(5)).tolist() == [0, 1, 2, 4, 5]


def test_a_file_of_all_rows_has_them_in_order():
    records, out = table(5, 2, 0.0), np.empty((3, 2), np.float32)
    SavedInit(None, records.__getitem__, None).fill(np.array([4, 0, 2]), out)
    assert out.tolist() == records[[4, 0, 2]].tolist()
