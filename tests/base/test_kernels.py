"""Kernels over rows of large arrays, against numpy's own indexing."""

import os
import subprocess
import sys
import tempfile

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.kernels import AHEAD, LINE_BYTES, empty_rows, gather_rows, load_ahead, scatter_rows, side_by_side


@settings(deadline=None)  # the first call compiles
@given(
    num_rows=st.integers(1, 3 * AHEAD),
    width=st.sampled_from([1, 2, 15, 16, 17, 33]),
    count=st.integers(0, 3 * AHEAD),
    seed=st.integers(0, 99),
)
def test_rows_are_gathered_and_scattered(num_rows: int, width: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    records = empty_rows(num_rows, width)
    records[...] = random.random(records.shape)
    rows = random.integers(0, num_rows, count)
    out = np.empty((count, width), np.float32)
    gather_rows(records, rows, out)
    assert np.array_equal(out, records[rows])

    rows = random.permutation(num_rows)[:count]
    values = random.random((len(rows), width), np.float32)
    expected = records.copy()
    expected[rows] = values
    scatter_rows(records, rows, values)
    assert np.array_equal(records, expected)


@pytest.mark.parametrize("shape", [(1, 17), (1000, 16), (100_000, 17)])
def test_rows_begin_with_a_line(shape: tuple[int, int]) -> None:
    records = empty_rows(*shape)
    assert (records.shape, records.dtype) == (shape, np.float32)
    assert records.flags.c_contiguous
    assert records.ctypes.data % LINE_BYTES == 0


def test_elements_of_one_index_lie_side_by_side() -> None:
    first, second = side_by_side(10)
    assert (first.shape, first.dtype, first.any()) == (second.shape, second.dtype, second.any()) == ((10,), np.int32, 0)
    for index in range(10):
        places = {part[index:].ctypes.data for part in (first, second)}
        assert max(places) - min(places) == 4
    first[:] = 1
    assert not second.any()


def test_loading_ahead_changes_nothing() -> None:
    @numba.njit
    def load_all(array: np.ndarray) -> None:
        for index in range(len(array)):
            load_ahead(array, index)

    for dtype in (np.int32, np.int64, np.float32):
        array = np.arange(100, dtype=dtype)
        load_all(array)
        load_all(array[::3])
        assert np.array_equal(array, np.arange(100, dtype=dtype))
    assert all("llvm.prefetch" in code for code in load_all.inspect_llvm().values())


def test_loading_ahead_stays_inside() -> None:
    """With numba's checks of bounds, which are for a process that compiles anew."""
    script = """if True:
        import numpy as np
        from cachedlrm.cache.planner import Planner
        from cachedlrm.cache.policies import make_policy
        from cachedlrm.cache.working_set import AddressBook
        from cachedlrm.base.kernels import AHEAD, gather_rows, scatter_rows

        random = np.random.default_rng(0)
        book = AddressBook(300)
        book.register(np.arange(100))
        planner = Planner(300, 300, make_policy("lrfu", 300, 300, 0), in_flight=0)
        planner.restore(100)  # as if evicted: choosing victims would be three quarters of what is compiled
        sizes = [0, 1, AHEAD, AHEAD + 1, 2 * AHEAD, 2 * AHEAD + 1]
        fetched = 0
        for index, size in enumerate(sizes * 3):
            working_set = book.working_set(index, random.permutation(300)[:size], np.arange(size + 1))
            planner.announce(working_set)
            plan = planner.plan(working_set)
            fetched += plan.counters.fetched_rows
            records, moved = np.zeros((300, 17), np.float32), np.empty((size, 17), np.float32)
            gather_rows(records, plan.slots, moved)
            scatter_rows(records, plan.slots, moved)
        assert fetched, "no row was away"
        assert book.num_addresses > 100, "no row was new"
    """
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": directory}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
