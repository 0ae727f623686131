"""Records as they are kept, and as the numbers of which they are made.

Every tier keeps and moves records as words of four bytes, and asks nothing more. What computes takes their numbers,
float32 each, in the columns of a `RecordLayout`; in a layout without floats of 16 bits record and numbers are the same.
Otherwise two numbers are in a word; numbers are rounded (`cachedlrm.base.rounding`) when they become a record, as a
part of the step that changed them: that of a batch, from 1 on, or 0 when a row is first touched. Nothing is rounded
when a record moves from tier to tier.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.kernels import gather_rows, load_row_ahead, scatter_rows
from cachedlrm.base.rounding import FORMATS, LANES, TORCH_DTYPES, narrow_tensor, noise_state
from cachedlrm.base.rounding_kernels import narrow_run, noise_of_row, widen_run
from cachedlrm.store.init import DeviceFill, RowInit, in_turns
from cachedlrm.store.records import GroupShape, RecordLayout

TURN_NUMBERS = 1 << 18
"""Numbers that are rounded at a time by operators of the device, whose temporaries take several times their bytes."""


class Packing:
    """The records of a group of tables as numbers, and back.

    Args:
        layout: of a record.
        seed: of the noise.
        first_row: number of the group's first row in the noise, so that groups have their own.
    """

    def __init__(self, layout: RecordLayout, seed: int, first_row: int = 0) -> None:
        self.layout = layout
        self._seed = seed
        self._first_row = first_row

    def gather(self, slab: Tensor, slots: Tensor, out: Tensor) -> None:
        """The numbers of the records in ``slots`` [n] int64 of ``slab`` [slots, width], into ``out`` [n, columns]."""
        layout = self.layout
        if slab.is_cuda:
            if layout.is_packed:
                _unpack_tensor(layout, slab.index_select(0, slots), out)
            else:
                torch.index_select(slab, 0, slots, out=out)
        elif layout.is_packed:
            _unpack(layout, slab.numpy(), slots.numpy(), out.numpy())
        else:
            gather_rows(slab.numpy(), slots.numpy(), out.numpy())

    def scatter(self, slab: Tensor, slots: Tensor, numbers: Tensor, rows: Tensor | None, step: int) -> None:
        """Stores the records of ``numbers`` [n, columns] in ``slots`` [n] int64, all different, of ``slab``.

        Args:
            slab: [slots, width].
            slots: [n].
            numbers: [n, columns].
            rows: [n] int64, which they are of; None: the layout has no floats of 16 bits.
            step: whose numbers they are.
        """
        layout = self.layout
        if not layout.is_packed:
            if slab.is_cuda:
                slab.index_copy_(0, slots, numbers)
            else:
                scatter_rows(slab.numpy(), slots.numpy(), numbers.numpy())
            return
        assert rows is not None
        if slab.is_cuda:
            turn = turn_rows(layout)
            for first in range(0, len(rows), turn):
                part = slice(first, first + turn)
                slab.index_copy_(0, slots[part], self._packed_tensor(numbers[part], rows[part], step))
        else:
            self._pack(numbers.numpy(), rows.numpy(), step, slots.numpy(), slab.numpy())

    def unpacked(self, records: Tensor) -> Tensor:
        """The numbers [n, columns] of ``records`` [n, width]; these themselves if they are the same."""
        if not self.layout.is_packed:
            return records
        out = records.new_empty(records.shape[0], self.layout.columns)
        self.gather(records, torch.arange(records.shape[0], device=records.device), out)
        return out

    def init(self, init: RowInit) -> RowInit:
        """Initial records, from ``init``, which has their numbers."""
        return _PackedInit(self, init) if self.layout.is_packed else init

    def pack(self, numbers: NDArray[np.float32], rows: NDArray[np.int64], step: int, out: NDArray[np.float32]) -> None:
        """Writes the records of ``numbers`` [n, columns], of ``rows`` [n] at ``step``, into ``out`` [n, width]."""
        self._pack(numbers, rows, step, np.arange(len(rows)), out)

    def pack_on_device(self, numbers: Tensor, rows: Tensor, step: int, out: Tensor) -> None:
        """The same bits by operators of the device."""
        out.copy_(self._packed_tensor(numbers, rows, step))

    def _pack(
        self,
        numbers: NDArray[np.float32],
        rows: NDArray[np.int64],
        step: int,
        places: NDArray[np.int64],
        out: NDArray[np.float32],
    ) -> None:
        layout = self.layout
        _, pack = _kernels(layout.row_dtype, layout.state_dtype)
        pack(
            out.view(np.uint32), places, numbers.view(np.uint32), layout.parameter_width, layout.parameter_words, rows,
            np.uint64(self._state(step)),
        )  # fmt: skip

    def _packed_tensor(self, numbers: Tensor, rows: Tensor, step: int) -> Tensor:
        """The records [n, width] of ``numbers`` [n, columns], on their device."""
        layout = self.layout
        out = numbers.new_zeros(len(rows), layout.width)  # what fills up a word is zero
        first_place = 0
        for dtype, columns, words in _parts(layout):
            part, kept = numbers[:, columns], out[:, words]
            if dtype == "fp32":
                kept.copy_(part)
            elif part.shape[1]:
                halves = narrow_tensor(part, rows, self._state(step), FORMATS[dtype], first_place)
                kept.view(torch.int16)[:, : part.shape[1]] = halves
            first_place += -(-part.shape[1] // LANES)
        return out

    def _state(self, step: int) -> int:
        """Of the noise; rows of the group count on from `first_row`."""
        return noise_state(self._seed, step, self._first_row)


def packings(shapes: Sequence[GroupShape], seed: int) -> list[Packing]:
    """Of all groups of tables of a run, with its seed."""
    first_rows = itertools.accumulate((shape.num_rows for shape in shapes), initial=0)
    return [Packing(shape.layout, seed, first_row) for shape, first_row in zip(shapes, first_rows, strict=False)]


class _PackedInit:
    """Initial records of a layout with floats of 16 bits."""

    def __init__(self, packing: Packing, init: RowInit) -> None:
        self._packing = packing
        self._init = init

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """See `RowInit`."""
        numbers = np.empty((len(rows), self._packing.layout.columns), np.float32)
        self._init.fill(rows, numbers)
        self._packing.pack(numbers, rows, 0, out)

    @property
    def fill_on_device(self) -> DeviceFill | None:
        """See `RowInit`."""
        fill = self._init.fill_on_device
        if fill is None:
            return None

        def packed(rows: Tensor, out: Tensor) -> None:
            numbers = out.new_empty(len(rows), self._packing.layout.columns)
            fill(rows, numbers)
            self._packing.pack_on_device(numbers, rows, 0, out)

        return in_turns(packed)


def numbers_of(layout: RecordLayout, records: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers [n, columns] of ``records`` [n, width]; these themselves if they are the same."""
    if not layout.is_packed:
        return records
    out = np.empty((len(records), layout.columns), np.float32)
    _unpack(layout, np.ascontiguousarray(records), np.arange(len(records)), out)
    return out


