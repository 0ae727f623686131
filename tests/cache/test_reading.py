"""Rows of a batch are found once each, in order of first appearance, and pooled as they are in 32 bits or fewer."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.reading import RowReader
from cachedlrm.data.lookups import Lookups
from cachedlrm.model.quantized import QuantizedTables
from cachedlrm.store.records import RecordLayout

DIM = 4
batches = st.lists(st.lists(st.integers(0, 2**31 - 2), max_size=40), min_size=1, max_size=4)


def reader(layout: RecordLayout, table: torch.Tensor, **options: object) -> RowReader:
    return RowReader(lambda lookups: (lookups,), [layout], [lambda rows: table[rows]], torch.device("cpu"), **options)


def lookups(*bags: list[int]) -> Lookups:
    rows = np.array([row for bag in bags for row in bag], np.int64)
    return Lookups(rows, np.cumsum([0, *map(len, bags)]))


@settings(deadline=None)
@given(batches)
def test_every_row_is_found_once(stream):
    """One finder for all: what earlier batches left in its table is free."""
    finds = reader(RecordLayout(DIM, "sgd"), torch.empty(0, DIM))
    for rows in stream:
        (found,) = finds.find(lookups(rows))
        assert found.rows.tolist() == list(dict.fromkeys(rows))
        assert found.rows[found.positions].tolist() == rows
        assert found.offsets.tolist() == [0, len(rows)]


@pytest.mark.parametrize("averages", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_pooled_as_from_whole_tables(bits, weighted, averages):
    layout = RecordLayout(DIM, "sgd", weighted)
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(50, layout.parameter_width)).astype(np.float32))
    some = lookups([3, 7, 3], [], [49], [7, 0])
    reads = reader(layout, table, bits=bits, averages=averages)
    (pooled,) = reads.pool(reads.find(some))
    rows, offsets = torch.from_numpy(some.rows), torch.from_numpy(some.offsets)
    weights = table[:, :DIM].contiguous()
    factors = table[:, DIM] if weighted else None
    if bits == 32:
        expected = torch.stack(
            [
                (weights[rows[a:b]] * (1 if factors is None else factors[rows[a:b], None])).sum(0)
                for a, b in zip(some.offsets, some.offsets[1:], strict=False)
            ]
        )
        if averages:
            expected /= offsets.diff().clamp(min=1)[:, None]
        torch.testing.assert_close(pooled, expected)
    else:  # bit for bit: a row's scale is its own
        whole = QuantizedTables([weights.numpy()], 50, DIM, bits, None if factors is None else factors.numpy())
        assert torch.equal(pooled, whole.pool(rows, offsets, averages=averages))
