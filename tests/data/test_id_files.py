"""Three forms of the same ids give the same batches; bags that cannot be are named by sample and table."""

import re

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data import id_files
from cachedlrm.data.npy import NpySource
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from support.samples import joined, refused, same, write_ids, write_npy

COUNT, TABLES = 40, 3


def opened(folder, table_rows=None, max_ind_range=-1) -> NpySource:
    return open_dataset(f"npy:{folder}", None, DataRequest(table_rows, None, 1, max_ind_range)).train


def ragged(seed: int = 1) -> list[list[list[int]]]:
    """Ids of each sample and table: empty bags, bags of one id many times, and one as long as its table."""
    rng = np.random.default_rng(seed)
    bags = [[rng.integers(0, 9, rng.integers(0, 5)).tolist() for _ in range(TABLES)] for _ in range(COUNT)]
    bags[3] = [[], [], []]
    bags[17][1] = [4] * 30
    bags[COUNT - 1][2] = list(range(9))
    return bags


def test_ragged_bags_are_those_that_were_written(tmp_path):
    bags = ragged()
    write_ids(tmp_path, bags)
    source = opened(tmp_path)
    most = [max(len(sample[table]) for sample in bags) for table in range(TABLES)]
    assert source.max_lookups_per_bag == tuple(most)
    assert source.table_rows == tuple(max(max(sample[table], default=-1) for sample in bags) + 1 for table in range(3))
    first_rows = np.cumsum([0, *source.table_rows])
    for start, stop in ((0, COUNT), (3, 4), (16, 18), (COUNT - 1, COUNT), (7, 7)):
        batch = source.read(start, stop)
        expected = [bag for sample in bags[start:stop] for bag in sample]
        assert np.diff(batch.offsets).tolist() == [len(bag) for bag in expected]
        tables = np.repeat(np.arange(len(expected)) % TABLES, np.diff(batch.offsets))
        assert (batch.rows - first_rows[tables]).tolist() == [id_ for bag in expected for id_ in bag]


def test_files_of_every_form_are_one_stream(tmp_path):
    fixed = np.arange(COUNT * 3).reshape(COUNT, 3) % 7
    write_npy(tmp_path, "day_0", COUNT, sparse=fixed)
    write_ids(tmp_path, [[[id_] for id_ in sample] for sample in fixed], "day_1")
    write_ids(tmp_path, [[[id_] for id_ in sample] for sample in fixed], "day_2", multi_hot=True)
    source = opened(tmp_path)
    parts = [source.read(day * COUNT, (day + 1) * COUNT) for day in range(3)]
    assert all((part.rows == parts[0].rows).all() and (part.offsets == parts[0].offsets).all() for part in parts[1:])
    assert same(source.read(COUNT - 5, 2 * COUNT + 5), joined(joined(source.read(COUNT - 5, COUNT), parts[1]),
                                                             source.read(2 * COUNT, 2 * COUNT + 5)))  # fmt: skip


def test_multi_hot_members_are_bags_of_one_size(tmp_path):
    rng = np.random.default_rng(2)
    sizes, rows = (3, 1, 0, 4), (9, 5, 1, 7)
    bags = [[rng.integers(0, n, size).tolist() for size, n in zip(sizes, rows, strict=True)] for _ in range(COUNT)]
    write_ids(tmp_path / "fixed", bags, multi_hot=True)
    write_ids(tmp_path / "ragged", bags)
    source, other = opened(tmp_path / "fixed"), opened(tmp_path / "ragged")
    assert source.max_lookups_per_bag == other.max_lookups_per_bag == sizes
    assert source.table_rows == other.table_rows == rows  # a table without ids has one row
    assert same(source.read(5, 31), other.read(5, 31))
    assert opened(tmp_path / "fixed", None, 4).table_rows == (4, 4, 1, 4)
    assert same(opened(tmp_path / "fixed", None, 4).read(0, 9), opened(tmp_path / "ragged", None, 4).read(0, 9))


def test_only_what_a_batch_needs_is_read(tmp_path):
    bags = [[[1, 2], [0]]] * 1000
    write_ids(tmp_path, bags)
    source = opened(tmp_path, (5, 5))
    path = tmp_path / "day_0_sparse_values.npy"
    values = np.load(path)
    values[1500:1503] = -7  # of sample 500
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - values.nbytes)
        file.write(values.data)
    assert source.read(490, 500).num_samples == 10
    with pytest.raises(UserError, match=r"day_0_sparse_offsets\.npy: sample 500, table 0: id -7 is negative"):
        source.read(499, 502)
    assert isinstance(source._triples[0].ids._values, np.memmap)
    assert isinstance(source._triples[0].ids._offsets, np.memmap)


