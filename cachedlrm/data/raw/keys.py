"""Categories as numbers: kernels over the buffers of Arrow's columns.

Numbers here are uint64 throughout: numba turns uint64 with int64 into float64.
"""

from typing import Any

import numba
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachedlrm.base.kernels import mix
from cachedlrm.data.raw.samples import Keys, UnparsableError

MISSING = np.uint64(1 << 63)
"""The key of a missing integer, where 0 is a category."""


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
    """Keys of integers: the bits of their int64; `MISSING` for those that are missing."""
    if column.type != pa.uint64():
        column = column.cast(pa.int64())
    missing = column.is_null().to_numpy(zero_copy_only=False)
    out[:] = column.fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64)
    out[missing] = MISSING


def text_keys(column: pa.Array, out: Keys) -> None:
    """Keys of texts: 64 bits of FNV-1a, mixed. A missing text is an empty one.

    Two of n texts get one key with probability n² / 2^65: 3e-8 for a million, 3e-4 for a hundred million.
    """
    offsets, data = _buffers(column.cast(pa.binary()).fill_null(b""))
    _hash_texts(offsets, data, out)


def _buffers(column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Offsets [n + 1] and bytes of n byte strings."""
    _, offsets, data = column.buffers()
    first = column.offset
    if offsets is None or not len(column):
        return np.zeros(1, np.int32), np.empty(0, np.uint8)
    texts = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return np.frombuffer(offsets, np.int32)[first : first + len(column) + 1], texts


@numba.njit(cache=True, nogil=True)
def _parse_hex(offsets: NDArray[np.int32], data: NDArray[np.uint8], out: NDArray[Any]) -> int:
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
def _hash_texts(offsets: NDArray[np.int32], data: NDArray[np.uint8], out: NDArray[np.uint64]) -> None:
    """FNV-1a (Fowler, Noll, Vo; RFC 9923), whose low bits alone are good, mixed."""
    for index in range(len(offsets) - 1):
        value = np.uint64(0xCBF29CE484222325)
        for place in range(offsets[index], offsets[index + 1]):
            value = (value ^ np.uint64(data[place])) * np.uint64(0x100000001B3)
        out[index] = mix(value)


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
