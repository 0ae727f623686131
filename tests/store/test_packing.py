"""Records of 16-bit numbers: kernels and operators of the device give the same words."""

import numpy as np
import pytest
import torch

from cachedlrm.base.rounding import TORCH_DTYPES
from cachedlrm.store import packing
from cachedlrm.store.init import ArrayInit, CounterInit
from cachedlrm.store.packing import Packing, numbers_of, turn_rows
from cachedlrm.store.records import OPTIMIZERS, RecordLayout

KEPT = [("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "bf16"), ("fp32", "bf16")]


def numbers(layout: RecordLayout, count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 10 ** (6 * torch.rand(count, layout.columns, generator=generator) - 6)
    return torch.randn(count, layout.columns, generator=generator) * scale


def packed(layout: RecordLayout, values: torch.Tensor, rows: np.ndarray, step: int = 1) -> np.ndarray:
    out = np.full((len(rows), layout.width), np.nan, np.float32)
    Packing(layout, 7).pack(values.numpy(), rows, step, out)
    return out.view(np.uint32)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("row_dtype", "state_dtype"), KEPT)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dim", [1, 6, 16])
def test_the_device_has_the_bits_of_the_host(dim, optimizer, row_dtype, state_dtype, weighted):
    layout = RecordLayout(dim, optimizer, weighted, row_dtype, state_dtype)
    if not layout.is_packed:
        return
    values, rows = numbers(layout, 20), np.arange(100, 120)
    kept = packed(layout, values, rows)
    on_device = torch.full((20, layout.width), torch.nan)
    Packing(layout, 7).pack_on_device(values, torch.from_numpy(rows), 1, on_device)
    assert (on_device.numpy().view(np.uint32) == kept).all()
    # Back to numbers: neighbours of those given, and exactly those where they are kept in 32 bits.
    found = numbers_of(layout, kept.view(np.float32))
    back = torch.empty(20, layout.columns)
    packing._unpack_tensor(layout, torch.from_numpy(kept.view(np.float32)), back)
    assert (back.numpy() == found).all()
    for dtype, columns, _ in packing._parts(layout):
        ours, theirs = torch.from_numpy(found[:, columns]), values[:, columns]
        if dtype == "fp32":
            assert torch.equal(ours, theirs)
        else:
            torch.testing.assert_close(ours, theirs, rtol=2**-7 if dtype == "bf16" else 2**-10, atol=2**-24)
            assert torch.equal(ours.to(TORCH_DTYPES[dtype]).float(), ours)
            assert ours.numel() == 0 or not torch.equal(ours, theirs)
    # What is exact stays at every step.
    assert (packed(layout, back, rows, 9) == kept).all()


@pytest.mark.parametrize(("row_dtype", "state_dtype"), KEPT)
def test_a_record_depends_on_row_and_step_and_on_no_place(row_dtype, state_dtype):
    layout = RecordLayout(5, "adagrad", False, row_dtype, state_dtype)
    values, rows, order = numbers(layout, 30), np.arange(30), np.random.default_rng(2).permutation(30)
    kept = packed(layout, values, rows)
    assert (packed(layout, values[order], rows[order]) == kept[order]).all()
    slab = torch.zeros(50, layout.width)
    slots = torch.from_numpy(order + 20)
    Packing(layout, 7).scatter(slab, slots, values, torch.from_numpy(rows), 1)
    assert (slab.numpy().view(np.uint32)[order + 20] == kept).all()
    assert (slab[:20] == 0).all()
    out = torch.empty(30, layout.columns)
    Packing(layout, 7).gather(slab, slots, out)
    assert (out.numpy() == numbers_of(layout, kept.view(np.float32))).all()
    assert (packed(layout, values, rows + 1) != kept).any()
    assert (packed(layout, values, rows, 2) != kept).any()
    # Rows of another group are others.
    other = np.empty((30, layout.width), np.float32)
    Packing(layout, 7, first_row=3).pack(values.numpy(), rows - 3, 1, other)
    assert (other.view(np.uint32) == kept).all()


def test_records_of_32_bits_are_their_numbers():
    layout = RecordLayout(3, "sgd", False, "fp32", "bf16")  # which has no state
    assert not layout.is_packed
    init = CounterInit(1, (9,), layout)
    assert Packing(layout, 1).init(init) is init
    records = np.ones((2, 3), np.float32)
    assert numbers_of(layout, records) is records


@pytest.mark.parametrize(("row_dtype", "state_dtype"), KEPT[:3])
def test_first_touches_are_rounded_alike_on_host_and_device(row_dtype, state_dtype):
    layout = RecordLayout(7, "adagrad", True, row_dtype, state_dtype)
    rows, plain = np.array([3, 900, 77, 5000]), CounterInit(4, (4000, 2000), layout)
    init = Packing(layout, 7).init(plain)
    host, device = np.empty((4, layout.width), np.float32), torch.empty(4, layout.width)
    init.fill(rows, host)
    init.fill_on_device(torch.from_numpy(rows), device)
    assert (device.numpy().view(np.uint32) == host.view(np.uint32)).all()
    values = np.empty((4, layout.columns), np.float32)
    plain.fill(rows, values)
    assert (packed(layout, torch.from_numpy(values), rows, step=0) == host.view(np.uint32)).all()
    given = Packing(layout, 7).init(ArrayInit([[np.ones((9, 7), np.float32)]]))
    assert given.fill_on_device is None


def test_the_device_rounds_in_turns(monkeypatch):
    layout = RecordLayout(4, "adagrad", False, "bf16")
    monkeypatch.setattr(packing, "TURN_NUMBERS", 24)
    assert turn_rows(layout) == 3