def test_large_files_are_looked_through_in_pieces(tmp_path, monkeypatch):
    bags = ragged()
    write_ids(tmp_path, bags)
    write_ids(tmp_path, [[sample[0], sample[1], [5]] for sample in bags], "day_1")
    rows, most = opened(tmp_path).table_rows, opened(tmp_path).max_lookups_per_bag
    monkeypatch.setattr(id_files, "_OFFSETS_AT_A_TIME", 7)
    monkeypatch.setattr(id_files, "_CHUNK_LOOKUPS", 11)
    again = opened(tmp_path)
    assert (again.table_rows, again.max_lookups_per_bag) == (rows, most)
    chunks = list(again._triples[0].ids.chunks())
    assert [start for start, _ in chunks[1:]] == [stop for _, stop in chunks[:-1]]
    assert (chunks[0][0], chunks[-1][1]) == (0, COUNT)
    assert len(chunks) > 10


def test_ids_out_of_range_are_named_in_their_bag(tmp_path):
    bags = ragged()
    bags[21][2] = [3, 11, 2]
    write_ids(tmp_path, bags)
    with pytest.raises(UserError, match=r"sample 21, table 2: id 11 is outside 0\.\.8; .*--arch-embedding-size"):
        opened(tmp_path, (9, 9, 9)).read(20, 30)
    assert opened(tmp_path, None, 9).read(20, 30).num_samples == 10
    bags[21][2] = [3, 2**40]
    write_ids(tmp_path, bags, dtype=np.int64)
    words = "day_0_sparse_offsets.npy: sample 21, column 2 holds id 1099511627776, "
    assert words in refused(f"npy:{tmp_path}")


def test_a_prefix_is_held_out_and_ids_are_folded_to_their_rows(tmp_path):
    bags = ragged()
    write_ids(tmp_path, bags)
    write_ids(tmp_path, [[[50], [2], []]] * 5, "day_23")
    data = open_dataset(f"npy:{tmp_path}:test=day_23", None, DataRequest(None, None, 1, -1))
    assert (data.train.num_samples, data.test.num_samples, data.train.table_rows) == (COUNT, 5, (51, 9, 9))
    rows = (7, 4, 3)
    folded = open_dataset(f"npy:{tmp_path}:fold=rows:test=day_23", None, DataRequest(rows, None, 1, -1))
    assert folded.test.read(0, 1).rows.tolist() == [50 % 7, 7 + 2]
    ids = folded.train.read(17, 18).rows.tolist()
    expected = [first + id_ % n for first, n, bag in zip((0, 7, 11), rows, bags[17], strict=True) for id_ in bag]
    assert ids == expected
    for end, words in (
        (":test=day_2", "day_2_dense.npy is not there"),
        (":fold=3", "test=PREFIX or only=PREFIX, and fold=rows, can follow the folder, each once"),
        (":test=day_0:test=day_23", "each once"),
    ):
        assert words in refused(f"npy:{tmp_path}{end}")
    (tmp_path / "one").mkdir()
    write_ids(tmp_path / "one", bags)
    assert "day_0_dense.npy is all there is to train" in refused(f"npy:{tmp_path / 'one'}:test=day_0")


def test_tables_that_no_bag_uses_have_a_row(tmp_path):
    write_ids(tmp_path, [[[], []]] * 5)
    source = opened(tmp_path)
    assert (source.table_rows, source.max_lookups_per_bag) == ((1, 1), (0, 0))
    assert source.read(1, 4).offsets.tolist() == [0] * 7


OFFSETS = np.array([0, 2, 2, 5, 6, 6, 9], np.int64)  # three samples in two tables


