"""Groups of tables share slots and memory by their rows; small ones keep all."""

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.cache.shares import share_bytes, share_rows, store_rows
from cachedlrm.store.records import GroupShape, RecordLayout

GROUPS = (GroupShape((2000, 1000), RecordLayout(2, "sgd")), GroupShape((1000,), RecordLayout(6, "sgd")))
"""A record takes 8 bytes in one group and 24 in the other: 3,000 * 8 + 1,000 * 24 bytes are all of them."""


@pytest.mark.parametrize(
    ("rows", "slots"),
    [(400, [300, 100]), (2000, [1000, 1000]), (2400, [1400, 1000]), (9999, [3000, 1000]), (0, [1, 1])],
)
def test_slots_are_shared_by_rows_and_small_groups_keep_all(rows, slots):
    assert share_rows(GROUPS, rows) == slots


@pytest.mark.parametrize(("num_bytes", "slots"), [(4800, [300, 100]), (48_000, [3000, 1000]), (10**9, [3000, 1000])])
def test_bytes_are_shared_by_bytes(num_bytes, slots):
    assert share_bytes(GROUPS, num_bytes) == slots


def test_groups_share_the_records_in_memory_by_their_rows():
    assert store_rows(GROUPS, 24_000, spills=False) == (1500, 500)
    assert store_rows(GROUPS, 1, spills=False) == (1, 1)
    with pytest.raises(UserError, match="--host-budget"):
        store_rows(GROUPS, 24_000, spills=True)
    # Three quarters are records, each with 10 bytes of maps: 4,500 without these, and 1,500 with room for all.
    assert store_rows(GROUPS, 96_000, spills=True) == (4500 * 8 // (8 + 10), 1000)
