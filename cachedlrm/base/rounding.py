"""Floats of 16 bits beside float32: widened exactly, rounded at random, by integer arithmetic alone.

A number between two neighbours of 16 bits becomes the upper one with the probability of its distance from the lower
one. So its expected value is itself, and steps far smaller than the distance of neighbours move it as often as they
should; rounded to the nearest, all of them would be lost (Gupta et al., "Deep Learning with Limited Numerical
Precision", ICML 2015). The noise is a function of numbers that a caller gives, so that whoever rounds the same number
again gets the same bits: kernels on the CPU (`cachedlrm.base.rounding_kernels`) and torch's operators on any device
alike.

Below the magnitudes of 16 bits float32 has 13 (fp16) or 16 (bf16) bits more, and the noise has 16: exact for bf16, and
for fp16 down to its least normal number, 2^-14. Of smaller ones bits below 2^-40 are cut off before. What exceeds the
largest finite number becomes it, infinities too; what is not a number stays so.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cachedlrm.base.kernels import GAMMA, mix
from cachedlrm.base.lanes import Lanes
from cachedlrm.base.splitmix import as_int64, mix_tensor

_MASK = (1 << 64) - 1
_NAN = 0x7FFF  # in either format
_NOISE = 0x524F554E44494E47  # so that a seed's noise is none of the other numbers that are drawn from it
NOISE_BITS = 16
LANES = 64 // NOISE_BITS
"""Numbers of a row that share a place of it: their noise is one 64-bit number, cut from its lowest bits on."""
PLACE_BITS = 16  # so that a row has noise for 2^18 numbers, and there may be 2^47 rows


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

    up: int
    bias: int
    least: int
    normal: int
    special: int
    largest: int


# bf16 has the exponents of float32, so all of its numbers are the upper half of a float32.
FORMATS = {
    "bf16": Format(0, 0, 0, 0, 0xFFFF, 0x7F7F0000),
    "fp16": Format(3, 112 << 23, 113, 0x0400, 0x7C00, 0x477FE000),
}
TORCH_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def narrow(bits: Any, noise: Any, form: Format) -> Any:
    """The 16 bits of float32s of ``bits``, rounded with 16 bits of noise; all are `Lanes`, or int32 tensors."""
    size = bits & 0x7FFFFFFF
    bounded = size.clamp(max=form.largest)
    fixed = (bounded - form.bias) << form.up  # in units of 2^-16 of the last place
    if form.least:
        fixed = _narrow_small(bounded, form).where(bounded < (form.least << 23), fixed)
    magnitude = ((fixed + noise) >> 16).masked_fill(size > 0x7F800000, _NAN)
    return magnitude | (bits >> 16 & 0x8000)


def _narrow_small(size: Any, form: Format) -> Any:
    """The same units of numbers below the least normal one, from their float32's bits without sign."""
    shift = (form.least - (size >> 23).clamp(max=form.least)).clamp(max=31)
    return (((size & 0x7FFFFF) | 0x800000) << form.up) >> shift


def widen(halves: Lanes, form: Format) -> Lanes:
    """The bits of the float32s that equal numbers of 16 bits, which are in 32 bits each."""
    magnitude = halves & 0x7FFF
    bits = (magnitude << (16 - form.up)) + form.bias
    if form.normal:
        bits = magnitude.times(2.0**-24).where(magnitude < form.normal, bits)
    bits = bits.where(magnitude < form.special, bits + form.bias)
    return bits | (halves & 0x8000) << 16


def noise_state(seed: int, step: int, first_row: int = 0) -> int:
    """The state that the noise of a step counts from, where rows are numbered from ``first_row`` on.

    The noise of a row's place is SplitMix64's output number ``row << 16 | place`` after it.
    """
    of_seed = int(mix(np.uint64((seed ^ _NOISE) & _MASK)))
    of_step = int(mix(np.uint64((of_seed + step * GAMMA) & _MASK)))
    return (of_step + (first_row << PLACE_BITS) * GAMMA) & _MASK


def narrow_tensor(numbers: Tensor, rows: Tensor, state: int, form: Format, first_place: int) -> Tensor:
    """`narrow` with the noise of a step, by torch's operators: [n, width] int16 from [n, width] float32.

    Args:
        numbers: [n, width].
        rows: [n] int64.
        state: of the noise.
        form: of the result.
        first_place: of the first numbers of a row.
    """
    noise = noise_tensor(rows, numbers.shape[1], state, first_place)
    halves: Tensor = narrow(numbers.contiguous().view(torch.int32), noise, form)
    return halves.to(torch.int16)


def noise_tensor(rows: Tensor, width: int, state: int, first_place: int) -> Tensor:
    """The noise of ``width`` numbers of each of ``rows`` [n] int64, from a place on: [n, width] int32."""
    places = torch.arange(first_place, first_place + -(-width // LANES), device=rows.device)
    noise = mix_tensor(((rows << PLACE_BITS).unsqueeze(1) | places) * as_int64(GAMMA) + as_int64(state))  # [n, places]
    return noise.view(torch.int16)[:, :width].to(torch.int32) & 0xFFFF
