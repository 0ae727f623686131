"""The reference's generated data: its numbers, by a slow model of a few lines and by values copied from it."""

import bisect
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cachedlrm.data.reference as reference_data
from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch
from cachedlrm.data.reference import ReferenceSource
from cachedlrm.data.spec import ReferenceStream

STREAM = ReferenceStream(
    generation="random",
    data_size=50,
    num_batches=0,
    mini_batch_size=8,
    num_indices_per_lookup=10,
    num_indices_per_lookup_fixed=False,
    rand_data_dist="uniform",
    rand_data_min=0.0,
    rand_data_max=1.0,
    rand_data_mu=-1.0,
    rand_data_sigma=1.0,
    data_trace_file="",
    data_trace_enable_padding=False,
    round_targets=False,
    seed=123,
)
TRACE = "7, 4, 9, 2, 11, 30\n0, 1, 3, 4, 5\n0.5, 0.6, 0.8, 0.9, 1.0\n"


def stack_trace(text, uniforms, padding):
    """Ids at the stack distances that ``uniforms`` say; the stack's top is the end of the list."""
    lines = [line.split(", ") for line in text.splitlines()]
    stack, distances, cumulative = (list(map(*pair)) for pair in zip((int, int, float), lines, strict=True))
    new = 0
    for u in uniforms:
        reached = new >= distances[-1]
        least = cumulative[0] if padding and reached else 0.0
        most = 1.0 if reached else cumulative[bisect.bisect_right(distances, new) - 1]
        scaled = (1.0 - least) * u + least if reached else u * most
        distance = next(d for d, f in zip(distances, cumulative, strict=True) if scaled <= f)
        stack.append(stack.pop(0 if distance == 0 else len(stack) - distance))
        new += distance == 0
        yield stack[-1]


def slow_epoch(table_rows, num_dense, stream, trace=TRACE):
    """An epoch as (dense, bags of each sample, labels), by one numpy call for each bag."""
    rng = np.random.RandomState(stream.seed)
    num_samples = stream.num_batches * stream.mini_batch_size or stream.data_size
    dense, labels, bags = [], [], [[] for _ in range(num_samples)]
    for start in range(0, num_samples, stream.mini_batch_size):
        samples = range(start, min(start + stream.mini_batch_size, num_samples))
        dense.append(rng.random_sample((len(samples), num_dense)))
        for rows in table_rows:
            for sample in samples:
                count = stream.num_indices_per_lookup
                if not stream.num_indices_per_lookup_fixed:
                    count = int(np.round(max(1.0, rng.random_sample() * min(rows, count))))
                if stream.generation == "synthetic":
                    ids = stack_trace(trace, rng.random_sample(count), stream.data_trace_enable_padding)
                    bags[sample].append([one % rows for one in sorted(set(ids))])
                elif stream.rand_data_dist == "uniform":
                    bags[sample].append(sorted({round(u * (rows - 1)) for u in rng.random_sample(count)}))
                else:
                    low, high = stream.rand_data_min, stream.rand_data_max
                    mean = (low + high) / 2 if stream.rand_data_mu == -1 else stream.rand_data_mu
                    values = rng.normal(mean, stream.rand_data_sigma, count).clip(low, high)
                    bags[sample].append([int(value) for value in sorted(set(values))])
        labels.append(rng.random_sample(len(samples)).astype(np.float32))
    labels = np.concatenate(labels)
    return np.concatenate(dense).astype(np.float32), bags, np.round(labels) if stream.round_targets else labels


