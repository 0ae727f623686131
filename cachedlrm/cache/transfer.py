"""Carrying out plans: rows between the slab on the device and the store below it.

A write-back is finished late: the victims' records [E, width] are copied to a staging buffer, and written to the store
when the buffer is needed again or when a later plan's ``read_after`` says that it fetches one of them. Without that
dependency a row evicted by one batch and fetched by the next would come back stale.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.counters import Span
from cachedlrm.cache.pinned import pinned
from cachedlrm.cache.planner import Plan
from cachedlrm.cache.slab import gather, scatter
from cachedlrm.cache.streams import CopyStream, Event, TrainedBatches
from cachedlrm.cache.upload import DeviceMoves
from cachedlrm.cache.working_set import Int64s
from cachedlrm.store.host import Store
from cachedlrm.store.init import RowInit
from cachedlrm.store.record_log import RecordLog

_NUM_BUFFERS = 2  # each way: one is filled while the other is copied


@dataclass
class _WriteBack:
    """Records on their way to the store: written by ``plan``, for ``addresses`` [n]."""

    plan: int
    addresses: Int64s


class _StagingBuffer:
    """Records between host and device. On the CPU both halves are one tensor.

    Attributes:
        host: [rows, width] float32, on CUDA pinned if possible.
        device: [rows, width] float32.
        copied: the last copy from or to ``host``.
        write_back: records in ``host`` that the store does not have yet.
    """

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        self.device = torch.empty(rows, width, dtype=torch.float32, device=device)
        self.host = pinned((rows, width)) if device.type == "cuda" else self.device
        self.copied = Event(device)
        self.write_back: _WriteBack | None = None

    def to_host(self, rows: int) -> None:
        if self.device is not self.host:
            self.host[:rows].copy_(self.device[:rows], non_blocking=True)
        self.copied.record()

    def to_device(self, rows: int) -> None:
        if self.device is not self.host:
            self.device[:rows].copy_(self.host[:rows], non_blocking=True)
        self.copied.record()


class Transfer:
    """Moves rows as plans say. One thread calls `execute`, in the order of the plans.

    Args:
        slab: [num_slots, width] float32 on the device.
        store: where evicted records go.
        init: records of first touches.
        trained: which batches have been trained.
        stream: where rows move; for callers of `execute` to enter.
        staging_rows: rows of one staging buffer; there are four. More rows in one plan go in several turns.
    """

    def __init__(
        self,
        slab: Tensor,
        store: Store,
        init: RowInit,
        trained: TrainedBatches,
        stream: CopyStream,
        *,
        staging_rows: int,
    ) -> None:
        self._slab = slab
        self._store = store
        self._init = init
        self._trained = trained
        self._staging_rows = staging_rows
        self._stream = stream
        width = slab.shape[1]
        self._down = [_StagingBuffer(staging_rows, width, slab.device) for _ in range(_NUM_BUFFERS)]
        self._up = [_StagingBuffer(staging_rows, width, slab.device) for _ in range(_NUM_BUFFERS)]
        self._turn_down = self._turn_up = 0

    def execute(self, plan: Plan, moves: DeviceMoves) -> tuple[Span, Span]:
        """Evicts, fetches and creates rows, on the current stream; the host's spans ``evict`` and ``admit``.

        Raises:
            StoppedError: training stopped.
        """
        started = time.perf_counter()
        self._trained.wait(plan.evict_after)
        for first, last in self._turns(len(plan.evict_slots)):
            self._evict(plan.index, plan.evict_addresses[first:last], moves.evict_slots[first:last])
        self._finish_write_backs(plan.read_after)
        evicted = time.perf_counter()
        for first, last in self._turns(len(plan.fetch_slots)):
            buffer = self._next_up()
            self._store.read(plan.fetch_addresses[first:last], buffer.host[: last - first].numpy())
            buffer.to_device(last - first)
            self._admit(buffer, moves.fetch_slots[first:last])
        for first, last in self._turns(len(plan.create_slots)):
            buffer = self._next_up()
            self._create(buffer, plan.create_rows[first:last], moves.create_rows[first:last])
            self._admit(buffer, moves.create_slots[first:last])
        return Span("evict", started, evicted), Span("admit", evicted, time.perf_counter())

    def flush(self, addresses: Int64s, slots: Int64s) -> None:
        """Writes resident records to the store; they stay resident. Call it when nothing is in flight."""
        self.finish_write_backs()
        for first, last in self._turns(len(slots)):
            on_device = torch.from_numpy(slots[first:last]).to(self._slab.device)
            self._evict(-1, addresses[first:last], on_device)
        self.finish_write_backs()

    def save(self, addresses: Int64s, slots: Int64s, log: RecordLog) -> None:
        """Appends resident records to the log. Call it when nothing is in flight.

        Raises:
            UserError: the log cannot be written.
        """
        self.finish_write_backs()
        for first, last in self._turns(len(slots)):
            log.append(addresses[first:last], self._copy(slots[first:last]))

    def copies(self, slots: Int64s) -> NDArray[np.float32]:
        """Resident records [n, width]. Call it when nothing is in flight, after `finish_write_backs`."""
        out = np.empty((len(slots), self._slab.shape[1]), np.float32)
        for first, last in self._turns(len(slots)):
            out[first:last] = self._copy(slots[first:last])
        return out

    def _copy(self, slots: Int64s) -> NDArray[np.float32]:
        """Resident records, at most a staging buffer full, in that buffer."""
        buffer = self._down[0]
        on_device = torch.from_numpy(slots).to(self._slab.device)
        gather(self._slab, on_device, buffer.device[: len(slots)])
        buffer.to_host(len(slots))
        buffer.copied.synchronize()
        records: NDArray[np.float32] = buffer.host[: len(slots)].numpy()
        return records

    def read(self, addresses: Int64s) -> NDArray[np.float32]:
        """Records of evicted rows: [n, width]. Call it when nothing is in flight."""
        self.finish_write_backs()
        out = np.empty((len(addresses), self._slab.shape[1]), np.float32)
        self._store.peek(addresses, out)
        return out

    def _turns(self, count: int) -> list[tuple[int, int]]:
        step = self._staging_rows
        return [(first, min(first + step, count)) for first in range(0, count, step)]

    def _evict(self, plan: int, addresses: Int64s, slots: Tensor) -> None:
        buffer = self._down[self._turn_down]
        self._turn_down = (self._turn_down + 1) % _NUM_BUFFERS
        self._finish(buffer)
        gather(self._slab, slots, buffer.device[: len(addresses)])
        buffer.to_host(len(addresses))
        buffer.write_back = _WriteBack(plan, addresses)

    def _next_up(self) -> _StagingBuffer:
        buffer = self._up[self._turn_up]
        self._turn_up = (self._turn_up + 1) % _NUM_BUFFERS
        buffer.copied.synchronize()
        return buffer

    def _create(self, buffer: _StagingBuffer, rows: Int64s, device_rows: Tensor) -> None:
        """Initial records into ``buffer.device``; computed there if they can be, so that nothing is copied."""
        fill_on_device = self._init.fill_on_device
        if buffer.device is buffer.host or fill_on_device is None:
            self._init.fill(rows, buffer.host[: len(rows)].numpy())
            buffer.to_device(len(rows))
        else:
            fill_on_device(device_rows, buffer.device[: len(rows)])

    def _admit(self, buffer: _StagingBuffer, slots: Tensor) -> None:
        scatter(self._slab, slots, buffer.device[: len(slots)])

    def _finish(self, buffer: _StagingBuffer) -> None:
        if buffer.write_back is not None:
            buffer.copied.synchronize()
            addresses = buffer.write_back.addresses
            self._store.write(addresses, buffer.host[: len(addresses)].numpy())
            buffer.write_back = None

    def _finish_write_backs(self, through_plan: int) -> None:
        """Completes the write-backs of plan ``through_plan`` and before."""
        for buffer in self._down:
            if buffer.write_back is not None and buffer.write_back.plan <= through_plan:
                self._finish(buffer)

    def finish_write_backs(self) -> None:
        """Completes what is on its way to the store. Call it when nothing is in flight."""
        for buffer in self._down:
            self._finish(buffer)
