"""``--data parquet:PATH`` beside the same samples as npy files, and one line for what it cannot take."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from cachedlrm.base.errors import UserError
from cachedlrm.data import parquet
from cachedlrm.data.open import open_dataset
from cachedlrm.data.parquet import ParquetSource
from cachedlrm.data.spec import DataRequest
from support.runs import one_line, train
from support.samples import ANY, same, write_ids

COUNT, ROWS = 1100, (400, 30, 900, 2)
RANDOM = np.random.default_rng(5)
DENSE = RANDOM.normal(size=(COUNT, 3)).astype(np.float32)
IDS = (RANDOM.random((COUNT, 4)) ** 2 * np.array(ROWS)).astype(np.int32)
LABELS = RANDOM.integers(0, 2, COUNT).astype(np.int32)


def table(**changes) -> pa.Table:
    """The samples, in columns of several types; None leaves a column out."""
    columns = {
        "user": pa.array(IDS[:, 0], pa.int64()),
        "price": DENSE[:, 0],
        "label": pa.array(LABELS, pa.int8()),
        "ad.id": pa.array(IDS[:, 1], pa.uint16()).dictionary_encode(),
        "age": pa.array(DENSE[:, 1]).cast(pa.float64()),
        "item": pa.array(IDS[:, 2], pa.uint64()),
        "rate": DENSE[:, 2],
        "mobile": pa.array(IDS[:, 3] == 1),
    }
    return pa.table({name: values for name, values in (columns | changes).items() if values is not None})


def write(path: Path, data: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(data, path, **({"row_group_size": 130} | options))
    return path


def write_npy(folder: Path) -> Path:
    folder.mkdir()
    np.save(folder / "dense.npy", DENSE)
    np.save(folder / "sparse.npy", IDS)
    np.save(folder / "labels.npy", LABELS[:, None])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The samples in two Parquet files, part-2 and part-10, beside a note of the writer's; and as npy files."""
    path = tmp_path_factory.mktemp("data")
    write(path / "parquet" / "part-2.parquet", table().slice(0, 470))
    write(path / "parquet" / "part-10.parquet", table().slice(470), row_group_size=10_000)
    (path / "parquet" / "_SUCCESS").touch()
    write_npy(path / "npy")
    return path


def open_source(spec: str, max_ind_range: int = -1, table_rows: tuple[int, ...] | None = None) -> ParquetSource:
    source = open_dataset(spec, None, DataRequest(table_rows, None, 1, max_ind_range)).train
    assert isinstance(source, ParquetSource)
    return source


# --- as npy files


def test_any_range_reads_as_from_npy_files(folder):
    ours = open_source(f"parquet:{folder / 'parquet'}")
    theirs = open_dataset(f"npy:{folder / 'npy'}", None, DataRequest(None, None, 1, -1)).train
    assert ours.table_rows == theirs.table_rows
    assert (ours.num_samples, ours.num_dense) == (COUNT, 3)
    ranges = [(0, COUNT), (0, 1), (129, 131), (1000, 1100), (460, 480), (100, 900), (7, 7), (470, 471), (0, 300)]
    for start, stop in ranges:
        for one, other in zip(
            vars(ours.read(start, stop)).items(), vars(theirs.read(start, stop)).items(), strict=True
        ):
            assert one[0] == other[0]
            assert one[1].dtype == other[1].dtype
            assert one[1].tobytes() == other[1].tobytes()


@pytest.mark.parametrize("policy", ["lrfu", "oracle"])
def test_runs_have_the_bits_of_npy_files(folder, tmp_path, policy):
    ends = []
    for name in ("parquet", "npy"):
        run = tmp_path / name
        options = ["--arch-embedding-size=400-30-900-2", "--gpu-cache-ratio=0.2", "--print-freq=1", "--nepochs=2"]
        data = [f"--data={name}:{folder / name}", f"--test-data={name}:{folder / name}", f"--policy={policy}"]
        assert train(run, *data, *options) == 0
        report = json.loads((run / "report.json").read_text())
        assert report["evicted_rows"] > 0
        tensors = {key: value.tobytes() for key, value in load_file(run / "final.safetensors").items()}
        ends.append((report["losses"], report["auc"], report["fetched_rows"], tensors))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("statistics", [True, False, ["user", "item"]])
