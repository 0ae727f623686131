"""The cached embedding tables: planner, slab, transfer and store, wired in one direction.

    batch -> working set -> plan -> upload, evict, fetch, create -> [training reads and writes the slab]

Nothing flows back: the planner never asks the device, and the model sees positions only.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import make_policy
from cachedlrm.cache.streams import Event, TrainedBatches
from cachedlrm.cache.transfer import Transfer
from cachedlrm.cache.upload import DeviceBatch, Upload
from cachedlrm.cache.working_set import NEVER, AddressBook, Int64s
from cachedlrm.data.batch import Batch
from cachedlrm.metrics import CacheCounters
from cachedlrm.store.host import HostStore
from cachedlrm.store.init import RowInit
from cachedlrm.store.records import RecordLayout


@dataclass(frozen=True)
class CacheSettings:
    """Sizes and choices of the cache.

    Attributes:
        quota_slots: rows the cache keeps on the device.
        num_slots: quota and the temporary slots for a batch whose working set exceeds it.
        policy: eviction policy by its command-line name.
        window: batches known ahead; used by policy ``lookahead``.
        prefetch_depth: batches prepared before they are trained; 0 prepares each when it is needed.
        staging_rows: rows moved in one turn.
        store_rows: rows the host store may hold.
    """

    quota_slots: int
    num_slots: int
    policy: str = "lrfu"
    window: int = 200
    prefetch_depth: int = 2
    staging_rows: int = 16384
    store_rows: int = 2**31 - 1


@dataclass(frozen=True)
class PreparedBatch:
    """A batch whose rows are, or on CUDA will be at ``admitted``, in their slots.

    Attributes:
        tensors: on the device.
        counters: the cache's work for this batch.
        phase_ms: host milliseconds of ``plan``, ``evict`` and ``admit``.
        admitted: event on the copy stream.
    """

    tensors: DeviceBatch
    counters: CacheCounters
    phase_ms: dict[str, float]
    admitted: Event


class EmbeddingCache:
    """T embedding tables of which some rows are on the device.

    One thread prepares batches (`prepare`); another trains them in the same order: `gather`, then `scatter`, which
    hands the rows back. `read`, `flush` and `records` are for moments when no batch is being prepared.

    Args:
        table_rows: rows of each table.
        layout: columns of a record.
        settings: sizes and choices.
        seed: of the initial weights.
        device: where the slab is.
    """

    def __init__(
        self,
        table_rows: tuple[int, ...],
        layout: RecordLayout,
        settings: CacheSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        num_rows = sum(table_rows)
        self.layout = layout
        self.settings = settings
        self.device = device
        self.book = AddressBook(num_rows)
        policy = make_policy(settings.policy, settings.num_slots, num_rows, settings.window)
        self.policy = policy
        self.planner = Planner(
            num_rows, settings.quota_slots, settings.num_slots, policy, in_flight=settings.prefetch_depth
        )
        self.store = HostStore(min(num_rows, settings.store_rows), layout.width)
        self.init = RowInit(seed, table_rows, layout.dim, device)
        self._slab = torch.empty(settings.num_slots, layout.width, device=device)
        ring = settings.prefetch_depth + 2
        self.trained = TrainedBatches(device, history=ring)
        self.transfer = Transfer(self._slab, self.store, self.init, self.trained, settings.staging_rows)
        self.upload = Upload(device, ring, self.trained)
        self._admitted = [Event(device) for _ in range(ring)]
        self._records = torch.empty(0, layout.width, device=device)

    def prepare(self, batches: Iterable[Batch], first_index: int = 0) -> Iterator[PreparedBatch]:
        """Plans batches and moves their rows, one batch per ``next``.

        Args:
            batches: the training stream.
            first_index: number of its first batch.

        Raises:
            UserError: the store cannot hold the rows touched.
        """
        waiting: deque[tuple[Batch, float]] = deque()
        for index, batch in enumerate(batches, first_index):
            started = time.perf_counter()
            self.planner.announce(self.book.working_set(index, batch.rows, batch.offsets))
            self.store.check_capacity(self.book.num_addresses)
            waiting.append((batch, (time.perf_counter() - started) * 1e3))
            while self.planner.ready:
                yield self._prepare_next(*waiting.popleft())
        while waiting:
            yield self._prepare_next(*waiting.popleft())

    def _prepare_next(self, batch: Batch, announce_ms: float) -> PreparedBatch:
        started = time.perf_counter()
        working_set, plan = self.planner.plan()
        plan_ms = (time.perf_counter() - started) * 1e3 + announce_ms
        with self.transfer.stream():
            tensors = self.upload(batch, working_set, plan)
            phase_ms = self.transfer.execute(plan, tensors)
            admitted = self._admitted[plan.index % len(self._admitted)]
            admitted.record()
        return PreparedBatch(tensors, plan.counters, {"plan": plan_ms, **phase_ms}, admitted)

    def gather(self, batch: PreparedBatch) -> Tensor:
        """The records of a batch's working set: [U, width], in a buffer that the next call uses again.

        Wait for ``batch.admitted`` first.
        """
        slots = batch.tensors.slots
        if len(slots) > len(self._records):
            self._records = torch.empty(len(slots) + len(slots) // 4, self.layout.width, device=self.device)
        records = self._records[: len(slots)]
        torch.index_select(self._slab, 0, slots, out=records)
        return records

    def scatter(self, batch: PreparedBatch, records: Tensor) -> None:
        """Stores updated ``records`` [U, width] and marks the batch as trained."""
        self._slab.index_copy_(0, batch.tensors.slots, records)
        self.trained.mark(batch.tensors.index)

    def read(self, rows: Int64s) -> Tensor:
        """Current weights of ``rows`` [n] wherever they are: [n, dim] on the device. Changes nothing.

        Rows on the device do not leave it, so reading costs only what is not resident.
        """
        addresses = self.book.addresses(rows)
        slots = np.where(addresses >= 0, self.planner.slot_of[np.maximum(addresses, 0)], NEVER).astype(np.int64)
        below = np.flatnonzero(slots < NEVER)
        untouched = np.flatnonzero(slots == NEVER)
        records = torch.index_select(self._slab, 0, torch.from_numpy(np.maximum(slots, 0)).to(self.device))
        created = np.empty((len(untouched), self.layout.width), np.float32)
        self.init.fill(rows[untouched], created)
        for indices, values in ((below, self.transfer.read(addresses[below])), (untouched, created)):
            if len(indices):
                target = torch.from_numpy(indices).to(self.device)
                records.index_copy_(0, target, torch.from_numpy(values).to(self.device))
        return records[:, : self.layout.dim]

    def flush(self) -> None:
        """Brings the store up to date with the slab."""
        self.transfer.stream.synchronize()
        self.transfer.flush(*self.planner.resident())

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes of the cache's tensors on the device, by purpose."""
        record_bytes = self.layout.record_bytes
        staging = 0 if self.device.type == "cpu" else 4 * self.settings.staging_rows * record_bytes
        return {
            "slab": self.settings.num_slots * record_bytes,
            "staging": staging,
            "working_set": self._records.nbytes + self.upload.device_bytes,
        }
