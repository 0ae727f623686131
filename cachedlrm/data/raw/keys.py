"""Categories as numbers: kernels over the buffers of Arrow's columns.

A value is what it says, whatever type holds it: the integer 7, the float 7.0, and the texts "7" and "7.0" are one
value. So a column may be integers in one file, floats (as pandas writes integers with missing ones) in the next, and
texts in a third. Other texts are 64 bits of a hash. A missing value is one of its own.

Numbers here are uint64 throughout: numba turns uint64 with int64 into float64.
"""

from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachedlrm.base.kernels import mix
from cachedlrm.data.raw.samples import Keys, UnparsableError

RULES = 2
"""Number of these rules; those of release 1 gave a missing text the key of an empty one, and "7" another than 7."""
MISSING = np.uint64(int.from_bytes(b"missing!", "big"))
"""The key of a missing value. Of all integers only 7,883,959,562,216,040,225 shares it."""

_MOST_EXACT_FLOAT = 2.0**53
_LARGEST_INT64 = np.uint64(2**63 - 1)


def unusable_as_ids(kind: pa.DataType) -> str | None:
    """Why a type of columns holds no categories, and what to do; None: it does, and `value_keys` takes it."""
    kind = _inside(kind)
    types = pa.types
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_floating(kind) or types.is_null(kind):
        return None
    if is_text(kind) or types.is_date(kind) or (types.is_decimal(kind) and kind.scale == 0):
        return None
    if types.is_timestamp(kind) or types.is_time(kind) or types.is_duration(kind):
        return "which hardly repeats; take the hour or the day out of it, or convert it to text"
    if types.is_decimal(kind):
        return f"which has {kind.scale} digits after the point; convert it to whole numbers or to text"
    return "where one integer or text a row is needed; convert it, or name another column"


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds texts, or strings of bytes."""
    types = pa.types
    tests = (
        types.is_string, types.is_large_string, types.is_string_view,
        types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _inside(kind: pa.DataType) -> pa.DataType:
    """What dictionaries and types of extensions hold."""
    while True:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def value_keys(column: pa.Array, out: Keys) -> NDArray[np.bool_] | None:
    """Keys of a column of any type that `unusable_as_ids` lets pass.

    Args:
        column: n values.
        out: [n] uint64, to fill.

    Returns:
        [n], the values that are no categories: floats that are not whole, or beyond 2^53; None: there are none.
    """
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _dictionary_keys(column, out)
    if pa.types.is_floating(kind):
        return _float_keys(column, out)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        integer_keys(column, out)
    elif pa.types.is_null(kind):
        out[:] = MISSING
    else:
        text_keys(column if is_text(kind) else column.cast(pa.string()), out)
    return None


def fold_keys(keys: Keys, max_ind_range: int) -> None:
    """Takes keys modulo ``max_ind_range``, in place; a missing value stays one."""
    if keys.dtype == np.uint64:
        missing = keys == MISSING
        keys %= np.uint64(max_ind_range)
        keys[missing] = MISSING
    else:  # of Criteo's, where a missing value is 0
        keys %= keys.dtype.type(max_ind_range)


def hex_keys(column: pa.Array, out: Keys) -> None:
    """Keys of up to eight hexadecimal digits, as ``int(text, 16)``; of an empty text 0, as in facebookresearch/dlrm.

    Args:
        column: n byte strings.
        out: [n], to fill.

    Raises:
        UnparsableError: anything else.
    """
    offsets, data = _buffers(column)
    if _parse_hex(offsets, data, out) >= 0:
        raise UnparsableError("a category is not up to 8 hexadecimal digits")


def integer_keys(column: pa.Array, out: Keys) -> None:
    """Keys of integers and booleans: the bits of their int64, those from 2^63 on as their texts; `MISSING`."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if column.type == pa.uint64():
        out[:] = column.fill_null(0).to_numpy(zero_copy_only=False)
        large = np.flatnonzero(out > _LARGEST_INT64)
        if len(large):
            keys = np.empty(len(large), np.uint64)
            text_keys(column.take(pa.array(large)).cast(pa.string()), keys)
            out[large] = keys
    else:
        out[:] = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    out[missing] = MISSING


def text_keys(column: pa.Array, out: Keys) -> None:
    """Keys of texts: of a whole number as it is written in decimal, with or without .0, the number's; of others 64 bits
    of FNV-1a, mixed; `MISSING`.

    Two of n texts get one key with probability n² / 2^65: 3e-8 for a million, 3e-4 for a hundred million.
    """
    offsets, data = _buffers(column.cast(pa.large_binary()))
    _key_texts(offsets, data, out)
    if column.null_count:
        out[column.is_null().to_numpy(zero_copy_only=False)] = MISSING