@pytest.mark.parametrize("max_ind_range", [-1, 100, 394, 10**6])  # folded by 394, no user is 393
def test_rows_are_those_of_the_largest_ids(tmp_path, statistics, max_ind_range):
    path = write(tmp_path / "a.parquet", table(), write_statistics=statistics)
    source = open_source(f"parquet:{path}", max_ind_range)
    folded = IDS % max_ind_range if max_ind_range > 0 else IDS
    assert source.table_rows == tuple(int(largest) + 1 for largest in folded.max(axis=0))
    first_rows = np.cumsum([0, *source.table_rows[:-1]])
    assert source.read(0, COUNT).rows.reshape(-1, 4).tolist() == (folded + first_rows).tolist()


def test_ids_beyond_int64_are_folded(tmp_path):
    ids = np.array([2**64 - 1, 5, 2**63], np.uint64)
    path = write(tmp_path / "a.parquet", pa.table({"label": [0, 1, 1], "d": [0.5, 1.0, 2.0], "s": ids}))
    assert open_source(f"parquet:{path}", 1000).read(0, 3).rows.tolist() == [int(value) % 1000 for value in ids]
    with pytest.raises(UserError, match=r"ids up to 18446744073709551615, .* fold ids with --max-ind-range 2147483647"):
        open_source(f"parquet:{path}")


def test_held_out_samples_widen_the_tables_and_take_the_columns_named(tmp_path):
    data = table(label=None, click=LABELS, other=IDS[:, 0])
    train_path = write(tmp_path / "a.parquet", data)
    larger = IDS[:, 0].astype(np.int64) + 1000
    test_path = write(tmp_path / "b.parquet", data.set_column(0, "user", pa.array(larger)))
    named = f"parquet:{train_path}:label=click:dense=rate,price:sparse=user,mobile"
    dataset = open_dataset(named, f"parquet:{test_path}", DataRequest(None, None, 1, -1))
    assert dataset.train.table_rows == dataset.test.table_rows == (larger.max() + 1, 2)
    batch = dataset.test.read(3, 9)
    assert batch.rows.reshape(-1, 2)[:, 0].tolist() == larger[3:9].tolist()
    assert batch.dense.tolist() == DENSE[3:9, [2, 0]].tolist()
    assert batch.labels.tolist() == LABELS[3:9].tolist()


# --- columns


@pytest.mark.parametrize("name", ["user", "a.user"])
@pytest.mark.parametrize("is_last", [True, False])
def test_a_column_beside_others_of_its_name_is_read(tmp_path, name, is_last):
    others = {"a": pa.array([{"user": 7000}] * COUNT), "user.id": LABELS}
    data = table(user=None).append_column(name, pa.array(IDS[:, 0]))
    for other, values in others.items():
        data = data.add_column(0 if is_last else len(data.schema), other, pa.array(values))
    path = write(tmp_path / "a.parquet", data)
    source = open_source(f"parquet:{path}:sparse={name}")
    assert source.table_rows == (IDS[:, 0].max() + 1,)
    assert source.read(0, COUNT).rows.tolist() == IDS[:, 0].tolist()


# --- one line


def put(column: str, row: int, value: object) -> pa.Table:
    """The samples with one value changed."""
    values = table()[column].to_pylist()
    values[row] = value
    kind = pa.int64() if column in ("user", "label") else pa.float64()
    return table(**{column: pa.array(values, kind)})


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (put("user", 200, -1), "a.parquet: row 201: user: id -1 is negative; correct the data"),
        (put("age", 0, float("nan")), "a.parquet: row 1: age is nan, which is not a finite float32"),
        (put("age", 131, 1e300), "a.parquet: row 132: age is 1e+300, which is not a finite float32"),
        (put("label", 500, None), "a.parquet: row 501: label is missing (null)"),
        (put("label", 500, 3), "a.parquet: row 501: label is 3.0; labels are 0 to 1"),
    ],
)
def test_values_that_are_none_are_named(tmp_path, data, words, statistics):
    path = write(tmp_path / "a.parquet", data, write_statistics=statistics)
    with pytest.raises(UserError) as error:
        open_source(f"parquet:{path}", table_rows=(400, 30, 900, 2)).read(0, COUNT)
    assert words in str(error.value)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("max_ind_range", [-1, 9])
