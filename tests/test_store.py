"""Initial records, and the host store against a dictionary."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.errors import UserError
from cachedlrm.store.host import HostStore
from cachedlrm.store.init import RowInit
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
    init = RowInit(seed, tuple(table_rows), dim)
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
    RowInit(1, (20_000,), 4).fill(rows, out)
    RowInit(2, (20_000,), 4).fill(rows, other)
    scaled = out * np.sqrt(20_000)
    assert abs(scaled.mean()) < 0.01
    assert abs(scaled.var() - 1 / 3) < 0.01
    assert np.abs(scaled).max() <= 1
    assert (out != other).mean() > 0.99
    assert len(np.unique(out)) > 79_000


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 30), min_size=1)), max_size=20))
def test_the_host_store_is_a_dictionary(operations):
    store, model = HostStore(31, 3), {}
    for number, (write, chosen) in enumerate(operations):
        addresses = np.array(sorted(chosen if write else chosen & model.keys()), np.int64)
        values = np.full((len(addresses), 3), number, np.float32) + addresses[:, None]
        if write:
            store.write(addresses, values)
            model.update(zip(addresses.tolist(), values, strict=True))
        else:
            store.read(addresses, values)
            assert all((model[a] == value).all() for a, value in zip(addresses.tolist(), values, strict=True))
    assert store.used_bytes == 12 * (max(model, default=-1) + 1)


def test_a_full_host_store_names_the_option():
    with pytest.raises(UserError, match="--host-budget"):
        HostStore(4, 2).write(np.array([4]), np.zeros((1, 2), np.float32))


def test_record_widths():
    widths = {name: RecordLayout(16, name).width for name in ("sgd", "rwsadagrad", "adagrad", "adam")}
    assert widths == {"sgd": 16, "rwsadagrad": 17, "adagrad": 32, "adam": 48}
    assert RecordLayout(16, "adam").record_bytes == 192
