"""Numbers are rounded to 16 bits as the definition says, in exact fractions, with noise as it is defined."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachedlrm.base.kernels import GAMMA
from cachedlrm.base.rounding import FORMATS, LANES, TORCH_DTYPES, narrow, narrow_tensor, noise_state, noise_tensor

ALL = np.arange(1 << 16, dtype=np.uint16)
IS_FINITE = {"bf16": (ALL & 0x7F80) != 0x7F80, "fp16": (ALL & 0x7C00) != 0x7C00}
SMALLEST = {"bf16": Fraction(1, 2**133), "fp16": Fraction(1, 2**24)}
LARGEST = {"bf16": 255 * 2**120, "fp16": 65504}


def narrowed(numbers: np.ndarray, noise: int | np.ndarray, dtype: str) -> torch.Tensor:
    """`narrow` of float32s, or of their bits."""
    bits = torch.from_numpy(numbers.view(np.int32))
    return narrow(bits, torch.as_tensor(noise, dtype=torch.int32), FORMATS[dtype]).to(torch.int16)


def values(halves: torch.Tensor, dtype: str) -> torch.Tensor:
    return halves.view(TORCH_DTYPES[dtype]).float()


def value(half: int, dtype: str) -> Fraction:
    bits = torch.tensor([int(half)], dtype=torch.int32).to(torch.int16)
    return Fraction(bits.view(TORCH_DTYPES[dtype]).double().item())


def finite_bits() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1).filter(lambda bits: bits & 0x7F800000 != 0x7F800000)


@pytest.mark.parametrize("noise", [0, 1, 0x8000, 0xFFFF])
@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_exact_stays(dtype, noise):
    halves = torch.from_numpy(ALL[IS_FINITE[dtype]].view(np.int16))
    assert torch.equal(narrowed(values(halves, dtype).numpy(), noise, dtype), halves)


@pytest.mark.parametrize("dtype", FORMATS)
@settings(deadline=None, derandomize=True, max_examples=300)
@example(bits=0x00000001, noise=0xFFFF)  # 2^-149
@example(bits=0x387FFFFF, noise=0xFFFF)  # below fp16's least normal number: it becomes that one
@example(bits=0x33000000, noise=0x8000)  # half of fp16's least number
@given(bits=finite_bits(), noise=st.integers(0, 0xFFFF))
def test_a_number_becomes_a_neighbour_by_its_distance(dtype, bits, noise):
    number = Fraction(np.uint32(bits).view(np.float32).item())
    half = int(narrowed(np.array([bits], np.uint32), noise, dtype)) & 0xFFFF
    assert half >> 15 == bits >> 31
    size, found = abs(number), abs(value(half, dtype))
    if size >= LARGEST[dtype]:
        assert found == LARGEST[dtype]
        return
    unit = SMALLEST[dtype]
    while size >= unit * 2 ** (8 if dtype == "bf16" else 11):
        unit *= 2
    below = size // unit * unit
    # In units of 2^-16 of the distance; smaller than fp16's normal numbers, what is left of a unit is cut off.
    distance = (size - below) / unit * 2**16
    assert distance.denominator == 1 or size < Fraction(1, 2**14)
    assert found == below + unit * (noise + int(distance) >= 1 << 16)


@pytest.mark.parametrize("number", [0.1, -3.3e-6, 1.7e-5, 40000.3])
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_mean_over_all_noise_is_the_number(dtype, number):
    number = np.float32(number)
    halves = narrowed(np.full(1 << 16, number), np.arange(1 << 16), dtype)
    assert len(halves.unique()) == 2
    mean = values(halves, dtype).double().mean().item()
    assert mean == number if abs(number) > 2**-14 else abs(mean - number) < 2**-40


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_too_large_is_the_largest_and_no_number_stays_none(dtype):
    large = np.array([1e38, np.inf, -np.inf, np.nan, -np.nan] if dtype == "fp16" else [3.4e38, np.inf, -np.inf, np.nan])
    found = values(narrowed(large.astype(np.float32), 0xFFFF, dtype), dtype)
    assert found[:3].tolist() == [LARGEST[dtype], LARGEST[dtype], -LARGEST[dtype]]
    assert found[3:].isnan().all()


def test_noise_by_its_definition():
    mask = (1 << 64) - 1

    def mix(number: int) -> int:
        number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 & mask
        number = (number ^ (number >> 27)) * 0x94D049BB133111EB & mask
        return number ^ (number >> 31)

    seed, step, row, place = -5, 12, (1 << 33) + 9, 3
    state = mix(mix((seed ^ 0x524F554E44494E47) & mask) + step * GAMMA & mask)
    assert noise_state(seed, step) == state
    drawn = mix(state + (row << 16 | place) * GAMMA & mask)
    expected = [[drawn >> 16 * lane & 0xFFFF for lane in range(3)]]
    assert noise_tensor(torch.tensor([row]), 3, state, place).tolist() == expected
    # Rows are numbered from another first one on.
    assert noise_tensor(torch.tensor([row - 4]), 3, noise_state(seed, step, 4), place).tolist() == expected


def test_noise_is_uniform_and_of_row_place_and_step_alone():
    drawn = [noise_tensor(torch.arange(50), 16, noise_state(1, step), 0) for step in range(20)]
    noise = torch.stack(drawn).numpy()  # [step, row, column]
    assert len(np.unique(noise.reshape(-1, LANES), axis=0)) == noise.size // LANES
    lanes = noise / 2**16
    assert abs(lanes.mean() - 0.5) < 0.01
    assert abs(lanes.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(lanes.reshape(20, -1))[np.triu_indices(20, 1)]).max() < 0.15


@pytest.mark.parametrize("dtype", FORMATS)
def test_small_steps_are_lost_to_the_nearest_and_not_at_random(dtype):
    at_random = to_the_nearest = begin = torch.full((200, 1), 0.1).to(TORCH_DTYPES[dtype]).float()
    for step in range(1, 1001):
        rows, state = torch.arange(200), noise_state(1, step)
        halves = narrow_tensor(at_random + 1e-5, rows, state, FORMATS[dtype], 0)
        at_random = halves.view(TORCH_DTYPES[dtype]).float()
        to_the_nearest = (to_the_nearest + 1e-5).to(TORCH_DTYPES[dtype]).float()
    assert (
        abs(at_random.mean() - begin.mean() - 0.01) < 0.0005
    )  # of 200 rows, which differ by 0.002 (bf16) and 0.0007 (fp16)
    assert torch.equal(to_the_nearest, begin)