def test_a_missing_id_is_an_empty_bag_and_a_missing_number_zero(tmp_path, statistics, max_ind_range):
    missing = RANDOM.random((COUNT, 4)) < [0.3, 0, 1, 0.01]
    columns = {}
    for name, table_, kind in (("user", 0, pa.int64()), ("item", 2, pa.uint64()), ("mobile", 3, pa.bool_())):
        columns[name] = pa.array(IDS[:, table_], mask=missing[:, table_]).cast(kind)
    columns["price"] = pa.array(DENSE[:, 0], mask=missing[:, 0])
    path = write(tmp_path / "a.parquet", table(**columns), write_statistics=statistics)
    source = open_source(f"parquet:{path}", max_ind_range)
    order = [0, 1, 2, 3]  # user, ad.id, item, mobile
    folded = IDS % max_ind_range if max_ind_range > 0 else IDS
    largest = np.where(missing, -1, folded).max(axis=0)
    assert source.table_rows == tuple(max(1, count + 1) for count in largest[order])
    first_rows = np.cumsum([0, *source.table_rows[:-1]])
    for start, stop in ((0, COUNT), (120, 140), (5, 5)):
        batch = source.read(start, stop)
        there = ~missing[start:stop]
        assert batch.rows.tolist() == (folded + first_rows)[start:stop][there].tolist()
        assert np.diff(batch.offsets).tolist() == there.ravel().tolist()
        assert batch.dense[:, 0].tolist() == np.where(missing[start:stop, 0], 0, DENSE[start:stop, 0]).tolist()


def test_missing_ids_train_with_the_bits_of_a_resident_run(tmp_path):
    mask = RANDOM.random(COUNT) < 0.3
    path = write(tmp_path / "a.parquet", table(user=pa.array(IDS[:, 0], mask=mask), label=pa.array(LABELS)))
    losses = []
    for name, options in (("resident", []), ("cached", ["--gpu-cache-ratio=0.3"])):
        assert train(tmp_path / name, f"--data=parquet:{path}", "--print-freq=1", "--nepochs=2", *options) == 0
        losses.append(json.loads((tmp_path / name / "report.json").read_text()))
    assert losses[0]["losses"] == losses[1]["losses"]
    assert losses[1]["evicted_rows"] > 0


def test_labels_and_dense_features_may_be_missing(tmp_path):
    data = table(label=None, price=None, age=None, rate=None)
    path = write(tmp_path / "a.parquet", data)
    dataset = open_dataset(f"parquet:{path}", None, DataRequest(None, None, 1, -1, needs_labels=False))
    assert (dataset.train.num_dense, dataset.train.has_labels) == (0, False)
    batch = dataset.train.read(100, 300)
    assert batch.dense.shape == (200, 0)
    assert not batch.labels.any()
    with pytest.raises(UserError, match="no column label in it"):
        open_source(f"parquet:{path}")
    with pytest.raises(UserError, match="no such label in it"):
        open_dataset(f"parquet:{path}:label=click", None, DataRequest(None, None, 1, -1, needs_labels=False))


@pytest.mark.parametrize(("column", "value"), [("user", -1), ("label", None)])
def test_what_the_statistics_tell_shows_at_once(tmp_path, column, value):
    path = write(tmp_path / "a.parquet", put(column, 700, value))
    with pytest.raises(UserError, match=f"row 701: {column}"):
        open_source(f"parquet:{path}")  # reads no sample


@pytest.mark.parametrize(
    ("data", "named", "words"),
    [
        (table(label=None), "", "no column label in it; there are user, price, ad.id, age, item, rate, mobile: name"),
        (table(), ":label=label:label=user", "label is given more than once"),
        (table(), ":sparse=user,none", "a.parquet has no column none; there are user, price"),
        (table().slice(0, 0), "", "no rows in it; name another file"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, capsys, data, named, words):
    path = write(tmp_path / "a.parquet", data)
    assert words in one_line(capsys, train(tmp_path / "run", f"--data=parquet:{path}{named}"))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("parquet:", "unknown source; there are .* parquet:PATH and reference"),
        ("parquet:{}/none", "--data parquet:.*/none: .*/none: no such file or folder"),
        ("parquet:{}/npy", "dense.npy is not a Parquet file, or damaged: .*magic bytes not found.*; write it again"),
        ("parquet:{}/empty", "empty/part is not a Parquet file, or damaged: .*size is 0 bytes"),
        ("parquet:{}/notes", "--data parquet:.*/notes: no files in this folder"),
        ("parquet:{}/mixed", "mixed/b has no column age; there are label, price: name others"),
    ],
)
def test_files_that_are_none_are_refused(folder, spec, words):
    for name in ("empty", "notes", "mixed"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "empty" / "part").touch()
    (folder / "notes" / "_SUCCESS").touch()
    write(folder / "mixed" / "a", table())
    write(folder / "mixed" / "b", table().select(["label", "price"]))
    with pytest.raises(UserError, match=words) as error:
        open_source(spec.format(folder))
    assert str(error.value).isprintable()