def local_bags(batch, table_rows):
    """Ids local to their table, for each sample, for each table."""
    firsts = np.tile(np.cumsum([0, *table_rows[:-1]]), batch.num_samples)
    bags = [(batch.rows[a:b] - first).tolist() for first, (a, b) in zip(firsts, pairwise(batch.offsets), strict=True)]
    return [bags[start : start + len(table_rows)] for start in range(0, len(bags), len(table_rows))]


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def part(batch: Batch, num_tables: int, start: int, stop: int) -> Batch:
    offsets = batch.offsets[start * num_tables : stop * num_tables + 1]
    rows = batch.rows[offsets[0] : offsets[-1]]
    return Batch(batch.dense[start:stop], rows, offsets - offsets[0], batch.labels[start:stop])


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory):
    """Trace files have relative names, as any j in a path stands for the table's number."""
    with contextlib.chdir(tmp_path_factory.mktemp("traces")):
        for table in range(4):
            Path(f"table_{table}.log").write_text(TRACE)
        yield


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    table_rows=st.lists(st.sampled_from([1, 2, 3, 7, 40, 10**6, 10**12]), min_size=1, max_size=4).map(tuple),
    num_dense=st.integers(0, 5),
    kind=st.sampled_from(["uniform", "gaussian", "synthetic"]),
    data_size=st.integers(1, 40),
    num_batches=st.sampled_from([0, 0, 3]),
    mini_batch_size=st.integers(1, 16),
    lookups=st.sampled_from([1, 2, 3, 10, 50]),
    switches=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    shape=st.tuples(st.sampled_from([-1.0, 0.3, 5.0]), st.sampled_from([0.0, 0.2, 3.0])),
    seed=st.integers(0, 2**32 - 1),
)
def test_kernel_equals_the_slow_model(
    table_rows, num_dense, kind, data_size, num_batches, mini_batch_size, lookups, switches, shape, seed
):
    stream = ReferenceStream(
        generation="synthetic" if kind == "synthetic" else "random",
        data_size=data_size,
        num_batches=num_batches,
        mini_batch_size=mini_batch_size,
        num_indices_per_lookup=lookups,
        num_indices_per_lookup_fixed=switches[0],
        rand_data_dist="gaussian" if kind == "gaussian" else "uniform",
        rand_data_min=-0.5,
        rand_data_max=min(table_rows) - 0.5,
        rand_data_mu=shape[0],
        rand_data_sigma=shape[1],
        data_trace_file="table_j.log",
        data_trace_enable_padding=switches[1],
        round_targets=switches[2],
        seed=seed,
    )
    dense, bags, labels = slow_epoch(table_rows, num_dense, stream)
    source = ReferenceSource(table_rows, num_dense, stream)
    assert source.num_samples == len(labels)
    batch = source.read(0, source.num_samples)
    assert np.array_equal(batch.dense, dense)
    assert batch.dense.dtype == batch.labels.dtype == np.float32
    assert local_bags(batch, table_rows) == bags
    assert np.array_equal(batch.labels, labels)
    sizes = np.diff(batch.offsets).reshape(-1, len(table_rows))
    assert (sizes <= source.max_lookups_per_bag).all()


# Printed by the reference itself (commit 090956e), in its folder:
#   data = dlrm_data_pytorch.RandomDataset(2, numpy.array(table_rows), 5, 0, 3, num_indices_per_lookup, fixed,
#       reset_seed_on_access=True, rand_seed=123, ...)
#   for number in range(2): print(data[number])
GOLDEN = [
    pytest.param(
        (1000, 3),
        {"num_indices_per_lookup": 4},
        [[0.6964691877365112, 0.2861393392086029], [0.0921049416065216, 0.43370118737220764]],
        [
            [[343, 392, 480, 684], [1, 2]],
            [[60, 398, 438], [1]],
            [[175, 182, 531], [1]],
            [[312, 426], [1]],
            [[116, 501, 623, 943], [1, 2]],
        ],
        [0.2282632291316986, 0.2937140464782715, 0.630976140499115, 0.5194851160049438, 0.6128945350646973],
        id="uniform",
    ),
    pytest.param(
        (1000,),
        {"num_indices_per_lookup": 3, "num_indices_per_lookup_fixed": True, "round_targets": True},
        [[0.6964691877365112, 0.2861393392086029], [0.5315513610839844, 0.5318275690078735]],
        [[[480, 684, 980]], [[343, 392, 728]], [[60, 398, 438]], [[610, 722, 724]], [[228, 323, 361]]],
        [1.0, 0.0, 0.0, 0.0, 1.0],
        id="fixed and rounded",
    ),
    pytest.param(
        (1000, 10),
        {"num_indices_per_lookup": 4, "rand_data_dist": "gaussian", "rand_data_max": 9.0, "rand_data_sigma": 3.0},
        [[0.6964691877365112, 0.2861393392086029], [0.630976140499115, 0.0921049416065216]],
        [[[0, 1, 3, 9], [9]], [[2, 4, 8], [5, 6, 9]], [[2], [1, 8]], [[0, 2], [2]], [[4, 9], [0, 4]]],
        [0.36178866028785706, 0.2282632291316986, 0.2937140464782715, 0.9855597615242004, 0.5194851160049438],
        id="gaussian",
    ),
    pytest.param(
        (10, 5),
        {"num_indices_per_lookup": 6, "num_indices_per_lookup_fixed": True, "generation": "synthetic"},
        [[0.6964691877365112, 0.2861393392086029], [0.250455379486084, 0.48303425312042236]],
        [
            [[1, 2, 3, 4, 5], [1, 2, 3, 4, 0]],
            [[1, 2, 3, 4, 5], [1, 2, 3, 4, 0, 1]],
            [[1, 2, 3, 4], [1, 2, 3, 4]],
            [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]],
            [[1, 2, 3, 4], [1, 2, 3, 4]],
        ],
        [0.3172854781150818, 0.4148262143135071, 0.8663091659545898, 0.7234163284301758, 0.016129206866025925],
        id="synthetic",
    ),
]