@pytest.mark.parametrize(
    ("offsets", "words"),
    [
        ([0, 2, 2, 5, 4, 6, 9], "sample 1, table 1: its ids begin at 5 and end at 4; offsets never fall"),
        ([0, 2, 2, 5, 12, 6, 9], "sample 1, table 1: its ids end at 12 and .*values.npy holds 9"),
        ([0, 2, -2, 5, 6, 6, 9], "sample 0, table 1: its ids begin at 2 and end at -2"),
        ([-1, 2, 2, 5, 6, 6, 9], "sample 0, table 0: its ids begin at -1, not at 0"),
        ([1, 2, 2, 5, 6, 6, 9], "sample 0, table 0: its ids begin at 1, not at 0"),
        ([0, 2, 2, 5, 6, 6, 8], "sample 2, table 1: its ids end at 8 and .*values.npy holds 9"),
        ([0, 2, 2, 5, 6, 6, 10], "sample 2, table 1: its ids end at 10 and .*values.npy holds 9"),
        ([0, 2, 2, 5, 6, 9], "ends early, at sample 2, table 1: it has 6 offsets, and 3 samples of 2 tables need 7"),
        ([0, 9], "ends early, at sample 1, table 0: it has 2 offsets, and 3 samples of 1 tables need 4"),
        ([0], "ends early, at sample 0, table 0"),
        ([], "ends early, at sample 0, table 0"),
        ([[0, 2, 2, 5, 6, 6, 9]], r"is int64 \[1, 7\] where int64 \[N \* tables \+ 1\] is needed"),
        ([0.0, 2, 2, 5, 6, 6, 9], "is float64"),
    ],
)
def test_offsets_that_cannot_be_are_refused_by_sample_and_table(tmp_path, offsets, words):
    write_npy(tmp_path, count=3, sparse_values=np.arange(9, dtype=np.int32), sparse_offsets=OFFSETS)
    (tmp_path / "day_0_sparse.npy").unlink()
    assert opened(tmp_path).max_lookups_per_bag == (3, 3)
    np.save(tmp_path / "day_0_sparse_offsets.npy", np.array(offsets, np.int64 if offsets == [] else None))
    message = refused(f"npy:{tmp_path}")
    assert "day_0_sparse_offsets.npy" in message
    assert re.search(words, message), message


def test_a_batch_checks_offsets_that_no_pass_has_seen(tmp_path):
    write_npy(tmp_path, count=3, sparse_values=np.arange(9, dtype=np.int32), sparse_offsets=OFFSETS)
    (tmp_path / "day_0_sparse.npy").unlink()
    file = opened(tmp_path)._triples[0].ids
    for wrong in (1, 99):
        file._offsets = OFFSETS.copy()
        file._offsets[3] = wrong
        file.read(0, 1)
        with pytest.raises(UserError, match="sample 1, table 0: its ids"):
            file.read(0, 2)


def test_members_that_cannot_be_are_refused(tmp_path):
    write_npy(tmp_path, count=3)
    (tmp_path / "day_0_sparse.npy").unlink()
    good = np.zeros((3, 2), np.int32)
    for members, words in (
        ({"0": good, "2": good}, "has a member 2 among 2; its members are those of the tables, 0, 1, 2"),
        ({}, "has no member 0"),
        ({"0": good, "1": good.ravel()}, "npz, member 1 is int32 [6] where int32 [N, ids of a bag] is needed"),
        ({"0": good, "1": good[:2]}, "npz, member 1 has 2 samples but the dense features beside it 3"),
        ({"0": good, "1": good.astype(np.float32)}, "npz, member 1 is float32"),
        ({"0": good.astype(np.int64), "1": good.astype(np.uint64)}, "members of int64 and of uint64"),
    ):
        np.savez(tmp_path / "day_0_sparse_multi_hot.npz", **members)
        assert words in refused(f"npy:{tmp_path}")


def test_two_forms_of_the_same_samples_are_refused(tmp_path):
    write_ids(tmp_path, ragged()[:10])
    write_npy(tmp_path)
    assert "day_0_sparse.npy and " in (message := refused(f"npy:{tmp_path}"))
    assert "in two forms; remove one" in message
    (tmp_path / "day_0_sparse.npy").unlink()
    (tmp_path / "day_0_sparse_values.npy").unlink()
    assert "day_0_sparse_values.npy is missing" in refused(f"npy:{tmp_path}")


def test_files_of_other_tables_are_refused(tmp_path):
    write_npy(tmp_path)
    write_ids(tmp_path, [sample[:2] for sample in ragged()[:10]], "day_1")
    message = refused(f"npy:{tmp_path}")
    assert "day_1_sparse_offsets.npy has 2 columns but" in message
    assert "day_0_sparse.npy has 3" in message
