"""Floats of 16 bits beside float32: widened exactly, rounded at random, by integer arithmetic alone.

A number between two neighbours of 16 bits becomes the upper one with the probability of its distance from the lower
one. So its expected value is itself, and steps far smaller than the distance of neighbours move it as often as they
should; rounded to the nearest, all of them would be lost (Gupta et al., "Deep Learning with Limited Numerical
Precision", ICML 2015). The noise is a function of numbers that a caller gives, so that whoever rounds the same number
again gets the same bits: kernels on the CPU and torch's operators on any device alike.

Below the magnitudes of 16 bits float32 has 13 (fp16) or 16 (bf16) bits more, and the noise has 16: exact for bf16, and
for fp16 down to its least normal number, 2^-14. Of smaller ones bits below 2^-40 are cut off before. What exceeds the
largest finite number becomes it, infinities too; what is not a number stays so.
"""

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from cachedlrm.base.kernels import GAMMA, mix
from cachedlrm.base.splitmix import as_int64, mix_tensor

_MASK = (1 << 64) - 1
_NAN = 0x7FFF  # in either format
_NOISE = 0x524F554E44494E47  # so that a seed's noise is none of the other numbers that are drawn from it
LANES = 4
"""Numbers whose noise is one 64-bit number; 16 bits each, from the lowest."""
_PLACE_BITS = 16  # so that a row has noise for 2^18 numbers, and there may be 2^47 rows


class Format(NamedTuple):
    """A float of 16 bits, in what bit arithmetic needs.

    Attributes:
        up: bits that its fraction and 16 bits of noise have beyond the fraction of float32.
        bias: of float32's exponent beside its own, in place.
        least: float32's exponent of its least normal number.
        normal: its own bits of that number.
        special: its own bits of infinity.
        largest: float32's bits of its largest finite number.
    """

    up: np.uint32
    bias: np.uint32
    least: np.uint32
    normal: np.uint32
    special: np.uint32
    largest: np.uint32


# bf16 has the exponents of float32, so all of its numbers are the upper half of a float32.
FORMATS = {
    "bf16": Format(*map(np.uint32, (0, 0, 0, 0, 0xFFFF, 0x7F7F0000))),
    "fp16": Format(*map(np.uint32, (3, 112 << 23, 113, 0x0400, 0x7C00, 0x477FE000))),
}
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@numba.njit(cache=True, nogil=True, inline="always")
def narrow(bits: np.uint32, noise: np.uint32, form: Format) -> np.uint16:
    """The 16 bits of a float32 of ``bits``, rounded with 16 bits of noise."""
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    size = np.uint32(bits & np.uint32(0x7FFFFFFF))
    bounded = min(size, form.largest)
    exponent = np.uint32(bounded >> np.uint32(23))
    # In units of 2^-16 of the last place.
    fixed = np.uint32(np.uint32(bounded - form.bias) << form.up)
    if exponent < form.least:
        fraction = np.uint32(np.uint32(bounded & np.uint32(0x7FFFFF)) | np.uint32(0x800000))
        shift = min(np.uint32(form.least - exponent), np.uint32(31))
        fixed = np.uint32(np.uint32(fraction << form.up) >> shift)
    magnitude = np.uint32(np.uint32(fixed + noise) >> np.uint32(16))
    if size > np.uint32(0x7F800000):
        magnitude = np.uint32(_NAN)
    return np.uint16(magnitude | sign)


@numba.njit(cache=True, nogil=True, inline="always")
def widen(half: np.uint16, form: Format) -> np.uint32:
    """The bits of the float32 that equals a number of 16 bits."""
    sign = np.uint32(np.uint32(half & np.uint16(0x8000)) << np.uint32(16))
    magnitude = np.uint32(half & np.uint16(0x7FFF))
    bits = np.uint32(np.uint32(magnitude << np.uint32(np.uint32(16) - form.up)) + form.bias)
    if magnitude < form.normal:  # integers times the least number, 2^-24
        bits = np.float32(np.float32(np.int32(magnitude)) * np.float32(2.0**-24)).view(np.uint32)
    if magnitude >= form.special:
        bits = np.uint32(bits + form.bias)
    return np.uint32(bits | sign)


def noise_state(seed: int, step: int, first_row: int = 0) -> int:
    """The state that the noise of a step counts from, see `noise_of`, where rows are numbered from ``first_row`` on."""
    of_seed = int(mix(np.uint64((seed ^ _NOISE) & _MASK)))
    of_step = int(mix(np.uint64((of_seed + step * GAMMA) & _MASK)))
    return (of_step + (first_row << _PLACE_BITS) * GAMMA) & _MASK


@numba.njit(cache=True, nogil=True, inline="always")
def noise_of(state: np.uint64, row: int, place: int) -> np.uint64:
    """The noise of `LANES` numbers of a row: SplitMix64's output number ``row << 16 | place`` after the state."""
    counter = np.uint64(row) << np.uint64(_PLACE_BITS) | np.uint64(place)
    return mix(state + counter * np.uint64(GAMMA))


def narrow_tensor(numbers: Tensor, rows: Tensor, state: int, form: Format, first_place: int) -> Tensor:
    """`narrow` with the noise of `noise_of` in torch's operators: [n, width] int16 from [n, width] float32.

    Args:
        numbers: [n, width].
        rows: [n] int64.
        state: of the noise.
        form: of the result.
        first_place: of the first numbers of a row.
    """
    width = numbers.shape[1]
    places = torch.arange(first_place, first_place + -(-width // LANES), device=numbers.device)
    noise = mix_tensor(((rows << _PLACE_BITS).unsqueeze(1) | places) * as_int64(GAMMA) + as_int64(state))  # [n, places]
    lanes = noise.view(torch.int16)[:, :width].to(torch.int32) & 0xFFFF
    del noise
    bits = numbers.contiguous().view(torch.int32)
    size = bits & 0x7FFFFFFF
    up, bias, least, _, _, largest = map(int, form)
    bounded = size.clamp(max=largest)
    fixed = (bounded - bias) << up
    if least:
        exponent = bounded >> 23
        shift = (least - exponent).clamp(0, 31)
        small = (((bounded & 0x7FFFFF) | 0x800000) << up) >> shift
        fixed = torch.where(exponent < least, small, fixed)
    magnitude = ((fixed + lanes) >> 16).masked_fill_(size > 0x7F800000, _NAN)
    return (magnitude | ((bits >> 16) & 0x8000)).to(torch.int16)
