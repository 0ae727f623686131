"""Rows of arrays larger than the processor's caches: allocated, gathered, scattered, prefetched; and SplitMix64."""

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

LINE_BYTES = 64
_LINE = LINE_BYTES // 4  # words
# Turns of a loop. Numba compiles a kernel anew when its own file changes, not when this one does.
AHEAD = 32


def _load_ahead(typing_context: Any, array: types.Array, index: types.Integer) -> tuple[Any, Callable[..., Any]]:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of, index = context.make_array(signature.args[0])(context, builder, arguments[0]), arguments[1]
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        if array.is_c_contig:
            place = builder.bitcast(builder.gep(of.data, [index]), byte)
        else:
            stride = builder.extract_value(of.strides, 0)
            place = builder.gep(builder.bitcast(of.data, byte), [builder.mul(index, stride)])
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        )
        read, keep, is_data = ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)
        builder.call(prefetch, [place, read, keep, is_data])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


load_ahead = cast("Callable[[NDArray[Any], Any], None]", intrinsic(_load_ahead))
"""In compiled code: starts to load the line of ``array[index]``, [n]. A hint that changes no value.

A processor runs ahead over some hundred instructions, and no further than a branch that it predicted wrongly. A loop
that needs one unpredictable line after the other has most of them on their way if it names them early.
"""


def _add_block(
    typing_context: Any,
    target: types.Array,
    place: types.Integer,
    values: types.Array,
    index: types.Integer,
    factor: types.Float,
) -> tuple[Any, Callable[..., Any]]:
    vector = ir.VectorType(ir.FloatType(), BLOCK)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = []
        for first in (0, 2):
            data = context.make_array(signature.args[first])(context, builder, arguments[first]).data
            pointers.append(builder.bitcast(builder.gep(data, [arguments[first + 1]]), vector.as_pointer()))
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[4], ir.Constant(ir.IntType(32), 0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), BLOCK), [0] * BLOCK)
        factors = builder.shuffle_vector(one, one, lanes)
        total, added = (builder.load(pointer, align=4) for pointer in pointers)
        product = builder.fmul(factors, added, flags=("contract",))
        builder.store(builder.fadd(total, product, flags=("contract",)), pointers[0], align=4)
        return context.get_dummy_value()

    return types.void(target, types.int64, values, types.int64, types.float32), generate


BLOCK = 16  # columns

add_block = cast(
    "Callable[[NDArray[np.float32], int, NDArray[np.float32], int, np.float32], None]", intrinsic(_add_block)
)
"""In compiled code: ``target[place : place + BLOCK] += factor * values[index : index + BLOCK]``, rounded once.

In vectors, which numba's compiler makes of a loop over columns only if their number is known and large.
"""


def empty_rows(num_rows: int, width: int) -> NDArray[np.float32]:
    """[num_rows, width] float32, uninitialised, from the start of a line on.

    Of numpy's memory, for which it asks the system for huge pages: rows drawn at random from a gigabyte in pages of
    4 KiB cost a page walk each.
    """
    room = np.empty(num_rows * width + _LINE, np.float32)
    first = -room.ctypes.data % LINE_BYTES // 4
    return room[first : first + num_rows * width].reshape(num_rows, width)


def side_by_side(size: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Two arrays [size] int32 of zeros, whose elements of one index share a line."""
    both = np.zeros((size, 2), np.int32)
    return both[:, 0], both[:, 1]


@numba.njit(cache=True, nogil=True, inline="always")
def load_row_ahead(flat: NDArray[Any], width: int, rows: NDArray[np.int64], index: int) -> None:
    """Starts to load the row [width] of ``flat`` that is `AHEAD` turns after ``rows[index]``; this one at the end."""
    # No branch: numba would count references of what it inlines there, at every row. The last row in place of this one
    # took 0.17 ms for 14,000 rows of 16 instead of 0.13.
    place = rows[index + AHEAD if index + AHEAD < len(rows) else index] * width
    for column in range(0, width, _LINE):
        load_ahead(flat, place + column)
    load_ahead(flat, place + width - 1)


@numba.njit(cache=True, nogil=True)
def gather_rows(records: NDArray[np.float32], rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Copies ``rows`` [n] of ``records``, C-contiguous, into ``out`` [n, width]."""
    width = records.shape[1]
    flat = records.reshape(records.size)
    for index in range(len(rows)):
        load_row_ahead(flat, width, rows, index)
        source = rows[index]
        for column in range(width):
            out[index, column] = records[source, column]


@numba.njit(cache=True, nogil=True)
def scatter_rows(records: NDArray[np.float32], rows: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    """Stores ``values`` [n, width] in ``rows`` [n] of ``records``."""
    for index in range(len(rows)):
        target = rows[index]
        for column in range(records.shape[1]):
            records[target, column] = values[index, column]


GAMMA = 0x9E3779B97F4A7C15
MULTIPLIER_1, MULTIPLIER_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), whose output
number ``n`` after the state ``s`` is ``mix(s + n * GAMMA)``."""


@numba.njit(cache=True, nogil=True, inline="always")
def mix(value: np.uint64) -> np.uint64:
    """A permutation of 64 bits whose output looks random: the finaliser of SplitMix64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(MULTIPLIER_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(MULTIPLIER_2)
    return value ^ (value >> np.uint64(31))


def table_offsets(table_rows: tuple[int, ...]) -> NDArray[np.int64]:
    """First global row of each table, and the number of all rows: [T + 1] int64."""
    return np.concatenate([[0], np.cumsum(table_rows, dtype=np.int64)]).astype(np.int64)