def test_a_file_that_is_cut_off_or_changed_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", table(), write_page_checksum=True)
    whole = path.read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 9):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"a\.parquet (is not a Parquet file, or damaged|cannot be read): "):
            open_source(f"parquet:{path}")
    source = open_source(f"parquet:{write(path, table(), write_page_checksum=True)}")
    changed = bytearray(whole)
    changed[len(whole) // 3] ^= 16
    path.write_bytes(changed)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read: .*crc checksum"):
        source.read(0, COUNT)


@pytest.mark.parametrize(
    ("rows", "words"), [(b"\x9a\x11", "user is cut off"), (b"\x97\x11", "row group 0 has a number of rows below 0")]
)
def test_a_row_group_that_claims_rows_it_does_not_have_is_named(tmp_path, rows, words):
    path = write(tmp_path / "a.parquet", table(), row_group_size=COUNT)
    before, number, after = path.read_bytes().rpartition(b"\x98\x11")  # 1100 as Thrift writes it: the group's rows
    assert number
    path.write_bytes(before + rows + after)
    with pytest.raises(UserError, match=rf"a\.parquet is damaged: {words}; write it again"):
        open_source(f"parquet:{path}", table_rows=ROWS).read(0, 1)


def test_damaged_footers_end_in_one_line(tmp_path):
    path = write(tmp_path / "a.parquet", table())
    whole, random = path.read_bytes(), np.random.default_rng(2)
    refused = 0
    for _ in range(60):
        changed = bytearray(whole)
        changed[random.integers(len(whole) - 3000, len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            source = open_source(f"parquet:{path}")
            source.read(0, source.num_samples)
        except UserError as error:
            refused += str(error).isprintable()
    assert refused > 20


@pytest.mark.parametrize("changed", ["gone", "shorter"])
def test_a_file_that_changes_meanwhile_is_named(tmp_path, changed):
    path = write(tmp_path / "a.parquet", table())
    source = open_source(f"parquet:{path}")
    source.read(0, 10)
    if changed == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"a\.parquet (is not a Parquet file, or damaged|cannot be read): "):
        source.read(900, 1000)


def test_an_id_outside_its_table_is_named(tmp_path):
    path = write(tmp_path / "a.parquet", table())
    source = open_source(f"parquet:{path}", table_rows=(400, 30, 5, 2))
    row = int((IDS[:, 2] > 4).argmax())
    with pytest.raises(
        UserError, match=r"item: id \d+ is outside 0\.\.4; .* raise that entry of --arch-embedding-size"
    ):
        source.read(row, row + 1)
    with pytest.raises(
        UserError, match=r"--arch-embedding-size has 2 tables but --data parquet:.* has 4 sparse columns"
    ):
        open_source(f"parquet:{path}", table_rows=(5, 5))


def test_the_package_is_named_where_it_is_missing(folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else found(name))
    with pytest.raises(UserError, match=r"needs the package pyarrow: pip install 'cachedlrm\[prepare\]'"):
        open_source(f"parquet:{folder / 'parquet'}")


# --- memory


def test_a_pass_decodes_each_row_group_once_and_keeps_two(folder, monkeypatch):
    decoded = []
    decode = ParquetSource._decode

    def counted(self, number):
        decoded.append(self._groups[number])
        return decode(self, number)

    monkeypatch.setattr(parquet.ParquetSource, "_decode", counted)
    source = open_source(f"parquet:{folder / 'parquet'}")
    starts = list(range(0, COUNT, 100))
    for order in (starts, starts[::-1]):
        decoded.clear()
        source._decoded.clear()
        for start in order:
            source.read(start, min(start + 100, COUNT))
            assert len(source._decoded) <= 2
        assert [len(group) for group in decoded] == (
            [130, 130, 130, 80, 630] if order == starts else [630, 80, 130, 130, 130]
        )


def test_row_groups_that_do_not_fit_into_memory_are_refused(folder, monkeypatch):
    monkeypatch.setattr(parquet, "free_host_bytes", lambda: 10_000)
    with pytest.raises(UserError, match=r"two row groups of 630 rows take 39\.4 KiB of memory and 9\.8 KiB are free"):
        open_source(f"parquet:{folder / 'parquet'}")


LISTS = [RANDOM.integers(0, 50, RANDOM.integers(0, 4)).tolist() for _ in range(COUNT)]
LISTS[3], LISTS[8] = [], [9] * 40


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """A column of lists of any size, and one of lists of two; and the same samples as ragged npy files."""
    path = tmp_path_factory.mktemp("lists")
    pairs = IDS[:, [1, 1]]
    data = table(bags=pa.array(LISTS, pa.list_(pa.int32())), pair=pa.array(pairs.tolist(), pa.list_(pa.int16(), 2)))
    write(path / "parquet" / "part-0", data.slice(0, 500))
    write(path / "parquet" / "part-1", data.slice(500), row_group_size=77)
    bags = [[[id_] for id_ in IDS[n]] + [LISTS[n], pairs[n].tolist()] for n in range(COUNT)]
    write_ids(path / "npy", bags, num_dense=3)
    np.save(path / "npy" / "day_0_dense.npy", DENSE)
    np.save(path / "npy" / "day_0_labels.npy", LABELS[:, None])
    return path


def test_lists_are_ragged_bags(lists):
    ours = open_dataset(f"parquet:{lists / 'parquet'}", None, ANY).train
    theirs = open_dataset(f"npy:{lists / 'npy'}", None, ANY).train
    assert (ours.table_rows, ours.max_lookups_per_bag) == (theirs.table_rows, theirs.max_lookups_per_bag)
    for start, stop in ((0, 40), (120, 300), (495, 505), (COUNT - 1, COUNT), (7, 7)):
        assert same(ours.read(start, stop), theirs.read(start, stop))
    folded = open_dataset(f"parquet:{lists / 'parquet'}", None, DataRequest(None, None, 1, 7)).train
    assert folded.table_rows[4] == 7


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pa.array([*LISTS[:7], [1, -4], *LISTS[8:]], pa.list_(pa.int32())), "row 8: bags: id -4 is negative"),
        (pa.array([["a"]] * COUNT), "bags holds list<element: string>, not numbers"),
        (pa.array([[[1]]] * COUNT), "not numbers"),
        (pa.array(IDS[:, 0]), "bags holds int32 where lists of ids are needed"),
    ],
)
def test_lists_that_cannot_be_are_refused(tmp_path, column, words):
    first = table(bags=pa.array(LISTS)) if "where lists" in words else None
    if first is not None:
        write(tmp_path / "data" / "a", first)
    write(tmp_path / "data" / "b", table(bags=column))
    with pytest.raises(UserError) as caught:
        open_dataset(f"parquet:{tmp_path / 'data'}", None, ANY)
    assert words in str(caught.value), str(caught.value)


