"""A batch's arrays to the device, in one copy."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.planner import Plan
from cachedlrm.cache.streams import Event, TrainedBatches
from cachedlrm.cache.working_set import WorkingSet
from cachedlrm.data.batch import Batch

_ALIGNMENT = 16


@dataclass(frozen=True)
class DeviceBatch:
    """One batch's tensors on the device. B samples, T tables, L lookups, U rows in the working set.

    Attributes:
        index: number of the batch in the training stream.
        dense: [B, num_dense] float32.
        labels: [B] float32.
        offsets: [B * T + 1] int32, bag boundaries in ``positions``.
        positions: [L] int32.
        bags_by_position: [L] int32 and position_offsets: [U + 1] int32, the transpose of the two above.
        slots: [U] int64.
        evict_slots, fetch_slots, create_slots, create_rows: int64, as in `Plan`.
    """

    index: int
    dense: Tensor
    labels: Tensor
    offsets: Tensor
    positions: Tensor
    bags_by_position: Tensor
    position_offsets: Tensor
    slots: Tensor
    evict_slots: Tensor
    fetch_slots: Tensor
    create_slots: Tensor
    create_rows: Tensor

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

    def __call__(self, batch: Batch, working_set: WorkingSet, plan: Plan) -> DeviceBatch:
        """Issues the copy on the current stream."""
        arrays: dict[str, NDArray[np.generic]] = {
            "slots": plan.slots,
            "evict_slots": plan.evict_slots,
            "fetch_slots": plan.fetch_slots,
            "create_slots": plan.create_slots,
            "create_rows": plan.create_rows,
            "dense": batch.dense,
            "labels": batch.labels,
            "offsets": batch.offsets.astype(np.int32),
            "positions": working_set.positions,
            "bags_by_position": working_set.bags_by_position,
            "position_offsets": working_set.position_offsets,
        }
        if not self._ring:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            # Matrix products may round differently at other alignments: torch's memory is aligned, numpy's not always.
            tensors["dense"] = tensors["dense"].clone()
            return DeviceBatch(plan.index, **tensors)
        self._trained.wait(plan.index - len(self._ring))
        return DeviceBatch(plan.index, **self._ring[plan.index % len(self._ring)].copy(arrays))


class _PinnedBuffer:
    """A pinned host buffer and its image on the device; grows to the largest batch seen, then stays."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copied = Event(device)
        self.num_bytes = 0

    def copy(self, arrays: dict[str, NDArray[np.generic]]) -> dict[str, Tensor]:
        needed = sum(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays.values())
        self._copied.synchronize()  # the pinned half may still be read by its last copy
        if needed > self.num_bytes:
            self.num_bytes = needed + needed // 4
            self._host = torch.empty(self.num_bytes, dtype=torch.uint8, pin_memory=True)
            self._on_device = torch.empty(self.num_bytes, dtype=torch.uint8, device=self._device)
        host = self._host.numpy()
        tensors: dict[str, Tensor] = {}
        start = 0
        for name, array in arrays.items():
            end = start + array.nbytes
            host[start:end].view(array.dtype).reshape(array.shape)[...] = array
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            tensors[name] = self._on_device[start:end].view(dtype).view(array.shape)
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
        self._on_device[:start].copy_(self._host[:start], non_blocking=True)
        self._copied.record()
        return tensors
