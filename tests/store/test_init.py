"""Initial records: bits by hand and by plain Python, everywhere the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.store.init import ArrayInit, CounterInit
from cachedlrm.store.records import RecordLayout

GAMMA, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


def mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    seed=st.integers(-(2**70), 2**70),
    table_rows=st.lists(st.integers(1, 2**31), min_size=1, max_size=5),
    dim=st.integers(1, 9),
    state=st.integers(0, 3),
    data=st.data(),
)
def test_initial_records_are_the_same_bits_everywhere(seed, table_rows, dim, state, data):
    rows = np.array(data.draw(st.lists(st.integers(0, sum(table_rows) - 1), min_size=1, max_size=20)), np.int64)
    init = CounterInit(seed, tuple(table_rows), RecordLayout(dim, "sgd"))
    host, device = np.full((len(rows), dim + state), 7, np.float32), torch.full((len(rows), dim + state), 7.0)
    init.fill(rows, host)
    init.fill_on_device(torch.from_numpy(rows), device)
    assert (host == device.numpy()).all()
    assert (host[:, dim:] == 0).all()
    # Element by element from the definition, in Python's integers.
    ends = np.cumsum(table_rows)
    for row, record in zip(rows.tolist(), host, strict=True):
        bound = np.float32(np.sqrt(1 / table_rows[int(np.searchsorted(ends, row, side="right"))]))
        for column in range(dim):
            bits = mix((mix(seed & MASK) + (row * dim + column) * GAMMA) & MASK) >> 40
            assert record[column] == np.float32(bits / 2**23 - 1) * bound


def test_initial_weights_are_uniform_and_depend_on_the_seed():
    rows, out, other = np.arange(20_000), np.empty((20_000, 4), np.float32), np.empty((20_000, 4), np.float32)
    CounterInit(1, (20_000,), RecordLayout(4, "sgd")).fill(rows, out)
    CounterInit(2, (20_000,), RecordLayout(4, "sgd")).fill(rows, other)
    scaled = out * np.sqrt(20_000)
    assert abs(scaled.mean()) < 0.01
    assert abs(scaled.var() - 1 / 3) < 0.01
    assert np.abs(scaled).max() <= 1
    assert (out != other).mean() > 0.99
    assert len(np.unique(out)) > 79_000


def test_initial_weights_by_hand():
    # With seed 0 the generator starts at mix(0) = 0. Its outputs number 1, 2 and 3 are published with SplitMix64:
    # e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f; output 0 is 0. A table of four rows is bounded by 1/2.
    out = np.empty((2, 2), np.float32)
    CounterInit(0, (4,), RecordLayout(2, "sgd")).fill(np.arange(2), out)
    units = [0x000000 / 2**23 - 1, 0xE220A8 / 2**23 - 1, 0x6E789E / 2**23 - 1, 0x06C45D / 2**23 - 1]
    assert out.reshape(-1).tolist() == [unit / 2 for unit in units]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(rows=st.lists(st.integers(0, 99), min_size=1, max_size=30), seed=st.integers(-5, 5))
def test_a_record_depends_on_seed_and_row_only(rows, seed):
    every, some = np.empty((100, 3), np.float32), np.empty((len(rows), 3), np.float32)
    CounterInit(seed, (60, 1, 39), RecordLayout(3, "sgd")).fill(np.arange(100), every)
    CounterInit(seed, (60, 1, 39), RecordLayout(3, "sgd")).fill(np.array(rows), some)
    assert (some == every[rows]).all()


def test_bounds_are_those_of_the_table():
    table_rows, out = (10_000, 1, 400, 2), np.empty((10_403, 8), np.float32)
    CounterInit(7, table_rows, RecordLayout(8, "sgd")).fill(np.arange(10_403), out)
    for first, last, bound in (
        (0, 10_000, 0.01),
        (10_000, 10_001, 1.0),
        (10_001, 10_401, 0.05),
        (10_401, 10_403, 0.71),
    ):
        largest = np.abs(out[first:last]).max()
        assert largest <= bound
        assert largest > 0.5 * bound


@pytest.mark.parametrize("seed", [0, 1, -1, 2**64 - 1, 123456789])
def test_bits_of_initial_weights_are_even_and_unrelated(seed):
    out = np.empty((40_000, 4), np.float32)
    CounterInit(seed, (40_000,), RecordLayout(4, "sgd")).fill(np.arange(40_000), out)
    units = out.astype(np.float64) * 200
    for column in range(4):
        counts, _ = np.histogram(units[:, column], bins=16, range=(-1, 1))
        assert ((counts - 2500) ** 2 / 2500).sum() < 45  # chi-square, 15 degrees of freedom: p < 1e-4 beyond
    flat = units.reshape(-1)
    for distance in (1, 2, 4, 64):  # columns and rows beside each other
        assert abs(np.corrcoef(flat[:-distance], flat[distance:])[0, 1]) < 0.012


def test_rows_at_the_end_of_very_large_tables():
    rows = np.array([0, 2**40 - 1, 2**40, 2**41 - 1])
    host, device = np.empty((4, 5), np.float32), torch.empty(4, 5)
    init = CounterInit(3, (2**40, 2**40), RecordLayout(5, "sgd"))
    init.fill(rows, host)
    init.fill_on_device(torch.from_numpy(rows), device)
    assert (host == device.numpy()).all()
    assert len(np.unique(host)) == 20


def test_no_rows():
    init = CounterInit(3, (5,), RecordLayout(4, "sgd"))
    init.fill(np.empty(0, np.int64), np.empty((0, 4), np.float32))
    init.fill_on_device(torch.empty(0, dtype=torch.int64), torch.empty(0, 4))


def test_columns_of_given_arrays_stand_side_by_side():
    first = [np.arange(6, dtype=np.float32).reshape(3, 2), np.array([7, 8, 9], np.float32)]
    second = [np.array([[10, 11]], np.float32)]
    out = np.full((3, 4), -1, np.float32)
    ArrayInit([first, second]).fill(np.array([3, 0, 2]), out)
    assert out.tolist() == [[10, 11, 0, 0], [0, 1, 7, 0], [4, 5, 9, 0]]


def test_a_pooling_weight_begins_at_one():
    init = CounterInit(5, (9,), RecordLayout(2, "adagrad", weighted=True))
    out, on_device = np.full((2, 6), 7, np.float32), torch.full((2, 6), 7.0)
    init.fill(np.array([8, 0]), out)
    init.fill_on_device(torch.tensor([8, 0]), on_device)
    assert out[:, 2:].tolist() == [[1, 0, 0, 0]] * 2
    assert (on_device.numpy() == out).all()