@pytest.mark.parametrize(("table_rows", "options", "dense", "bags", "labels"), GOLDEN)
def test_values_of_the_reference(table_rows, options, dense, bags, labels):
    # Its input/dist_emb_j.log; one file for all tables.
    Path("dist_emb.log").write_text("1, 2, 3, 4, 5, 6\n0, 1, 3, 4, 5\n0.55, 0.64, 0.82, 0.91, 1.0\n")
    stream = replace(STREAM, data_size=5, mini_batch_size=3, data_trace_file="dist_emb.log", **options)
    batch = ReferenceSource(table_rows, 2, stream).read(0, 5)
    assert batch.dense[[0, 3]].tolist() == dense
    assert local_bags(batch, table_rows) == bags
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("bags_per_state", [1, 100, 10**6])
@pytest.mark.parametrize("dist", ["uniform", "gaussian"])
def test_reading_anywhere_gives_the_same_samples(monkeypatch, bags_per_state, dist):
    monkeypatch.setattr(reference_data, "_MOST_STATES", 4)
    monkeypatch.setattr(reference_data, "_BAGS_PER_STATE", bags_per_state)
    stream = replace(STREAM, data_size=203, mini_batch_size=4, rand_data_dist=dist, rand_data_max=2.0)
    rows = (5, 3, 1000)
    whole = ReferenceSource(rows, 2, stream).read(0, 203)
    source = ReferenceSource(rows, 2, stream)
    ranges = [(0, 4), (4, 8), (0, 0), (203, 203), (202, 203), (1, 3), (6, 27), (27, 27), (100, 203), (0, 203)]
    rng = np.random.default_rng(1)
    ranges += [tuple(sorted(rng.integers(0, 204, 2))) for _ in range(100)]
    for start, stop in ranges:
        assert same(source.read(start, stop), part(whole, 3, start, stop)), (start, stop)
        assert len(source._states) <= 4


def test_every_epoch_has_the_same_samples():
    source = ReferenceSource((50, 3), 4, STREAM)
    epochs = [[source.read(start, min(start + 8, 50)) for start in range(0, 50, 8)] for _ in range(3)]
    assert all(same(*pair) for epoch in epochs[1:] for pair in zip(epochs[0], epoch, strict=True))


def test_threads_read_the_same_samples():
    source = ReferenceSource((50, 3), 4, replace(STREAM, num_batches=100))
    whole = source.read(0, 800)
    starts = np.random.default_rng(0).permutation(np.arange(0, 800, 10))
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda start: source.read(start, start + 10), starts))
    for start, batch in zip(starts, batches, strict=True):
        assert same(batch, part(whole, 2, start, start + 10))


def test_a_batch_does_not_change_when_its_reader_writes_into_it():
    source = ReferenceSource((50, 3), 4, STREAM)
    one = source.read(0, 8)
    one.dense[:], one.rows[:], one.labels[:] = 0.5, 0, 0.5
    assert same(source.read(0, 8), ReferenceSource((50, 3), 4, STREAM).read(0, 8))