def test_missing_lists_are_empty_and_missing_ids_of_lists_are_none(tmp_path):
    holes = [None, [3, None, 1], [None], *LISTS[3:]]
    write(tmp_path / "a", table(bags=pa.array(holes, pa.list_(pa.int32()))), row_group_size=2)
    write(tmp_path / "b", table(bags=pa.array([[], [3, 1], [], *LISTS[3:]], pa.list_(pa.int32()))))
    ours, theirs = (open_dataset(f"parquet:{tmp_path / name}", None, ANY).train for name in "ab")
    assert (ours.table_rows, ours.max_lookups_per_bag) == (theirs.table_rows, theirs.max_lookups_per_bag)
    assert same(ours.read(0, 40), theirs.read(0, 40))


def test_an_id_of_a_list_outside_its_table_is_named(lists):
    source = open_dataset(
        f"parquet:{lists / 'parquet'}", None, DataRequest((400, 30, 900, 2, 9, 30), None, 1, -1)
    ).train
    largest = max(max(bag, default=0) for bag in LISTS[:130])  # of the row group
    row = next(n for n, bag in enumerate(LISTS) if largest in bag)
    with pytest.raises(UserError, match=rf"row {row + 1}: bags: id {largest} is outside 0\.\.8"):
        source.read(0, 100)
