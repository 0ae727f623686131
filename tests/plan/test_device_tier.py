"""Sizes of the device tier, worked out by hand, and messages whose advice works."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.model.interaction import InteractionKind
from cachedlrm.plan.device_tier import (
    CacheRequest,
    DeviceSizes,
    _plenty,
    largest_batch,
    size_device,
    smallest_ratio,
)
from cachedlrm.plan.step_bytes import StepShape
from cachedlrm.store.records import GroupShape, RecordLayout
from support.shapes import STEP, lookups

SAMPLE_BY_SAMPLE = replace(STEP, micro_batch_size=1)  # no fewer can go through the layers at a time


def unmeasured() -> tuple[int, ...]:
    raise AssertionError("the bound fits: nothing needs counting")


@pytest.mark.parametrize(
    ("optimizer", "width", "temporaries", "dense_states"),
    [("sgd", 4, 0, 0), ("adagrad", 8, 1, 1), ("rwsadagrad", 5, 1, 1), ("adam", 12, 2, 2)],
)
def test_bytes_by_hand(optimizer, width, temporaries, dense_states):
    shape = replace(
        STEP,
        groups=(GroupShape((1000, 10, 5), RecordLayout(4, optimizer)),),
        most_staging_rows=64,
        samples_multiplied=7,
        test_batch_size=0,
    )
    assert shape.working_set_bounds == (40 + 10 + 5,)
    fixed = shape.fixed_bytes((55,))
    assert fixed["staging"] == 4 * 64 * 4 * width + 6 * 8 * 2048 * 4
    upload = 32 * 55 + 8 * 120 + 4 * (60 + 55) + 4 * 20 * 4
    gradients = 55 * 4 * 4 * (1 + temporaries)
    assert fixed["working_set"] == int(1.25 * (3 * upload + 55 * 4 * width)) + gradients
    # Two matrices and two biases, each of 64 elements in memory.
    assert fixed["dense"] == 4 * 4 * 64 * (2 + dense_states)
    workspace = 32 * 2**20  # of cuBLAS, on CUDA
    beside = workspace + 24 * 2**20  # and what lies idle in the allocator's segments

    def activations(layers: int) -> int:
        """Pooled vectors of 3 tables beside what layers, the dense optimizer or rows need, whose part is elsewhere."""
        moved = 4 * 4 * 64 * temporaries
        return 4 * 20 * 3 * 4 + max(4 * layers, moved, gradients) - gradients

    # Kept: outputs of 4 and 1, inputs of the top MLP 10; in passing twice the widest layer, 10, and 8 numbers of the
    # loss; of seven samples multiplied at a time the vectors, 16, and their gradient in two terms, and products, 16; a
    # gradient of the larger matrix before it is added.
    layers = 20 * (4 + 1 + 10 + 20 + 8) + 7 * (3 * 16 + 16) + 12
    assert fixed["activations"] == activations(layers) + beside
    assert replace(shape, most_staging_rows=0).fixed_bytes((55,))["activations"] == activations(layers)
    # Once more what the graphs keep, their inputs of 3 dense features and a label, and a workspace of their own.
    graphs = replace(shape, cuda_graphs=True).fixed_bytes((55,))
    kept = 4 * (layers + 20 * 3 * 4 + 20 * (3 + 1)) + workspace
    assert graphs == fixed | {"activations": fixed["activations"] + kept}
    # With deterministic algorithms: 48 bytes for each of 55 rows' indices, and the 6 products of a sample's 4 vectors.
    sorted_indices = replace(shape, deterministic=True).fixed_bytes((55,))
    assert sorted_indices["working_set"] == fixed["working_set"] + 48 * 55
    assert sorted_indices["activations"] == activations(layers + 7 * 6) + beside
    gelu = replace(shape, keeps_inputs=True, interaction=InteractionKind("cat")).fixed_bytes((55,))
    assert gelu["activations"] == activations(20 * (2 * 5 + 10 + 20 + 8) + 12) + beside
    # All but pooled vectors is of six samples at a time; of these vectors there are copies and gradients of both where
    # a projection from 4 to 6 columns comes between.
    passes = replace(shape, micro_batch_size=6).fixed_bytes((55,))
    assert passes["activations"] == activations(6 * (4 + 1 + 10 + 20 + 8) + 6 * (3 * 16 + 16) + 12) + beside
    projected = replace(shape, micro_batch_size=6, mlp_bot=(3, 6), interaction=InteractionKind("cat")).fixed_bytes(
        (55,)
    )
    combined = 3 * 4 + 3 * 6 + 2 * 3 * 4
    assert projected["activations"] == activations(6 * (6 + 1 + 10 + 20 + 8 + combined) + 18) + beside


def test_projections_are_parameters_of_groups_narrower_than_the_vectors():
    groups = tuple(GroupShape((100,) * tables, RecordLayout(dim, "sgd")) for tables, dim in ((1, 2), (2, 8), (3, 1)))
    shape = replace(
        STEP, groups=groups, lookups_per_bag=lookups(groups), num_features=6, mlp_bot=(3, 8), mlp_top=(44, 1)
    )
    layers = 64 + 64 + 64 + 64
    assert shape.fixed_bytes((9, 9, 9))["dense"] == 4 * 2 * (layers + 64 + 3 * 64)


def test_staging_buffers_hold_what_a_batch_moves_in_its_largest_group():
    layout = RecordLayout(4, "adagrad")
    groups = GroupShape((1000,), layout), GroupShape((3000, 4), layout)
    shape = replace(STEP, groups=groups, lookups_per_bag=lookups(groups), most_staging_rows=5000)
    assert replace(shape, mini_batch_size=1000).staging_rows == 1000 * shape.lookups_per_bag[0][0] + 4
    assert shape.staging_rows == 1024, "a batch moves 44 at most, but a checkpoint saves all that are cached"
    assert replace(shape, most_staging_rows=9).staging_rows == 9
    assert replace(shape, most_staging_rows=0).staging_rows == 0


def test_an_evaluation_step_counts_where_it_needs_more():
    plain, fixed = STEP.fixed_bytes((55,)), replace(STEP, test_batch_size=2000).fixed_bytes((55,))
    rows = 1015  # of all tables; at most 100 times 55
    assert fixed["activations"] == 4 * (2000 * (20 + 3) + 2000 * 3 * 4 + 2000 * (3 * 16 + 16))
    evaluation = rows * (32 + 8) + 8 * (2000 * 3 * 2 + 2000 * 3)
    assert fixed["working_set"] - evaluation == plain["working_set"] - 55 * 4 * 4 * 2
    assert replace(STEP, test_batch_size=10).fixed_bytes((55,)) == plain


def test_small_groups_stay_and_the_others_share():
    groups = tuple(GroupShape((rows,), RecordLayout(dim, "sgd")) for rows, dim in ((9000, 2), (50, 8), (3000, 4)))
    shape = replace(STEP, groups=groups, lookups_per_bag=lookups(groups))

    def quotas(request: CacheRequest, limit: int = 10**9) -> list[int]:
        sizes = size_device(shape, request, limit, unmeasured)
        assert sizes.quota_slots == sum(group.quota for group in sizes.groups)
        return [group.quota for group in sizes.groups]

    assert quotas(CacheRequest(None, 1250, None)) == [900, 50, 300]
    assert quotas(CacheRequest(1250 / 12050, None, None)) == [900, 50, 300]
    assert quotas(CacheRequest(1.0, None, None)) == [9000, 50, 3000]
    step = sum(shape.fixed_bytes(shape.working_set_bounds).values())
    budget = step + 50 * 32 + (9000 * 8 + 3000 * 16) // 10
    assert quotas(CacheRequest(None, None, budget), budget) == [900, 50, 300]


def test_ratio_rows_and_budget():
    by_ratio = size_device(STEP, CacheRequest(0.5, None, None), 10**9, unmeasured)
    assert (by_ratio.quota_slots, by_ratio.num_slots) == (507, 507)
    by_rows = size_device(STEP, CacheRequest(None, 60, None), 10**9, unmeasured)
    assert (by_rows.quota_slots, by_rows.num_slots) == (60, 60)
    budget = sum(STEP.fixed_bytes((55,)).values()) + 100 * 32 + 5
    by_budget = size_device(STEP, CacheRequest(None, None, budget), budget, unmeasured)
    assert (by_budget.quota_slots, by_budget.num_slots) == (100, 100)
    assert by_budget.total_bytes <= budget
    assert size_device(STEP, CacheRequest(None, 5000, None), 10**9, unmeasured).quota_slots == 1015


def test_temporary_slots_hold_a_working_set_beyond_the_quota():
    sizes = size_device(STEP, CacheRequest(None, 7, None), 10**9, unmeasured)
    assert (sizes.quota_slots, sizes.num_slots) == (7, 55)


def test_a_bound_that_does_not_fit_is_counted():
    budget = sum(STEP.fixed_bytes((30,)).values()) + 30 * 32
    sizes = size_device(STEP, CacheRequest(None, 7, budget), budget, lambda: (30,))
    assert (sizes.quota_slots, sizes.num_slots) == (7, 30)


def test_the_advice_of_the_message_works():
    shape = SAMPLE_BY_SAMPLE
    budget = sum(shape.fixed_bytes((30,)).values()) + 29 * 32
    request = CacheRequest(None, 7, budget)
    message = refusal(shape, request, budget, 30)
    assert "needs 30 rows" in message
    assert "29 slots" in message
    assert "\n" not in message
    batch = int(re.search(r"--mini-batch-size (\d+)", message)[1])
    smaller = replace(shape, mini_batch_size=batch)
    size_device(smaller, request, budget, unmeasured)
    assert largest_batch(shape, request, budget) == batch
    number, unit = re.search(r"smallest --gpu-budget ([\d.]+) (\w+)", message).groups()
    larger = int(float(number) * {"KiB": 2**10, "MiB": 2**20}[unit])
    size_device(shape, CacheRequest(None, 7, larger), larger, lambda: (30,))
    ratio = float(re.search(r"where --gpu-cache-ratio ([\d.e-]+) holds", message)[1])
    assert int(ratio * 1015) >= 30


def test_the_quota_itself_may_not_fit():
    with pytest.raises(UserError, match="slots"):
        size_device(STEP, CacheRequest(1.0, None, None), 10_000, lambda: (30,))


UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

shapes = st.builds(
    StepShape,
    groups=st.builds(
        GroupShape,
        st.lists(st.sampled_from([1, 5, 50, 1000, 100_000]), min_size=1, max_size=4).map(tuple),
        st.builds(RecordLayout, st.sampled_from([2, 16, 64]), st.sampled_from(["sgd", "rwsadagrad", "adam"])),
    ).map(lambda group: (group,)),
    num_features=st.just(4),
    lookups_per_bag=st.just(()),
    mini_batch_size=st.integers(1, 400),
    mlp_bot=st.just((3, 4)),
    mlp_top=st.just((10, 1)),
    prefetch_depth=st.integers(0, 3),
    most_staging_rows=st.sampled_from([0, 64]),
    micro_batch_size=st.sampled_from([0, 1, 30]),
    samples_multiplied=st.sampled_from([0, 7]),
    test_batch_size=st.sampled_from([0, 7, 1000]),
    cuda_graphs=st.booleans(),
)
shapes = st.builds(
    lambda shape, most: replace(shape, lookups_per_bag=(most[: len(shape.groups[0].table_rows)],)),
    shapes,
    st.tuples(st.integers(1, 3), *[st.integers(0, 3)] * 3),
)


def step_bytes(shape: StepShape, rows: int, slots: int) -> int:
    """What a step and so many slots need, for batches of ``rows`` unique rows."""
    return sum(shape.fixed_bytes((rows,)).values()) + slots * shape.groups[0].layout.record_bytes


@settings(deadline=None, derandomize=True, max_examples=300)
@given(data=st.data(), shape=shapes)
def test_sizes_fit_or_the_message_says_what_would(data, shape):
    bound = shape.working_set_bounds[0]
    needed = data.draw(st.integers(max(1, bound // 3), bound), label="needed")
    ratio = data.draw(st.none() | st.floats(1e-4, 1.0), label="ratio")
    rows = data.draw(st.none() | st.integers(1, 2 * shape.num_rows), label="rows") if ratio is None else None
    share = data.draw(st.floats(0.2, 2.0), label="share")
    limit = int(step_bytes(shape, needed, needed) * share)
    request = CacheRequest(ratio, rows, limit)
    try:
        sizes = size_device(shape, request, limit, lambda: (needed,))
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert f"needs {needed:,} rows" in message
        number, unit = re.search(r"smallest --gpu-budget ([\d.]+) (\w+)", message).groups()
        larger = int(float(number) * UNITS[unit])
        assert larger > limit
        assert check(size_device(shape, replace(request, budget_bytes=larger), larger, lambda: (needed,)), larger)
        at_most = re.search(r"--gpu-cache-ratio ([\d.e-]+) or less", message)
        for tried in (float(at_most[1]), float(at_most[1]) / 2) if at_most else ():
            assert check(size_device(shape, CacheRequest(tried, None, limit), limit, lambda: (needed,)), limit)
        tests = re.search(r"--test-mini-batch-size (\d+)", message)
        for tested in {int(tests[1]), 1} if tests else ():
            assert tested <= shape.test_batch_size
            fewer_tested = replace(shape, test_batch_size=tested)
            if f"use {tests[0]}" in message:
                assert tested < shape.test_batch_size
                assert check(size_device(fewer_tested, request, limit, lambda: (needed,)), limit)
        passes = re.search(r"--micro-batch-size (\d+)", message)
        for samples in {int(passes[1]), 1} if passes else ():
            assert samples < shape.pass_size
            assert not shape.cuda_graphs
            divided = replace(fewer_tested if tests else shape, micro_batch_size=samples)
            assert check(size_device(divided, request, limit, lambda: (needed,)), limit)
        batch = re.search(r"--mini-batch-size (\d+)(?: with --gpu-cache-rows (\d+))?", message)
        if batch:
            smaller = replace(fewer_tested if tests else shape, mini_batch_size=int(batch[1]))
            fewer = CacheRequest(None, int(batch[2]), limit) if batch[2] else request
            assert batch[2] or tests or smaller.batch_size < shape.batch_size
            assert check(size_device(smaller, fewer, limit, unmeasured), limit)
    else:
        assert check(sizes, limit)
        assert sizes.num_slots >= min(needed, shape.num_rows)
        if rows is not None:
            assert sizes.quota_slots == min(rows, shape.num_rows)
        elif ratio is not None:
            assert sizes.quota_slots == max(1, int(ratio * shape.num_rows))


def check(sizes: DeviceSizes, limit: int) -> bool:
    """Whether sizes are consistent and within a limit."""
    return 0 < sizes.quota_slots <= sizes.num_slots and sizes.total_bytes <= limit


@settings(deadline=None, derandomize=True, max_examples=100)
@given(data=st.data(), shape=shapes)
def test_a_larger_budget_never_has_fewer_slots(data, shape):
    bound = shape.working_set_bounds[0]
    needed = data.draw(st.integers(max(1, bound // 20), bound), label="needed")
    least, most = step_bytes(shape, needed, needed), 3 * step_bytes(shape, bound, shape.num_rows) + 30 * bound * 1000
    shares = data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=12), label="shares")
    edges = [edge + more for edge in (step_bytes(shape, bound, bound), _plenty(shape)) for more in (-1, 0, 1)]
    limits = sorted({*(int(least * (most / least) ** share) for share in shares), *edges, least})
    slots = []
    for limit in (limit for limit in limits if limit >= least):
        sizes = size_device(shape, CacheRequest(None, None, limit), limit, lambda: (needed,), is_counted_soon=True)
        assert check(sizes, limit)
        assert sizes.num_slots >= min(needed, shape.num_rows)
        slots.append(sizes.quota_slots)
    assert slots == sorted(slots)


def test_a_bound_that_takes_much_of_a_budget_is_counted_where_that_is_soon_done():
    limit = step_bytes(STEP, 55, 100)
    request, counted = CacheRequest(None, None, limit), size_device
    assert counted(STEP, request, limit, lambda: (9,)).quota_slots == 100  # the bound fits, and counting may take hours
    assert counted(STEP, request, limit, lambda: (9,), is_counted_soon=True).quota_slots > 200
    with_slots = CacheRequest(None, 60, limit)
    assert counted(STEP, with_slots, limit, unmeasured, is_counted_soon=True).quota_slots == 60
    assert counted(STEP, request, _plenty(STEP), unmeasured, is_counted_soon=True).quota_slots == 1015


@settings(deadline=None, derandomize=True, max_examples=100)
@given(shape=shapes, share=st.floats(0.01, 1.5))
def test_the_largest_batch_is_the_largest(shape, share):
    bound = shape.working_set_bounds[0]
    limit = int(step_bytes(shape, bound, bound) * share)
    batch = largest_batch(shape, CacheRequest(None, None, limit), limit)
    for size, fits in ((batch, True), (batch + 1, False)):
        if 0 < size <= shape.batch_size:
            tried = replace(shape, mini_batch_size=size)
            rows = tried.working_set_bounds[0]
            assert (step_bytes(tried, rows, rows) <= limit) == fits


def refusal(shape: StepShape, request: CacheRequest, limit: int, needed: int) -> str:
    with pytest.raises(UserError) as refused:
        size_device(shape, request, limit, lambda: (needed,))
    return str(refused.value)


def test_the_ratio_of_the_message_works_where_too_many_slots_are_asked_for():
    # 1,000 slots are asked for where there is room for 100 beside the step, which needs 55.
    limit = step_bytes(STEP, 55, 100)
    message = refusal(STEP, CacheRequest(None, 1000, None), limit, 55)
    assert "1,000 slots are asked for" in message
    assert "needs 55 rows" in message
    assert "100 slots" in message
    ratio = float(re.search(r"--gpu-cache-ratio ([\d.e-]+) or less", message)[1])
    sizes = size_device(STEP, CacheRequest(ratio, None, None), limit, lambda: (55,))
    assert check(sizes, limit)
    assert sizes.quota_slots in (99, 100)  # four digits of ratio


def test_passes_over_fewer_samples_are_advised_before_smaller_batches():
    # 7 slots are asked for, there is room for 29, and a batch has 30 rows.
    request, limit = CacheRequest(None, 7, None), step_bytes(STEP, 30, 29)
    message = refusal(STEP, request, limit, 30)
    assert "--mini-batch-size" not in message
    samples = int(re.search(r"use --micro-batch-size (\d+) or less", message)[1])
    assert samples == 10, "half of 20"
    for tried in (samples, 1):
        assert check(size_device(replace(STEP, micro_batch_size=tried), request, limit, lambda: (30,)), limit)


def test_graphs_are_not_divided():
    shape = replace(STEP, cuda_graphs=True)
    message = refusal(shape, CacheRequest(None, 7, None), step_bytes(shape, 30, 29), 30)
    assert "--micro-batch-size" not in message
    assert "use --mini-batch-size" in message


def test_fewer_samples_of_an_evaluation_are_advised_where_it_needs_most():
    request, limit = CacheRequest(None, 55, None), step_bytes(STEP, 55, 55)
    shape = replace(STEP, test_batch_size=2000)
    tested = int(re.search(r"use --test-mini-batch-size (\d+) or less", refusal(shape, request, limit, 55))[1])
    assert 0 < tested < 2000
    assert check(size_device(replace(shape, test_batch_size=tested), request, limit, unmeasured), limit)
    refusal(replace(shape, test_batch_size=tested + 1), request, limit, 55)


def test_an_evaluation_that_would_need_more_than_the_passes_is_divided_too():
    shape = replace(STEP, test_batch_size=20)
    divided = replace(shape, micro_batch_size=2, test_batch_size=2)
    request, limit = CacheRequest(None, 55, None), step_bytes(divided, 55, 55)
    message = refusal(shape, request, limit, 55)
    samples = int(re.search(r"use --micro-batch-size (\d+) with --test-mini-batch-size \1 or less", message)[1])
    for tried in (samples, 1):
        divided = replace(shape, micro_batch_size=tried, test_batch_size=tried)
        assert check(size_device(divided, request, limit, unmeasured), limit)


def test_the_batch_of_the_message_works_where_the_budget_is_too_small():
    shape = SAMPLE_BY_SAMPLE
    request, limit = CacheRequest(None, 7, None), step_bytes(shape, 30, 29)
    batch = int(re.search(r"--mini-batch-size (\d+)", refusal(shape, request, limit, 30))[1])
    assert batch < shape.batch_size
    smaller = replace(shape, mini_batch_size=batch)
    assert check(size_device(smaller, request, limit, unmeasured), limit)


def test_a_step_that_no_batch_size_fits():
    with pytest.raises(UserError, match="; use smaller MLPs"):
        size_device(STEP, CacheRequest(None, 7, 500), 500, lambda: (30,))
    assert largest_batch(STEP, CacheRequest(None, 7, 500), 500) == 0


def test_fewer_slots_are_named_where_those_asked_for_leave_no_room():
    # 1,000 slots are asked for, there is room for 29, and a batch has 30 rows.
    limit = step_bytes(STEP, 30, 29)
    message = refusal(STEP, CacheRequest(None, 1000, None), limit, 30)
    batch, rows = re.search(r"--mini-batch-size (\d+) with --gpu-cache-rows (\d+) or less", message).groups()
    smaller = replace(STEP, mini_batch_size=int(batch))
    assert check(size_device(smaller, CacheRequest(None, int(rows), None), limit, unmeasured), limit)


def test_the_ratio_for_the_smallest_budget_fits_it():
    message = refusal(STEP, CacheRequest(None, 7, None), step_bytes(STEP, 30, 29), 30)
    number, unit = re.search(r"smallest --gpu-budget ([\d.]+) (\w+)", message).groups()
    budget = int(float(number) * UNITS[unit])
    ratio = float(re.search(r"where --gpu-cache-ratio ([\d.e-]+) holds", message)[1])
    sizes = size_device(STEP, CacheRequest(ratio, None, budget), budget, lambda: (30,))
    assert sizes.quota_slots == sizes.num_slots >= 30


def test_what_decides_the_limit_is_named():
    for request, whose in (
        (CacheRequest(None, 7, 500), "--gpu-budget 500 B;"),
        (CacheRequest(0.5, None, None), "free"),
    ):
        with pytest.raises(UserError, match=f"exceed (the )?.*{whose}"):
            size_device(STEP, request, 500, lambda: (30,))


@pytest.mark.parametrize(("rows", "of"), [(1, 3), (30, 1015), (999, 1000), (1000, 1000), (337_626, 33_762_577)])
def test_the_smallest_ratio_is_enough_and_hardly_more(rows, of):
    ratio = smallest_ratio(rows, of)
    assert int(ratio * of) >= rows
    assert ratio <= 1
    assert ratio * of <= rows * 1.01 + 1


@settings(deadline=None, derandomize=True, max_examples=200)
@given(num_rows=st.integers(1, 2**38), data=st.data())
def test_the_smallest_ratio_is_enough(num_rows, data):
    rows = data.draw(st.integers(1, num_rows))
    ratio = smallest_ratio(rows, num_rows)
    assert 0 < ratio <= 1
    assert int(ratio * num_rows) >= rows