def test_most_lookups_of_a_bag():
    def most(rows, **options):
        return ReferenceSource(rows, 1, replace(STREAM, data_trace_file="table_j.log", **options)).max_lookups_per_bag

    fixed = {"num_indices_per_lookup_fixed": True}
    assert most((4, 7)) == (4, 7)
    assert most((4, 70)) == (4, 10)
    assert most((4, 7), **fixed) == (4, 7)
    assert most((4, 7), rand_data_dist="gaussian", **fixed) == (10, 10)
    assert most((4, 70), generation="synthetic", **fixed) == (6, 6)


def test_ids_outside_a_table_are_refused():
    stream = replace(STREAM, rand_data_dist="gaussian", rand_data_max=3.5, rand_data_sigma=5.0)
    source = ReferenceSource((4, 3), 1, stream)
    with pytest.raises(UserError, match=r"^--data reference, seed 123: sample \d+, table 1: id 3 is outside 0\.\.2;"):
        source.read(0, 50)
    huge = replace(STREAM, rand_data_dist="gaussian", rand_data_max=float("inf"), rand_data_mu=1e30)
    with pytest.raises(UserError, match=r"sample 7, table 0: id \d+ is outside 0\.\.9"):
        ReferenceSource((10,), 1, huge).read(7, 8)


def test_ids_outside_a_table_are_refused_with_options_that_help():
    stream = replace(STREAM, rand_data_dist="gaussian", rand_data_max=3.5, rand_data_sigma=5.0)
    with pytest.raises(UserError, match=r"--arch-embedding-size, or lower --rand-data-max to 2") as caught:
        ReferenceSource((4, 3), 1, stream).read(0, 50)
    assert "--max-ind-range" not in str(caught.value)
    ReferenceSource((4, 3), 1, replace(stream, rand_data_max=2.0)).read(0, 50)
    below = replace(stream, rand_data_min=-5.0)
    with pytest.raises(UserError, match=r"id -\d is outside 0\.\.9; let --rand-data-min and --rand-data-max") as caught:
        ReferenceSource((10,), 1, below).read(0, 50)
    assert "--arch-embedding-size" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation": "dataset"}, "--data-generation dataset"),
        ({"rand_data_dist": "zipf"}, "--rand-data-dist zipf"),
        ({"num_indices_per_lookup": 0}, "--num-indices-per-lookup is 0"),
        ({"seed": 2**32}, "--numpy-rand-seed is 4294967296"),
        ({"rand_data_dist": "gaussian", "rand_data_sigma": -1.0}, "--rand-data-sigma -1 "),
        ({"rand_data_dist": "gaussian", "rand_data_max": float("nan")}, "--rand-data-max nan"),
        ({"rand_data_dist": "gaussian", "rand_data_mu": float("inf")}, "--rand-data-mu inf"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ReferenceSource((10,), 1, replace(STREAM, **options))


def test_large_ids_of_a_trace_file_are_folded():
    Path("trace.log").write_text("18446744073709551615, 9223372036854775807, 8\n0\n1.0\n")
    stream = replace(
        STREAM,
        generation="synthetic",
        num_indices_per_lookup=3,
        num_indices_per_lookup_fixed=True,
        data_trace_file="trace.log",
    )
    batch = ReferenceSource((5,), 1, stream).read(0, 1)
    assert batch.rows.tolist() == [8 % 5, (2**63 - 1) % 5, -1 % 5]  # as int64, in the order of uint64


def test_distances_beyond_the_list_count_from_its_end():
    trace = "5, 6, 7\n0, 1, 4, 6\n0.8, 0.85, 0.95, 1.0\n"
    Path("trace.log").write_text(trace)
    stream = replace(
        STREAM,
        generation="synthetic",
        num_indices_per_lookup=30,
        num_indices_per_lookup_fixed=True,
        data_trace_file="trace.log",
    )
    _, bags, _ = slow_epoch((10,), 1, stream, trace)
    assert local_bags(ReferenceSource((10,), 1, stream).read(0, 50), (10,)) == bags
