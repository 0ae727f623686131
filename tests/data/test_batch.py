"""A batch from ids of its tables, what is refused in it, and sources around sources."""

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, IdAdvice, KnownRows, RoundedTargets, WatchedSource, make_batch

TABLE_ROWS = (5, 3)
OFFSETS = np.array([0, 2, 2, 3, 4])  # two samples; sample 0 has no id in table 1


def make(ids=(4, 0, 1, 2), dense=((1, 2), (3, 4)), labels=(0, 1)) -> Batch:
    arrays = np.array(dense, np.float32), np.array(ids), OFFSETS, np.array(labels, np.float32)
    return make_batch(*arrays, TABLE_ROWS, where="day", first_sample=100, advice=IdAdvice("count from 0", "raise"))


def test_rows_are_global():
    batch = make()
    assert batch.rows.tolist() == [4, 0, 1, 5 + 2]
    assert batch.num_samples == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": (4, 5, 1, 2)}, "day: sample 100, table 0: id 5 is outside 0..4; raise"),
        ({"ids": (4, 0, 1, 3)}, "day: sample 101, table 1: id 3 is outside 0..2; raise"),
        ({"ids": (4, 0, -1, 2)}, "day: sample 101, table 0: id -1 is outside 0..4; count from 0"),
        ({"dense": ((1, 2), (3, np.nan))}, "day: sample 101: dense feature 1 is nan; replace NaN and infinities"),
        ({"labels": (np.inf, 0)}, "day: sample 100: label is inf; replace NaN and infinities"),
        ({"labels": (0, 1.5)}, "day: sample 101: label is 1.5; labels are 0 to 1, correct the data"),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(UserError) as refused:
        make(**changes)
    assert str(refused.value).startswith(message)


class Halves:
    """Four samples with labels 0, 0.5, 0.75 and 1."""

    table_rows, num_dense, max_lookups_per_bag, num_samples, pieces = TABLE_ROWS, 0, (1, 1), 4, None
    has_labels = True

    def read(self, start: int, stop: int) -> Batch:
        labels = np.array([0, 0.5, 0.75, 1], np.float32)[start:stop]
        return Batch(np.zeros((len(labels), 0), np.float32), np.zeros(0, np.int64), np.zeros(9, np.int64), labels)


def test_targets_are_rounded_halves_to_zero():
    source = RoundedTargets(Halves())
    assert (source.table_rows, source.num_samples, source.max_lookups_per_bag) == (TABLE_ROWS, 4, (1, 1))
    assert source.read(1, 4).labels.tolist() == [0, 1, 1]


def test_rows_beyond_smaller_tables_are_row_0():
    class Ids(Halves):
        def read(self, start: int, stop: int) -> Batch:
            return make()

    source = KnownRows(Ids(), (4, 2))
    batch = source.read(0, 2)
    assert source.table_rows == (4, 2)
    assert batch.rows.tolist() == [0, 0, 1, 4 + 0]
    assert KnownRows(Ids(), (4, 3)).read(0, 2).rows.tolist() == [0, 0, 1, 4 + 2]
    assert batch.offsets is OFFSETS


def test_a_watched_source_tells_how_far_it_was_read():
    told: list[float] = []
    source = WatchedSource(Halves(), told.append)
    assert source.read(0, 2).num_samples == 2
    source.read(2, 4)
    assert told == [0, 0.5]


def test_make_batch_checks_multi_hot_bags():
    offsets = np.array([0, 2, 2, 3, 4])  # two samples of two tables
    dense, labels = np.zeros((2, 1), np.float32), np.zeros(2, np.float32)
    batch = make_batch(dense, np.array([0, 4, 1, 2]), offsets, labels, (5, 3), where="x", first_sample=0)
    assert batch.rows.tolist() == [0, 4, 1, 7]
    with pytest.raises(UserError, match="sample 101, table 1: id 3"):
        make_batch(dense, np.array([0, 4, 1, 3]), offsets, labels, (5, 3), where="x", first_sample=100)
    with pytest.raises(UserError, match="sample 101: label is nan"):
        make_batch(
            dense,
            np.array([0, 4, 1, 2]),
            offsets,
            np.array([0, np.nan], np.float32),
            (5, 3),
            where="x",
            first_sample=100,
        )


def test_labels_beyond_one_are_refused():
    dense, offsets = np.zeros((2, 1), np.float32), np.arange(3)
    with pytest.raises(UserError, match="sample 1: label is 7"):
        make_batch(dense, np.array([0, 1]), offsets, np.array([0, 7], np.float32), (5,), where="x", first_sample=0)
