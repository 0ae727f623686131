"""Initial records of rows that were never touched; the store does not hold them.

`CounterInit`: the weight is a pure function of (seed, row), computed where it is first needed. So tables of any size
start at once, and every tier, device and cache size starts from identical bits. `ArrayInit`: the parameters are given,
as those of a loaded model or of a generator that draws whole tables.

In `CounterInit` element ``(row, column)`` is output number ``row * dim + column`` of the SplitMix64 generator
(`cachedlrm.base.kernels`) started at ``mix(seed)``. Its upper 24 bits become a float32 in [-1, 1), exactly, and one
multiplication by the table's bound rounds once. The numba kernel and the torch version therefore agree to the last
bit, on any device.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.kernels import GAMMA, mix, table_offsets
from cachedlrm.base.splitmix import as_int64, mix_tensor, shift_right
from cachedlrm.store.records import RecordLayout

DEVICE_TURN_ROWS = 2048

DeviceFill = Callable[[Tensor, Tensor], None]

_MASK = (1 << 64) - 1


@numba.njit(cache=True, nogil=True)
def _fill(
    rows: NDArray[np.int64],
    state: np.uint64,
    first_rows: NDArray[np.int64],
    bounds: NDArray[np.float32],
    dim: int,
    out: NDArray[np.float32],
) -> None:
    """Writes weights into ``out[:, :dim]`` and zero state after them."""
    scale = np.float32(2.0**-23)
    for index in range(len(rows)):
        bound = bounds[np.searchsorted(first_rows, rows[index], side="right") - 1]
        counter = state + np.uint64(rows[index]) * np.uint64(dim) * np.uint64(GAMMA)
        for column in range(dim):
            value = counter + np.uint64(column) * np.uint64(GAMMA)
            unit = np.float32(np.int32(mix(value) >> np.uint64(40))) * scale - np.float32(1.0)
            out[index, column] = unit * bound
        for column in range(dim, out.shape[1]):
            out[index, column] = np.float32(0.0)


class RowInit(Protocol):
    """Records of rows that were never touched, as their numbers: parameters, and optimizer state of zero."""

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Writes the initial records of ``rows`` [n] into ``out`` [n, columns], on the host."""
        ...

    @property
    def fill_on_device(self) -> DeviceFill | None:
        """The same bits by operators of the device, so that nothing has to be copied there; None: only on the host."""
        ...


def in_turns(fill: DeviceFill) -> DeviceFill:
    """The same, some rows at a time: its temporaries take several times the bytes of what it fills."""

    def fill_all(rows: Tensor, out: Tensor) -> None:
        for first in range(0, len(rows), DEVICE_TURN_ROWS):
            fill(rows[first : first + DEVICE_TURN_ROWS], out[first : first + DEVICE_TURN_ROWS])

    return fill_all


class CounterInit:
    """Weights uniform in ±sqrt(1 / rows of the table) from a counter, pooling weights 1.

    Args:
        seed: any integer; the run's seed.
        table_rows: rows of each table.
        layout: columns of a record.
        device: of the slab.
        first_element: weights that other tables drew from the same seed before these.
    """

    def __init__(
        self,
        seed: int,
        table_rows: tuple[int, ...],
        layout: RecordLayout,
        device: torch.device | None = None,
        first_element: int = 0,
    ) -> None:
        device = device or torch.device("cpu")
        self._layout = layout
        self._state = (int(mix(np.uint64(seed & _MASK))) + first_element * GAMMA) & _MASK
        self._first_rows = table_offsets(table_rows)
        self._bounds = np.sqrt(1.0 / np.asarray(table_rows, np.float64)).astype(np.float32)
        self._device_boundaries = torch.from_numpy(self._first_rows[1:].copy()).to(device)
        self._device_bounds = torch.from_numpy(self._bounds).to(device)
        columns = [as_int64(column * GAMMA) for column in range(layout.dim)]
        self._device_columns = torch.tensor(columns, device=device)

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """See `RowInit`."""
        dim = self._layout.dim
        _fill(rows, np.uint64(self._state), self._first_rows, self._bounds, dim, out)
        if self._layout.weighted:
            out[:, dim] = 1.0

    def fill_on_device(self, rows: Tensor, out: Tensor) -> None:
        """The same in torch operators: ``rows`` [n] int64 and ``out`` [n, columns] float32 on one device."""
        in_turns(self._fill_on_device)(rows, out)

    def _fill_on_device(self, rows: Tensor, out: Tensor) -> None:
        dim = self._layout.dim
        row_counters = rows * as_int64(dim * GAMMA) + as_int64(self._state)
        value = row_counters.unsqueeze(1) + self._device_columns  # [n, dim]
        unit = shift_right(mix_tensor(value), 40).to(torch.float32) * 2.0**-23 - 1.0
        bounds = self._device_bounds[torch.bucketize(rows, self._device_boundaries, right=True)]
        torch.mul(unit, bounds.unsqueeze(1), out=out[:, :dim])
        out[:, dim:] = 0.0
        if self._layout.weighted:
            out[:, dim] = 1.0


class ArrayInit:
    """Columns from arrays of whole tables, which stay where they are: in host memory, or in a file that is mapped.

    Args:
        tables: of each table its arrays, [rows, columns] or [rows] float32, side by side from the first column of the
            record on; columns after them are zero.
    """

    fill_on_device = None

    def __init__(self, tables: Sequence[Sequence[NDArray[np.float32]]]) -> None:
        self._tables = tables
        self._first_rows = table_offsets(tuple(len(arrays[0]) for arrays in tables))

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """See `RowInit`."""
        table_of = np.searchsorted(self._first_rows, rows, side="right") - 1
        out[...] = 0.0
        for table in np.unique(table_of):
            here = np.flatnonzero(table_of == table)
            local = rows[here] - self._first_rows[table]
            column = 0
            for array in self._tables[table]:
                values = array[local]
                if values.ndim == 1:
                    values = values[:, None]
                out[here, column : column + values.shape[1]] = values
                column += values.shape[1]
