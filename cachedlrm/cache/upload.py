"""A batch's arrays to the device, in one copy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.planner import NO_ROWS, Plan
from cachedlrm.cache.streams import Event, TrainedBatches
from cachedlrm.cache.working_set import WorkingSet

# Matrix libraries choose a kernel by the alignment of its operands, and another kernel may round differently. So every
# array starts at a multiple of the largest they look at, and the first, the dense features, always at the same place.
_ALIGNMENT = 256

_NO_ROWS = torch.from_numpy(NO_ROWS)


@dataclass(frozen=True)
class DeviceLookups:
    """One batch's lookups in the T tables of a group. B samples, L lookups, U rows in the working set.

    Attributes:
        offsets: [B * T + 1] int32, bag boundaries in ``positions``.
        positions: [L] int32.
        slots: [U] int64.
        evict_slots, fetch_slots, create_slots, create_rows: int64, as in `Plan`.
        bags_by_position: [L] int32 and
        position_offsets: [U + 1] int32, see `WorkingSet.transposed`; on CUDA alone.
    """

    offsets: Tensor
    positions: Tensor
    slots: Tensor
    evict_slots: Tensor
    fetch_slots: Tensor
    create_slots: Tensor
    create_rows: Tensor
    bags_by_position: Tensor | None = None
    position_offsets: Tensor | None = None

    @property
    def transposed(self) -> tuple[Tensor, Tensor] | None:
        """Bags by position and their offsets, where lookups were sorted."""
        if self.bags_by_position is None or self.position_offsets is None:
            return None
        return self.bags_by_position, self.position_offsets


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
    """

    def __init__(self, device: torch.device, ring: int, trained: TrainedBatches) -> None:
        self._device = device
        self._trained = trained
        self._ring = [_PinnedBuffer(device) for _ in range(ring)] if device.type == "cuda" else []

    @property
    def device_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self._ring)

    def __call__(
        self,
        index: int,
        dense: NDArray[np.float32],
        labels: NDArray[np.float32],
        plans: Sequence[tuple[WorkingSet, Plan]],
    ) -> DeviceBatch:
        """Issues the copy of batch ``index`` and the plans of its groups on the current stream."""
        arrays: list[NDArray[np.generic]] = [dense, labels]
        for working_set, plan in plans:
            arrays += _arrays(working_set, plan)
            if self._ring:
                arrays += working_set.transposed()
        if self._ring:
            self._trained.wait(index - len(self._ring))
            tensors = self._ring[index % len(self._ring)].copy(arrays)
        else:
            tensors = [_NO_ROWS if array is NO_ROWS else torch.from_numpy(array) for array in arrays]
            tensors[0] = tensors[0].clone()  # torch's memory is aligned, numpy's not always
        num_arrays = (len(tensors) - 2) // len(plans)
        parts = range(2, len(tensors), num_arrays)
        lookups = tuple([DeviceLookups(*tensors[first : first + num_arrays]) for first in parts])
        return DeviceBatch(index, tensors[0], tensors[1], lookups)


def _arrays(working_set: WorkingSet, plan: Plan) -> list[NDArray[np.generic]]:
    """In the order of `DeviceLookups`."""
    return [
        working_set.offsets,
        working_set.positions,
        plan.slots,
        plan.evict_slots,
        plan.fetch_slots,
        plan.create_slots,
        plan.create_rows,
    ]


class _PinnedBuffer:
    """A pinned host buffer and its image on the device; grows to the largest batch seen, then stays."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copied = Event(device)
        self.num_bytes = 0

    def copy(self, arrays: Sequence[NDArray[np.generic]]) -> list[Tensor]:
        needed = sum(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)
        self._copied.synchronize()  # the pinned half may still be read by its last copy
        if needed > self.num_bytes:
            self.num_bytes = needed + needed // 4
            self._host = torch.empty(self.num_bytes, dtype=torch.uint8, pin_memory=True)
            self._on_device = torch.empty(self.num_bytes, dtype=torch.uint8, device=self._device)
        host = self._host.numpy()
        tensors = []
        start = 0
        for array in arrays:
            end = start + array.nbytes
            host[start:end].view(array.dtype).reshape(array.shape)[...] = array
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            tensors.append(self._on_device[start:end].view(dtype).view(array.shape))
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
        self._on_device[:start].copy_(self._host[:start], non_blocking=True)
        self._copied.record()
        return tensors
