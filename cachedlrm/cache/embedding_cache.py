"""The cached embedding tables, wired in one direction.

    batch -> lookups -> working set -> plan -> upload, evict, fetch, create -> [training reads and writes the slab]

Nothing flows back: the planner never asks the device, and the model sees positions only.
"""

import operator
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.counters import PREPARING_PHASES, CacheCounters, Span, with_bytes
from cachedlrm.cache.streams import CopyStream, Event, TrainedBatches
from cachedlrm.cache.table_group import CacheSettings, Durability, GroupSizes, TableGroup
from cachedlrm.cache.upload import DeviceBatch, Upload
from cachedlrm.data.batch import Batch
from cachedlrm.data.lookups import Router
from cachedlrm.store.database import Database
from cachedlrm.store.init import RowInit
from cachedlrm.store.records import RecordLayout


@dataclass(frozen=True)
class PreparedBatch:
    """A batch whose rows are, or on CUDA will be at ``admitted``, in their slots.

    Attributes:
        tensors: on the device.
        counters: the cache's work for this batch, all groups together.
        table_counts: [num_tables, 4] int64, the `TABLE_COUNTS` of this batch, group after group.
        spans: what the host did for it since the batch before: ``read``, ``plan``, ``evict`` (until the victims have
            been trained included) and ``admit``, in order, some of them several times.
        admitted: event on the copy stream.
    """

    tensors: DeviceBatch
    counters: CacheCounters
    table_counts: NDArray[np.int64]
    spans: tuple[Span, ...]
    admitted: Event

    @cached_property
    def phase_ms(self) -> dict[str, float]:
        """Host milliseconds of ``plan``, ``evict`` and ``admit``."""
        totals = dict.fromkeys(PREPARING_PHASES, 0.0)
        for name, start, end in self.spans:
            if name in totals:
                totals[name] += (end - start) * 1e3
        return totals