def _dictionary_keys(column: pa.DictionaryArray, out: Keys) -> NDArray[np.bool_] | None:
    """Each value of the dictionary gets its key once."""
    keys = np.empty(len(column.dictionary), np.uint64)
    bad = value_keys(column.dictionary, keys)
    missing = column.is_null().to_numpy(zero_copy_only=False)
    indices = column.indices.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    if missing.all():
        out[:] = MISSING
        return None
    out[:] = keys[indices]
    out[missing] = MISSING
    return None if bad is None else bad[indices] & ~missing


def _float_keys(column: pa.Array, out: Keys) -> NDArray[np.bool_] | None:
    """Keys of whole numbers, as integers; NaN is a missing value."""
    values: NDArray[np.float64] = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # NaN for null
    missing = np.isnan(values)
    bad = ~missing & ((np.trunc(values) != values) | (np.abs(values) > _MOST_EXACT_FLOAT))
    out[:] = np.where(missing | bad, 0.0, values).astype(np.int64).view(np.uint64)
    out[missing] = MISSING
    return bad if bad.any() else None


def _buffers(column: pa.Array) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Offsets [n + 1] and bytes of n byte strings."""
    _, offsets, data = column.buffers()
    first = column.offset
    if offsets is None or not len(column):
        return np.zeros(1, np.int32), np.empty(0, np.uint8)
    texts = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    return np.frombuffer(offsets, width)[first : first + len(column) + 1], texts


@numba.njit(cache=True, nogil=True)
def _parse_hex(offsets: NDArray[Any], data: NDArray[np.uint8], out: NDArray[Any]) -> int:
    """The index of the first text that is not up to 8 hexadecimal digits, or -1."""
    for index in range(len(offsets) - 1):
        if offsets[index + 1] - offsets[index] > 8:
            return index
        value = np.uint64(0)
        for place in range(offsets[index], offsets[index + 1]):
            code = data[place]
            if 48 <= code <= 57:
                digit = code - 48
            elif 97 <= code <= 102:
                digit = code - 87
            elif 65 <= code <= 70:
                digit = code - 55
            else:
                return index
            value = (value << np.uint64(4)) | np.uint64(digit)
        out[index] = value
    return -1


@numba.njit(cache=True, nogil=True)
def _key_texts(offsets: NDArray[Any], data: NDArray[np.uint8], out: NDArray[np.uint64]) -> None:
    """The number that a text spells, else FNV-1a (Fowler, Noll, Vo; RFC 9923), whose low bits alone are good, mixed."""
    for index in range(len(offsets) - 1):
        start, stop = offsets[index], offsets[index + 1]
        number, is_number = _whole_number(data, start, stop)
        if is_number:
            out[index] = number
            continue
        value = np.uint64(0xCBF29CE484222325)
        for place in range(start, stop):
            value = (value ^ np.uint64(data[place])) * np.uint64(0x100000001B3)
        out[index] = mix(value)


@numba.njit(cache=True, nogil=True)
def _whole_number(data: NDArray[np.uint8], start: int, stop: int) -> tuple[np.uint64, bool]:
    """The bits of the int64 that a text spells as programs write it, ``-12`` or ``-12.0``, and whether it does.

    Not those with leading zeros or a plus sign, which are other texts.
    """
    nothing = np.uint64(0)
    first = start + 1 if start < stop and data[start] == 45 else start  # a minus sign
    if first >= stop or not 48 <= data[first] <= 57:  # most texts
        return nothing, False
    if stop - first > 2 and data[stop - 1] == 48 and data[stop - 2] == 46:
        stop -= 2
    if stop - first > 19 or (data[first] == 48 and (stop - first > 1 or first > start)):
        return nothing, False
    value = nothing
    for place in range(first, stop):
        if not 48 <= data[place] <= 57:
            return nothing, False
        value = value * np.uint64(10) + np.uint64(data[place] - 48)
    if first > start:
        if value > np.uint64(2**63):
            return nothing, False
        return nothing - value, True
    return value, bool(value <= np.uint64(2**63 - 1))


@numba.njit(cache=True, nogil=True)
def unmix(mixed: np.uint64) -> np.uint64:
    """The inverse of `mix`."""
    mixed = mixed ^ (mixed >> np.uint64(31)) ^ (mixed >> np.uint64(62))
    mixed = mixed * np.uint64(0x319642B2D24D8EC3)
    mixed = mixed ^ (mixed >> np.uint64(27)) ^ (mixed >> np.uint64(54))
    mixed = mixed * np.uint64(0x96DE1B173F119089)
    return mixed ^ (mixed >> np.uint64(30)) ^ (mixed >> np.uint64(60))


@numba.njit(cache=True, nogil=True)
def unmix_all(mixed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`unmix` of each."""
    keys = np.empty_like(mixed)
    for index in range(len(mixed)):
        keys[index] = unmix(mixed[index])
    return keys


@numba.njit(cache=True, nogil=True)
def mix_all(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of each."""
    mixed = np.empty_like(keys)
    for index in range(len(keys)):
        mixed[index] = mix(keys[index])
    return mixed
