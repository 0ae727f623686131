"""Sizes of the device tier, worked out by hand, and messages whose advice works."""

import re
from dataclasses import replace

import pytest

from cachedlrm.budget import CacheRequest, Workload, format_bytes, largest_batch, size_device, smallest_ratio
from cachedlrm.errors import UserError
from cachedlrm.store.records import RecordLayout

WORKLOAD = Workload(
    table_rows=(1000, 10, 5),
    lookups_per_bag=2,
    batch_size=20,
    mlp_bot=(3, 4),
    mlp_top=(10, 1),
    layout=RecordLayout(4, "adagrad"),
    prefetch_depth=1,
    staging_rows=0,
)


def unmeasured() -> int:
    raise AssertionError("the bound fits: nothing needs counting")


def test_bytes_by_hand():
    assert WORKLOAD.working_set_bound == 40 + 10 + 5
    fixed = WORKLOAD.fixed_bytes(55)
    assert fixed["staging"] == 0
    upload = 32 * 55 + 8 * 120 + 4 * (60 + 55) + 4 * 20 * 4
    assert fixed["working_set"] == 55 * (32 + 32) + 3 * upload
    assert fixed["dense"] == 4 * (3 * 4 + 4 + 10 * 1 + 1) * 3
    assert fixed["activations"] == 2 * 4 * 20 * (2 * (7 + 11) + 12 + 16 + 16)


def test_ratio_rows_and_budget():
    by_ratio = size_device(WORKLOAD, CacheRequest(0.5, None, None), 10**9, unmeasured)
    assert (by_ratio.quota_slots, by_ratio.num_slots) == (507, 507)
    by_rows = size_device(WORKLOAD, CacheRequest(None, 60, None), 10**9, unmeasured)
    assert (by_rows.quota_slots, by_rows.num_slots) == (60, 60)
    budget = sum(WORKLOAD.fixed_bytes(55).values()) + 100 * 32 + 5
    by_budget = size_device(WORKLOAD, CacheRequest(None, None, budget), budget, unmeasured)
    assert (by_budget.quota_slots, by_budget.num_slots) == (100, 100)
    assert by_budget.total_bytes <= budget
    assert size_device(WORKLOAD, CacheRequest(None, 5000, None), 10**9, unmeasured).quota_slots == 1015


def test_temporary_slots_hold_a_working_set_beyond_the_quota():
    sizes = size_device(WORKLOAD, CacheRequest(None, 7, None), 10**9, unmeasured)
    assert (sizes.quota_slots, sizes.num_slots) == (7, 55)


def test_a_bound_that_does_not_fit_is_counted():
    budget = sum(WORKLOAD.fixed_bytes(30).values()) + 30 * 32
    sizes = size_device(WORKLOAD, CacheRequest(None, 7, budget), budget, lambda: 30)
    assert (sizes.quota_slots, sizes.num_slots) == (7, 30)


def test_the_advice_of_the_message_works():
    budget = sum(WORKLOAD.fixed_bytes(30).values()) + 29 * 32
    request = CacheRequest(None, 7, budget)
    with pytest.raises(UserError) as refused:
        size_device(WORKLOAD, request, budget, lambda: 30)
    message = str(refused.value)
    assert "needs 30 rows" in message
    assert "29 slots" in message
    assert "\n" not in message
    batch = int(re.search(r"--mini-batch-size (\d+)", message)[1])
    smaller = replace(WORKLOAD, batch_size=batch)
    size_device(smaller, request, budget, unmeasured)
    assert largest_batch(WORKLOAD, budget) == batch
    number, unit = re.search(r"smallest --gpu-budget ([\d.]+) (\w+)", message).groups()
    larger = int(float(number) * {"KiB": 2**10, "MiB": 2**20}[unit])
    size_device(WORKLOAD, CacheRequest(None, 7, larger), larger, lambda: 30)
    ratio = float(re.search(r"--gpu-cache-ratio that holds a batch is ([\d.e-]+)", message)[1])
    assert int(ratio * 1015) >= 30


def test_the_quota_itself_may_not_fit():
    with pytest.raises(UserError, match="slots"):
        size_device(WORKLOAD, CacheRequest(1.0, None, None), 10_000, lambda: 30)


@pytest.mark.parametrize(("rows", "of"), [(1, 3), (30, 1015), (999, 1000), (1000, 1000), (337_626, 33_762_577)])
def test_the_smallest_ratio_is_enough_and_hardly_more(rows, of):
    ratio = smallest_ratio(rows, of)
    assert int(ratio * of) >= rows
    assert ratio <= 1
    assert ratio * of <= rows * 1.01 + 1


def test_bytes_are_rounded_up():
    assert format_bytes(1000) == "1000 B"
    assert format_bytes(1024) == "1.0 KiB"
    assert format_bytes(2**20 + 1) == "1.1 MiB"
