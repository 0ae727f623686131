"""Kernels over a row's numbers: floats of 16 bits widened as torch does it, and rounded with the bits of the device."""

from functools import cache

import numba
import numpy as np
import pytest
import torch

from cachedlrm.base.kernels import BLOCK
from cachedlrm.base.rounding import FORMATS, TORCH_DTYPES, narrow_tensor, noise_state
from cachedlrm.base.rounding_kernels import narrow_run, noise_of_row, widen_run

WIDTHS = [1, 3, 4, BLOCK - 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 5]
ALL = np.arange(1 << 16, dtype=np.uint16)


@cache
def runs(dtype: str):
    """Both ways of one row."""

    @numba.njit
    def widened(words, word, numbers, place, count):
        widen_run(words, word, numbers, place, count, dtype)

    @numba.njit
    def narrowed(words, word, numbers, place, count, state, row, noise_place):
        narrow_run(words, word, numbers, place, count, dtype, noise_of_row(np.uint64(state), row), noise_place)

    return widened, narrowed


@pytest.mark.parametrize("count", [1 << 16, BLOCK - 1])
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_number_is_widened_as_torch_does(dtype, count):
    expected = torch.from_numpy(ALL.view(np.int16)).view(TORCH_DTYPES[dtype]).float().numpy()
    found, (widened, _) = np.zeros((1 << 16) + 1, np.uint32), runs(dtype)
    for first in range(0, 1 << 16, count - count % 2):
        widened(ALL.view(np.uint32), first // 2, found, first, min(count, (1 << 16) - first))
    assert found[-1] == 0
    found = found[:-1].view(np.float32)
    assert (found.view(np.uint32) == expected.view(np.uint32))[~np.isnan(expected)].all()
    assert (np.isnan(found) == np.isnan(expected)).all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_tensors_have_the_bits_of_kernels(dtype, width):
    rng = np.random.default_rng(width)
    bits = rng.integers(0, 1 << 32, (200, width), np.uint32)
    bits[:20] = np.array([0, 1 << 31, 0x7F800000, 0x7FC00000, 0x477FE001])[rng.integers(0, 5, (20, width))]
    bits[20:120] = (rng.standard_normal((100, width)) * 1e-5).astype(np.float32).view(np.uint32)
    rows, state, first_place = rng.integers(0, 1 << 40, 200), noise_state(7, 3), 5
    numbers = torch.from_numpy(bits.view(np.float32))
    expected = narrow_tensor(numbers, torch.from_numpy(rows), state, FORMATS[dtype], first_place).numpy()
    used = -(-width // 2)
    for row, given, halves in zip(rows, bits, expected.view(np.uint16), strict=True):
        words = np.full(used + 2, 0xABCDABCD, np.uint32)
        runs(dtype)[1](words, 1, np.append(given[:1], given), 1, width, np.uint64(state), row, first_place)
        assert words[0] == words[-1] == 0xABCDABCD
        found = words[1:-1].view(np.uint16)
        assert (found[:width] == halves).all()
        assert (found[width:] == 0).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_numbers_of_32_bits_are_copied(width):
    widened, narrowed = runs("fp32")
    numbers = np.random.default_rng(width).integers(0, 1 << 32, width + 2, np.uint32)
    words, back = np.zeros(width + 3, np.uint32), np.zeros(width + 2, np.uint32)
    narrowed(words, 2, numbers, 1, width, np.uint64(3), 4, 5)
    assert words.tolist() == [0, 0, *numbers[1:-1], 0]
    widened(words, 2, back, 1, width)
    assert back.tolist() == [0, *numbers[1:-1], 0]
