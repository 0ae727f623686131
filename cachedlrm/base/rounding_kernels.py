"""A row's numbers from floats of 16 bits, and back, in vectors: the parts of which kernels of records are made."""

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from cachedlrm.base.kernels import BLOCK, GAMMA, MULTIPLIER_1, MULTIPLIER_2
from cachedlrm.base.lanes import Lanes, counted, load, place_of, splat
from cachedlrm.base.rounding import FORMATS, LANES, NOISE_BITS, PLACE_BITS, Format, narrow, widen

# The arrays of all of these are C-contiguous uint32: words of records, and bits of float32s. Numbers that are kept as
# ``dtype`` are counted from the word that the first is in. ``dtype`` and ``count`` are constants of the compiled code.


@numba.njit(cache=True, nogil=True, inline="always")
def widen_run(
    words: NDArray[np.uint32], word: int, numbers: NDArray[np.uint32], place: int, count: int, dtype: str
) -> None:
    """Writes ``count`` numbers, kept from ``words[word]`` on, from ``numbers[place]`` on."""
    in_blocks, in_places = count - count % BLOCK, count - count % LANES
    for number in range(0, in_blocks, BLOCK):
        _widen(words, word, numbers, place, number, dtype, BLOCK)
    for number in range(in_blocks, in_places, LANES):
        _widen(words, word, numbers, place, number, dtype, LANES)
    for number in range(in_places, count):
        _widen(words, word, numbers, place, number, dtype, 1)


@numba.njit(cache=True, nogil=True, inline="always")
def narrow_run(
    words: NDArray[np.uint32],
    word: int,
    numbers: NDArray[np.uint32],
    place: int,
    count: int,
    dtype: str,
    noise: np.uint64,
    noise_place: int,
) -> None:
    """The reverse: numbers are rounded with a row's noise (`noise_of_row`) from a place of it on."""
    in_blocks, in_places = count - count % BLOCK, count - count % LANES
    if count % 2:
        words[word + count // 2] = 0  # so that what fills up a word is
    for number in range(0, in_blocks, BLOCK):
        _narrow(words, word, numbers, place, number, dtype, BLOCK, noise, noise_place)
    for number in range(in_blocks, in_places, LANES):
        _narrow(words, word, numbers, place, number, dtype, LANES, noise, noise_place)
    for number in range(in_places, count):
        _narrow(words, word, numbers, place, number, dtype, 1, noise, noise_place)


@numba.njit(cache=True, nogil=True, inline="always")
def noise_of_row(state: np.uint64, row: int) -> np.uint64:
    """The state that a row's noise counts from, of that of a step: its place ``p`` has output number ``p``."""
    return state + (np.uint64(row) << np.uint64(PLACE_BITS)) * np.uint64(GAMMA)


def _widen_code(
    typing_context: Any, words: Any, word: Any, numbers: Any, place: Any, number: Any, dtype: Any, count: Any
) -> tuple[Any, Callable[..., Any]]:
    form, lanes = FORMATS.get(dtype.literal_value), count.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kept, target = _places(context, builder, signature, arguments, form)
        if form is None:
            load(builder, kept, 32, lanes).store(target)
        else:
            widen(load(builder, kept, 16, lanes).resized(32), form).store(target)
        return context.get_dummy_value()

    return types.void(words, types.int64, numbers, types.int64, types.int64, dtype, count), generate


def _narrow_code(
    typing_context: Any, words: Any, word: Any, numbers: Any, place: Any, number: Any, dtype: Any, count: Any,
    noise: Any, noise_place: Any,
) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
    form, lanes = FORMATS.get(dtype.literal_value), count.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, noise, noise_place = arguments[4], arguments[-2], arguments[-1]
        kept, source = _places(context, builder, signature, arguments, form)
        bits = load(builder, source, 32, lanes)
        if form is None:
            bits.store(kept)
        else:
            narrow(bits, _noise(builder, noise, noise_place, number, lanes), form).resized(16).store(kept)
        return context.get_dummy_value()

    kinds = (words, types.int64, numbers, types.int64, types.int64, dtype, count, types.uint64, types.int64)
    return types.void(*kinds), generate


def _places(context: Any, builder: Any, signature: Any, arguments: Any, form: Format | None) -> tuple[Any, Any]:
    """Where numbers are kept, and where they are in 32 bits."""
    words, word, numbers, place, number = arguments[:5]
    words = context.make_array(signature.args[0])(context, builder, words).data
    numbers = context.make_array(signature.args[2])(context, builder, numbers).data
    return place_of(builder, words, word, number, 16 if form else 32), place_of(builder, numbers, place, number, 32)


def _noise(builder: Any, of_row: Any, first_place: Any, number: Any, count: int) -> Lanes:
    """The noise of ``count`` numbers of a row from one on, in 32 bits each; they fill places, or are one."""
    in_place = ir.Constant(number.type, LANES)
    place = builder.add(first_place, builder.udiv(number, in_place))
    first = builder.add(of_row, builder.mul(place, ir.Constant(place.type, GAMMA)))
    places = -(-count // LANES)
    noise = _mix(splat(builder, first, places) + counted(builder, places, GAMMA))
    if count > 1:
        return noise.cut(NOISE_BITS).resized(32)
    below = builder.mul(builder.urem(number, in_place), ir.Constant(number.type, NOISE_BITS))
    return (noise >> splat(builder, below, 1)).resized(NOISE_BITS).resized(32)


def _mix(value: Lanes) -> Lanes:
    """`cachedlrm.base.kernels.mix` of each."""
    value = (value ^ value >> 30) * MULTIPLIER_1
    value = (value ^ value >> 27) * MULTIPLIER_2
    return value ^ value >> 31


_widen = cast("Callable[..., None]", intrinsic(prefer_literal=True)(_widen_code))
_narrow = cast("Callable[..., None]", intrinsic(prefer_literal=True)(_narrow_code))
