"""Whole tables in pieces: touched rows over initial ones, and where each table's rows and columns lie."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.export import full_tables as module
from cachedlrm.export.full_tables import FullTable, TouchedRecords, chunk_rows, current_records, full_tables
from cachedlrm.options.architecture import build_architecture
from cachedlrm.store.records import RecordLayout
from support.models import one_group
from support.options import resolved


class Init:
    """A record is its row, negative."""

    fill_on_device = None

    def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
        out[...] = -rows[:, None]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.sets(st.integers(0, 29)), st.integers(0, 30), st.integers(0, 30))
def test_touched_records_over_initial_ones(touched, first, last):
    rows = np.array(sorted(touched), np.int64)
    records = np.repeat(rows[:, None] + 100.0, 2, axis=1).astype(np.float32)
    source = TouchedRecords(Init(), rows, lambda begin, end: records[begin:end], 2)
    first, last = sorted((first, last))
    expected = [row + 100 if row in touched else -row for row in range(first, last)]
    assert source.between(first, last).tolist() == [[value, value] for value in expected]


def table(first_row: int, num_rows: int, weighted: bool = True) -> FullTable:
    """Records are numbered row by row: 2 columns of the weight, a pooling weight if ``weighted``, the state."""
    layout = RecordLayout(2, "adagrad", weighted)
    records = np.arange(20 * layout.width, dtype=np.float32).reshape(20, layout.width)

    class All:
        def between(self, first: int, last: int) -> np.ndarray:
            return records[first:last]

    return FullTable("emb_l.1.weight", "v_W_l.1", first_row, num_rows, layout, All())


def test_parameters_are_columns_of_the_tables_own_rows(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 2 * 24)  # two records of six columns
    parameters = table(3, 5).parameters()
    assert {name: tensor.shape for name, tensor in parameters.items()} == {"emb_l.1.weight": (5, 2), "v_W_l.1": (5,)}
    pieces = list(parameters["emb_l.1.weight"].pieces())
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert np.concatenate(pieces).tolist() == [[6 * row, 6 * row + 1] for row in range(3, 8)]
    assert np.concatenate(list(parameters["v_W_l.1"].pieces())).tolist() == [6 * row + 2 for row in range(3, 8)]


def test_a_table_without_pooling_weights_has_one_parameter():
    assert table(0, 2, weighted=False).parameters().keys() == {"emb_l.1.weight"}


@pytest.mark.parametrize(("width", "rows"), [(16, 1 << 18), (1 << 22, 1), (1 << 23, 1)])
def test_rows_of_a_piece(width, rows):
    assert chunk_rows(width) == rows


def test_tables_follow_each_other_in_their_group():
    options = resolved(
        "--data=zipf:samples=100", "--arch-embedding-size=400-30-900", "--arch-mlp-bot=3-8", "--arch-mlp-top=4-1",
        "--md-flag", "--md-threshold=100",
    )  # fmt: skip
    architecture = build_architecture(options.model, options.optimisation)
    sources = [object() for _ in architecture.groups]
    found = full_tables(architecture, sources)
    for layout, group, source in zip(architecture.layouts, architecture.groups, sources, strict=True):
        tables = [one for one in found if one.group is source]
        assert [(one.name, one.num_rows, one.layout) for one in tables] == [(t.name, t.num_rows, layout) for t in group]
        assert [one.first_row for one in tables] == [0, *np.cumsum([t.num_rows for t in group])[:-1].tolist()]
    assert len({id(one.group) for one in found}) > 1


def test_the_current_records_of_a_cache_before_training_are_initial():
    cache = one_group((30, 10), RecordLayout(2, "sgd"), 8)
    (records,) = current_records(cache)
    expected = np.empty((40, 2), np.float32)
    cache.groups[0].init.fill(np.arange(40), expected)
    assert (records.between(0, 40) == expected).all()