class EmbeddingCache:
    """Embedding tables of which some rows are on the device, in one slab for each number of columns.

    One thread prepares batches (`prepare`); another trains them in the same order: `gather`, then `scatter`, which
    hands the rows back. `flush` and the groups' `read` are for moments when no batch is being prepared.

    Args:
        router: from a batch to the lookups of each group.
        groups: sizes, record layout and initial records of each group.
        settings: choices that hold for all.
        device: where the slabs are.
        durability: the tier on disk, if there is one.
    """

    def __init__(
        self,
        router: Router,
        groups: Sequence[tuple[GroupSizes, RecordLayout, RowInit]],
        settings: CacheSettings,
        device: torch.device,
        durability: Durability | None = None,
    ) -> None:
        self.router = router
        self._durability = durability
        self.device = device
        self._ring = settings.prefetch_depth + 2
        self.trained = TrainedBatches(device, history=self._ring)
        self._stream = CopyStream(device)
        self.groups = tuple(
            TableGroup(sizes, layout, init, settings, self.trained, self._stream, device, durability, number)
            for number, (sizes, layout, init) in enumerate(groups)
        )
        self._upload = Upload(device, self._ring, self.trained)
        self._admitted = [Event(device) for _ in range(self._ring)]

    @property
    def optimizer(self) -> str:
        """The rows' optimizer, one for all groups."""
        return self.groups[0].layout.optimizer

    def prepare(self, batches: Iterable[Batch], first_batch: int = 0) -> Iterator[PreparedBatch]:
        """Plans batches and moves their rows, one batch per ``next``. A cache prepares one stream in its life.

        Args:
            batches: the stream.
            first_batch: number of its first batch in the run.

        Raises:
            UserError: a store cannot hold the rows touched.
        """
        # What a batch needs beyond its announcement; policy ``lookahead`` keeps this much of a window of batches.
        waiting: deque[tuple[NDArray[np.float32], NDArray[np.float32]]] = deque()
        spans: list[Span] = []  # since the last batch was handed out
        asked = time.perf_counter()
        for index, batch in enumerate(batches, first_batch):
            started = time.perf_counter()
            for group, lookups in zip(self.groups, self.router(batch), strict=True):
                group.announce(index, lookups.rows, lookups.offsets)
            waiting.append((batch.dense, batch.labels))
            spans += (Span("read", asked, started), Span("plan", started, time.perf_counter()))
            while self.groups[0].planner.ready:  # all know the same batches
                yield self._prepare_next(*waiting.popleft(), spans)
                spans = []
            asked = time.perf_counter()
        while waiting:
            yield self._prepare_next(*waiting.popleft(), spans)
            spans = []

    def _prepare_next(
        self, dense: NDArray[np.float32], labels: NDArray[np.float32], spans: list[Span]
    ) -> PreparedBatch:
        started = time.perf_counter()
        plans = [group.plan() for group in self.groups]
        index = plans[0][1].index
        spans.append(Span("plan", started, time.perf_counter()))
        counted = [
            with_bytes(plan.counters, group.layout.record_bytes)
            for group, (_, plan) in zip(self.groups, plans, strict=True)
        ]
        with self._stream():
            tensors = self._upload(index, dense, labels, plans)
            for group, (_, plan), lookups in zip(self.groups, plans, tensors.lookups, strict=True):
                spans += group.transfer.execute(plan, lookups)
            admitted = self._admitted[index % self._ring]
            admitted.record()
        table_counts = np.concatenate([plan.table_counts for _, plan in plans])
        return PreparedBatch(tensors, reduce(operator.add, counted), table_counts, tuple(spans), admitted)

    def gather(self, batch: PreparedBatch) -> list[Tensor]:
        """The records of a batch's working set: [U, width] of each group, in buffers that the next call uses again.

        Wait for ``batch.admitted`` first.
        """
        return [group.gather(part.slots) for group, part in zip(self.groups, batch.tensors.lookups, strict=True)]

    def scatter(self, batch: PreparedBatch, records: Sequence[Tensor]) -> None:
        """Stores updated ``records`` [U, width] of each group and marks the batch as trained."""
        for group, part, updated in zip(self.groups, batch.tensors.lookups, records, strict=True):
            group.scatter(part.slots, updated)
        self.trained.mark(batch.tensors.index)

    @property
    def durable_database(self) -> Database:
        """The tier on disk of a cache that has one."""
        assert self._durability is not None
        return self._durability.database

    def disk_bytes(self) -> tuple[int | None, int | None]:
        """Bytes of the file on disk, and those and what is free beside it; None without one."""
        if self._durability is None:
            return None, None
        database = self._durability.database
        used = database.file_bytes
        return used, used + shutil.disk_usage(database.path).free

    def close(self) -> None:
        """Writes what is queued for the disk and lets others open the store."""
        if self._durability is not None:
            self._durability.database.close()

    def save(self, since: int) -> list[tuple[int, int]]:
        """Appends to the logs what they lack; see `TableGroup.save`."""
        return [group.save(since) for group in self.groups]

    def saved(self) -> None:
        """The checkpoint that `save` was for is on its way to the disk."""
        for group in self.groups:
            assert group.log is not None
            group.log.end_checkpoint()

    def flush(self) -> None:
        """Brings the stores up to date with the slabs."""
        for group in self.groups:
            group.flush()

    @property
    def resident_rows(self) -> int:
        """Rows on the device."""
        return sum(group.planner.resident_rows for group in self.groups)

    @property
    def store_records(self) -> int:
        """Records in the stores."""
        return sum(group.store.used_rows for group in self.groups)

    @property
    def store_bytes(self) -> int:
        """Bytes of the records in the stores."""
        return sum(group.store.used_rows * group.layout.record_bytes for group in self.groups)

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes of the cache's tensors on the device, by purpose."""
        totals = {"slab": 0, "staging": 0, "working_set": self._upload.device_bytes}
        for group in self.groups:
            for purpose, num_bytes in group.device_bytes.items():
                totals[purpose] += num_bytes
        return totals
