"""Rows of batches that are predicted and not trained: found from the ids alone, read wherever they are, and pooled.

A thread may find the rows of later batches (`RowReader.find`) while this one's are read (`RowReader.pool`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.data.lookups import Lookups
from cachedlrm.model.bags import bag_sizes, pool
from cachedlrm.model.quantized import QuantizedTables
from cachedlrm.store.records import RecordLayout

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]

Route = Callable[[Any], tuple[Lookups, ...]]
"""The lookups of a batch in each group of tables, as `cachedlrm.data.lookups.Router` finds them."""

ReadRows = Callable[[Int64s], Tensor]
"""Parameters [U, parameter_width] of rows [U] of a group, on the device."""


@dataclass(frozen=True)
class FoundRows:
    """The rows that a batch looks up in a group of tables.

    Attributes:
        rows: [U] int64, each once, in order of first appearance.
        positions: [L] int32, the position of each lookup's row.
        offsets: [num_bags + 1] int32, bag boundaries in ``positions``.
    """

    rows: Int64s
    positions: Int32s
    offsets: Int32s


class RowReader:
    """Pooled vectors of current rows. Changes nothing.

    Args:
        router: from a batch to the lookups of each group.
        layouts: of each group.
        reads: of each group.
        device: of the vectors.
        averages: whether a bag's vector is the mean of its rows, 0 of an empty bag.
        bits: of an element of the tables as they are served: 32, or 8 and 4 on the CPU.
    """

    def __init__(
        self,
        router: Route,
        layouts: Sequence[RecordLayout],
        reads: Sequence[ReadRows],
        device: torch.device,
        *,
        averages: bool = False,
        bits: int = 32,
    ) -> None:
        self._router = router
        self._layouts = layouts
        self._reads = reads
        self._device = device
        self._averages = averages
        self._bits = bits
        self._found = _Finder()

    def find(self, batch: Any) -> list[FoundRows]:
        """The rows of a batch, group by group; by one thread at a time."""
        return [self._found(lookups) for lookups in self._router(batch)]

    def pool(self, found: Sequence[FoundRows]) -> list[Tensor]:
        """Their vectors, [B * bags, dim] of each group on the device.

        Call it while no batch is being prepared for training.
        """
        return [
            self._pool(layout, read(one.rows), one)
            for layout, read, one in zip(self._layouts, self._reads, found, strict=True)
        ]

    def _pool(self, layout: RecordLayout, parameters: Tensor, found: FoundRows) -> Tensor:
        dim = layout.dim
        weights = parameters[:, :dim].contiguous()  # [U, D]
        if self._bits != 32:
            of_rows = parameters[:, dim].numpy() if layout.weighted else None
            tables = QuantizedTables([weights.numpy()], len(weights), dim, self._bits, of_rows)
            positions, offsets = (
                torch.from_numpy(array.astype(np.int64)) for array in (found.positions, found.offsets)
            )
            return tables.pool(positions, offsets, averages=self._averages)
        positions = torch.from_numpy(found.positions).to(self._device)
        offsets = torch.from_numpy(found.offsets).to(self._device)
        # Weighed lookup by lookup as in the reference, since int8 MLPs magnify a difference in the last bit.
        factors = parameters[:, dim][positions] if layout.weighted else None
        pooled = pool(weights, positions, offsets, factors)
        return pooled.div_(bag_sizes(offsets)) if self._averages else pooled


class _Finder:
    """Finds unique rows with a hash table that fits the processor's caches, whatever the number of rows."""

    def __init__(self) -> None:
        self._entries = np.zeros((2, 0), np.int64)  # row; call << 32 | position
        self._call = 0

    def __call__(self, lookups: Lookups) -> FoundRows:
        count = len(lookups.rows)
        if 2 * count > self._entries.shape[1]:
            self._entries = np.zeros((2, 1 << (2 * count - 1).bit_length()), np.int64)
            self._call = 0
        self._call += 1
        rows, positions = np.empty(count, np.int64), np.empty(count, np.int32)
        size = _find(lookups.rows, self._entries, self._call, rows, positions)
        return FoundRows(rows[:size].copy(), positions, lookups.offsets.astype(np.int32))


@numba.njit(cache=True, nogil=True)
def _find(rows: Int64s, entries: Int64s, call: int, unique: Int64s, positions: Int32s) -> int:
    """Fills ``unique`` and ``positions``; how many are unique. Entries of earlier calls are free."""
    keys, values = entries[0], entries[1]
    mask, size = len(keys) - 1, 0
    now = np.int64(call) << 32
    for lookup in range(len(rows)):
        row = rows[lookup]
        # Fibonacci hashing (Knuth, "The Art of Computer Programming" 3, section 6.4): the upper bits are the mixed ones
        place = np.int64((np.uint64(row) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)) & mask
        while values[place] >= now and keys[place] != row:
            place = (place + 1) & mask
        if values[place] < now:
            keys[place], values[place] = row, now | size
            unique[size] = row
            size += 1
        positions[lookup] = values[place] & 0xFFFFFFFF
    return size
