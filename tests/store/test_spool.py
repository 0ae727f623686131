"""Records brought into another order on disk, against a plain array."""

import gc
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.store.spool import Spool


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(0, 300), st.integers(1, 5), st.integers(1, 40), st.integers(1, 9999),
    st.lists(st.integers(0, 300), max_size=6), st.integers(0, 9),
)  # fmt: skip
def test_any_order_and_any_pieces(tmp_path_factory, num_records, width, piece, bucket_bytes, ends, seed):
    random = np.random.default_rng(seed)
    expected = random.normal(size=(num_records, width)).astype(np.float32)
    order = random.permutation(num_records)
    pieces = [
        (order[i : i + size], expected[order[i : i + size]])
        for i in range(0, num_records, piece)
        for size in (piece, 0)
    ]
    spool = Spool(tmp_path_factory.getbasetemp(), num_records, width, pieces, bucket_bytes)
    ends = [min(end, num_records) for end in ends]
    for bounds in zip([0, *ends], [*ends, num_records], strict=True):
        first, last = sorted(bounds)
        assert np.array_equal(spool.read(first, last), expected[first:last])


@pytest.mark.skipif(os.name != "posix", reason="limits on file sizes are POSIX")
@pytest.mark.parametrize("most", [100, 5_000, 19_990])
def test_a_full_disk_is_one_line_and_closing_writes_nothing_more(tmp_path, most):
    import resource  # noqa: PLC0415 - not everywhere

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    pieces = ((np.arange(first, first + 10), np.zeros((10, 4), np.float32)) for first in range(0, 1000, 10))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(
            UserError,
            match=r"cannot write .*a temporary file: File too large; .*ulimit.*move the store, and go on with",
        ) as refused:
            Spool(tmp_path, 1000, 4, pieces, 400)
        del refused
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*gone/a temporary file: No such file.*--resume"):
        Spool(tmp_path / "gone", 1, 1, [])