def word_dtype(layout: RecordLayout) -> np.dtype:
    """Of records in files: their numbers, or words that hold these by twos."""
    return np.dtype(np.int32 if layout.is_packed else np.float32)


def as_kept(
    layout: RecordLayout, records: NDArray[np.float32], columns: slice | int
) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Some columns of ``records`` [n, width] as they are kept: float32, or the bits of 16.

    Args:
        layout: of a record.
        records: [n, width].
        columns: of the parameters, or of the state.
    """
    start = columns if isinstance(columns, int) else columns.start
    for dtype, part, words in _parts(layout):
        if part.start <= start < part.stop:
            kept = records[:, words] if dtype == "fp32" else np.ascontiguousarray(records[:, words]).view(np.uint16)
            begin = start - part.start
            return kept[:, begin] if isinstance(columns, int) else kept[:, begin : begin + columns.stop - start]
    raise AssertionError("a record has no such columns")


def turn_rows(layout: RecordLayout) -> int:
    """Rows that are rounded at a time by operators of the device."""
    return max(1, TURN_NUMBERS // layout.columns)


def _parts(layout: RecordLayout) -> tuple[tuple[str, slice, slice], ...]:
    """Of the parameters and of the state: how they are kept, their columns and their words."""
    columns, words = layout.parameter_width, layout.parameter_words
    return (
        (layout.row_dtype, slice(0, columns), slice(0, words)),
        (layout.state_dtype, slice(columns, layout.columns), slice(words, layout.width)),
    )


def _unpack_tensor(layout: RecordLayout, records: Tensor, out: Tensor) -> None:
    """The numbers [n, columns] of ``records`` [n, width], by operators of their device."""
    for dtype, columns, words in _parts(layout):
        part, kept = out[:, columns], records[:, words]
        if dtype != "fp32":
            kept = kept.view(TORCH_DTYPES[dtype])[:, : part.shape[1]]
        part.copy_(kept)


def _unpack(
    layout: RecordLayout, records: NDArray[np.float32], places: NDArray[np.int64], out: NDArray[np.float32]
) -> None:
    """The numbers of ``records`` at ``places`` [n], into ``out`` [n, columns]."""
    unpack, _ = _kernels(layout.row_dtype, layout.state_dtype)
    unpack(records.view(np.uint32), places, out.view(np.uint32), layout.parameter_width, layout.parameter_words)


@cache
def _kernels(row_dtype: str, state_dtype: str) -> tuple[Any, Any]:
    """`gather_rows` and `scatter_rows` of records as numbers: one code, compiled for each pair of dtypes.

    Arrays are C-contiguous; numbers are their bits.
    """

    @numba.njit(cache=True, nogil=True)
    def unpack(
        records: NDArray[np.uint32],
        places: NDArray[np.int64],
        numbers: NDArray[np.uint32],
        num_parameters: int,
        parameter_words: int,
    ) -> None:
        width, columns = records.shape[1], numbers.shape[1]
        words, flat = records.reshape(records.size), numbers.reshape(numbers.size)
        for index in range(len(places)):
            load_row_ahead(words, width, places, index)
            word, place = places[index] * width, index * columns
            widen_run(words, word, flat, place, num_parameters, row_dtype)
            word, place = word + parameter_words, place + num_parameters
            widen_run(words, word, flat, place, columns - num_parameters, state_dtype)

    @numba.njit(cache=True, nogil=True)
    def pack(
        records: NDArray[np.uint32],
        places: NDArray[np.int64],
        numbers: NDArray[np.uint32],
        num_parameters: int,
        parameter_words: int,
        rows: NDArray[np.int64],
        noise_of_step: np.uint64,
    ) -> None:
        width, columns = records.shape[1], numbers.shape[1]
        words, flat = records.reshape(records.size), numbers.reshape(numbers.size)
        state_place = -(-num_parameters // LANES)
        for index in range(len(places)):
            load_row_ahead(words, width, places, index)
            noise = noise_of_row(noise_of_step, rows[index])
            word, place = places[index] * width, index * columns
            narrow_run(words, word, flat, place, num_parameters, row_dtype, noise, 0)
            word, place = word + parameter_words, place + num_parameters
            narrow_run(words, word, flat, place, columns - num_parameters, state_dtype, noise, state_place)

    return unpack, pack
