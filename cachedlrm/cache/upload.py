"""A batch's arrays to the device, in one copy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.pinned import pinned
from cachedlrm.cache.planner import NO_ROWS, Plan
from cachedlrm.cache.streams import Event, TrainedBatches
from cachedlrm.cache.working_set import WorkingSet
from cachedlrm.data.batch import NO_DENSE, NO_LABELS

# Matrix libraries choose a kernel by the alignment of its operands, and another kernel may round differently. So every
# array starts at a multiple of the largest they look at, and the first, the dense features, always at the same place.
_ALIGNMENT = 256

_EMPTY = {id(array): torch.from_numpy(array) for array in (NO_ROWS, NO_DENSE, NO_LABELS)}
"""Tensors of arrays of nothing, by the identity of the array, which many batches share."""

Arrays = dict[str, NDArray[np.generic]]
"""Of one dataclass below, by the names of its fields."""


@dataclass(frozen=True)
class DeviceLookups:
    """One batch's lookups in the T tables of a group, for the model. B samples, L lookups, U rows in the working set.

    Attributes:
        offsets: [B * T + 1] int32, bag boundaries in ``positions``.
        positions: [L] int32, the place of each lookup's row in ``slots``.
        slots: [U] int64.
        bags_by_position: [L] int32 and
        position_offsets: [U + 1] int32, see `WorkingSet.transposed`; on CUDA alone.
        rows: [U] int64; of a group whose records hold numbers of 16 bits.
    """

    offsets: Tensor
    positions: Tensor
    slots: Tensor
    bags_by_position: Tensor | None = None
    position_offsets: Tensor | None = None
    rows: Tensor | None = None

    @property
    def transposed(self) -> tuple[Tensor, Tensor] | None:
        """Bags by position and their offsets, where lookups were sorted."""
        if self.bags_by_position is None or self.position_offsets is None:
            return None
        return self.bags_by_position, self.position_offsets


@dataclass(frozen=True)
class DeviceMoves:
    """Rows of a group that move for one batch, for the transfer: E evicted, F fetched, I first touches; as in `Plan`.

    Attributes:
        evict_slots: [E] int64.
        fetch_slots: [F] int64.
        create_slots: [I] int64.
        create_rows: [I] int64.
    """

    evict_slots: Tensor
    fetch_slots: Tensor
    create_slots: Tensor
    create_rows: Tensor


@dataclass(frozen=True)
class DeviceBatch:
    """One batch of B samples on the device.

    Attributes:
        index: number of the batch in the training stream.
        dense: [B, num_dense] float32.
        labels: [B] float32.
        lookups: of each group of tables.
    """

    index: int
    dense: Tensor
    labels: Tensor
    lookups: tuple[DeviceLookups, ...]

    @property
    def num_samples(self) -> int:
        return self.labels.shape[0]


class Upload:
    """Copies batches to the device through a ring of pinned buffers. On the CPU the arrays are used where they are.

    Args:
        device: where to.
        ring: buffers; a buffer is used again for batch ``index + ring``.
        trained: batch ``index - ring`` must have been trained before its buffer is overwritten.
        needs_rows: of each group, whether its step does.
    """

    def __init__(self, device: torch.device, ring: int, trained: TrainedBatches, needs_rows: Sequence[bool]) -> None:
        self._device = device
        self._trained = trained
        self._needs_rows = needs_rows
        self._ring = [_PinnedBuffer(device) for _ in range(ring)] if device.type == "cuda" else []

    @property
    def device_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self._ring)

    def __call__(
        self,
        dense: NDArray[np.float32],
        labels: NDArray[np.float32],
        working_sets: Sequence[WorkingSet],
        plans: Sequence[Plan],
    ) -> tuple[DeviceBatch, list[DeviceMoves]]:
        """Issues the copy of a batch and of the plans of its groups on the current stream.

        Args:
            dense: [B, num_dense].
            labels: [B].
            working_sets: of each group.
            plans: of each group.

        Returns:
            The batch, and the moves of each group.
        """
        index = plans[0].index
        samples: Arrays = {"dense": dense, "labels": labels}
        lookups: list[Arrays] = []
        moves: list[Arrays] = []
        for working_set, plan, needs_rows in zip(working_sets, plans, self._needs_rows, strict=True):
            arrays: Arrays = {"offsets": working_set.offsets, "positions": working_set.positions, "slots": plan.slots}
            if self._ring:
                arrays["bags_by_position"], arrays["position_offsets"] = working_set.transposed()
            if needs_rows:
                arrays["rows"] = working_set.rows
            lookups.append(arrays)
            moves.append(
                {
                    "evict_slots": plan.evict_slots,
                    "fetch_slots": plan.fetch_slots,
                    "create_slots": plan.create_slots,
                    "create_rows": plan.create_rows,
                }
            )
        put = _in_place
        if self._ring:
            self._trained.wait(index - len(self._ring))
            buffer = self._ring[index % len(self._ring)]
            buffer.open([samples, *lookups, *moves])
            put = buffer.put
        batch = DeviceBatch(index, **put(samples), lookups=tuple([DeviceLookups(**put(one)) for one in lookups]))
        device_moves = [DeviceMoves(**put(one)) for one in moves]
        if self._ring:
            buffer.send()
        return batch, device_moves


def _in_place(arrays: Arrays) -> dict[str, Tensor]:
    """The arrays themselves, as tensors by the same names; dense features aligned."""
    tensors = {}
    for name, array in arrays.items():
        empty = _EMPTY.get(id(array))
        tensors[name] = torch.from_numpy(array) if empty is None else empty
    if arrays.get("dense", NO_DENSE) is not NO_DENSE:
        tensors["dense"] = tensors["dense"].clone()  # torch's memory is aligned, numpy's not always
    return tensors


class _PinnedBuffer:
    """A pinned host buffer and its image on the device; grows to the largest batch seen, then stays."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copied = Event(device)
        self._end = 0
        self.num_bytes = 0

    def open(self, parts: Sequence[Arrays]) -> None:
        """Makes room for ``parts``, which are to be put."""
        needed = sum(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for arrays in parts for array in arrays.values())
        self._copied.synchronize()  # the pinned half may still be read by its last copy
        if needed > self.num_bytes:
            self.num_bytes = needed + needed // 4
            self._host = pinned((self.num_bytes,), torch.uint8)
            self._on_device = torch.empty(self.num_bytes, dtype=torch.uint8, device=self._device)
        self._end = 0

    def put(self, arrays: Arrays) -> dict[str, Tensor]:
        """Where `send` will have copied the arrays to, by the same names."""
        host = self._host.numpy()
        tensors = {}
        for name, array in arrays.items():
            start, end = self._end, self._end + array.nbytes
            host[start:end].view(array.dtype).reshape(array.shape)[...] = array
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            tensors[name] = self._on_device[start:end].view(dtype).view(array.shape)
            self._end = -(-end // _ALIGNMENT) * _ALIGNMENT
        return tensors

    def send(self) -> None:
        """Issues the copy of all that was put, in one."""
        self._on_device[: self._end].copy_(self._host[: self._end], non_blocking=True)
        self._copied.record()
