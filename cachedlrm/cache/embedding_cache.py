"""The cached embedding tables, wired in one direction.

    Batch             rows [L] of all tables, offsets [B * T + 1]
      | Router        the lookups of each group of tables
    Lookups           rows [L], offsets [B * T + 1]
      | AddressBook
    WorkingSet        rows [U], addresses [U], positions [L]; waits until the policy knows its window of batches
      | Planner
    Plan              slots [U]; rows to evict [E], fetch [F], create [I]
      | Upload        one copy to the device
      +- DeviceMoves    -> Transfer    slab -> store [E, width], store -> slab [F, width], initial records [I, width]
      +- DeviceLookups  -> RowUpdate   begin: slab -> numbers [U, columns] -> pooled [B * T, D]
                                       step: gradient [B * T, D] -> numbers; finish: numbers -> slab

A thread of its own goes as far as Transfer, batches ahead; the training thread has the rest. Nothing flows back: the
planner never asks the device, and the model sees positions only.
"""

import operator
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.counters import PREPARING_PHASES, CacheCounters, Span, with_bytes
from cachedlrm.cache.reading import Route, RowReader
from cachedlrm.cache.streams import AtRest, CopyStream, Event, TrainedBatches
from cachedlrm.cache.table_group import CacheSettings, Durability, GroupSlots, TableGroup
from cachedlrm.cache.upload import DeviceBatch, Upload
from cachedlrm.cache.working_set import WorkingSet
from cachedlrm.model.row_update import RowUpdate
from cachedlrm.store.database import Database
from cachedlrm.store.init import RowInit
from cachedlrm.store.packing import packings
from cachedlrm.store.records import GroupShape


class Samples(Protocol):
    """What a batch has beside its lookups, which a `Route` finds: `cachedlrm.data.batch.Batch` is one."""

    @property
    def dense(self) -> NDArray[np.float32]:
        """[B, num_dense]."""
        ...

    @property
    def labels(self) -> NDArray[np.float32]:
        """[B]."""
        ...


@dataclass(frozen=True)
class PreparedBatch:
    """A batch whose rows are, or on CUDA will be at ``admitted``, in their slots.

    Attributes:
        tensors: on the device.
        counters: the cache's work for this batch, all groups together.
        table_counts: [num_tables, 4] int64, the `TABLE_COUNTS` of this batch, group after group.
        spans: the host's work for it since the batch before: ``read``, ``plan``, ``evict`` (until the victims have
            been trained included) and ``admit``, in order, some of them several times.
        admitted: event on the copy stream.
        label_sum: of the batch.
    """

    tensors: DeviceBatch
    counters: CacheCounters
    table_counts: NDArray[np.int64]
    spans: tuple[Span, ...]
    admitted: Event
    label_sum: float

    @cached_property
    def phase_ms(self) -> dict[str, float]:
        """Host milliseconds of ``plan``, ``evict`` and ``admit``."""
        totals = dict.fromkeys(PREPARING_PHASES, 0.0)
        for name, start, end in self.spans:
            if name in totals:
                totals[name] += (end - start) * 1e3
        return totals


class _Announced(NamedTuple):
    """A batch that is known and not planned.

    Attributes:
        dense: [B, num_dense].
        labels: [B].
        working_sets: of each group, which take fewer bytes than the lookups they were made of.
    """

    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    working_sets: list[WorkingSet]


class EmbeddingCache:
    """Embedding tables of which some rows are on the device, in one slab for each number of columns.

    One thread prepares batches (`prepare`); another trains them in the same order: `begin`, the updates' steps, then
    `finish`, which hands the rows back. `pooled`, `flush` and the groups' `read` are for moments when no batch is being
    prepared.

    Args:
        router: from a batch, of the kind that is prepared, to the lookups of each group.
        groups: rows and records of each group.
        slots: of each group.
        store_rows: records of each group that host memory may hold.
        inits: numbers of the initial records of each group.
        settings: choices that hold for all.
        device: where the slabs are.
        durability: the tier on disk, if there is one.

    Attributes:
        is_broken: whether preparing a batch ended halfway: some of its rows may have moved, and others not.
    """

    def __init__(
        self,
        router: Route,
        *,
        groups: Sequence[GroupShape],
        slots: Sequence[GroupSlots],
        store_rows: Sequence[int],
        inits: Sequence[RowInit],
        settings: CacheSettings,
        device: torch.device,
        durability: Durability | None = None,
    ) -> None:
        self.router = router
        self.is_broken = False
        self._durability = durability
        self._averages = settings.averages
        self.device = device
        self._ring = settings.prefetch_depth + 2
        self.trained = TrainedBatches(device, history=self._ring)
        self._stream = CopyStream(device)
        self._at_rest = AtRest()
        packing = packings(groups, settings.seed)
        self.groups = tuple(
            TableGroup(
                shape=groups[number],
                slots=slots[number],
                store_rows=store_rows[number],
                init=inits[number],
                settings=settings,
                trained=self.trained,
                stream=self._stream,
                at_rest=self._at_rest,
                device=device,
                durability=durability,
                number=number,
                packing=packing[number],
            )
            for number in range(len(groups))
        )
        self._upload = Upload(device, self._ring, self.trained, [group.layout.is_packed for group in groups])
        self._admitted = [Event(device) for _ in range(self._ring)]
        self._stream.follow()  # slabs and staging are memory that earlier work of this stream may still write

    @property
    def optimizer(self) -> str:
        """The rows' optimizer, one for all groups."""
        return self.groups[0].layout.optimizer

    def prepare(self, batches: Iterable[Samples], first_batch: int = 0) -> Iterator[PreparedBatch]:
        """Plans batches and moves their rows, one batch per ``next``. A cache prepares one stream in its life.

        Args:
            batches: the stream.
            first_batch: number of its first batch in the run.

        Raises:
            UserError: a store cannot hold the rows touched. After this and any other error, an interrupt included, the
                cache `is_broken`.
        """
        self.trained.begin(first_batch)
        try:
            yield from self._prepare(batches, first_batch)
        except GeneratorExit:  # closed between two batches
            raise
        except BaseException:
            self.is_broken = True
            raise

    def prepare_one(self, batch: Samples, index: int) -> PreparedBatch:
        """`prepare` of a stream of one batch, number ``index``, whose rows are wanted now.

        Raises:
            UserError: as `prepare`.
        """
        self.trained.begin(index)
        try:
            started = time.perf_counter()
            announced = self._announce(batch, index)
            return self._prepare_next(announced, [Span("plan", started, time.perf_counter())])
        except BaseException:
            self.is_broken = True
            raise

    def _announce(self, batch: Samples, index: int) -> _Announced:
        lookups = self.router(batch)
        with self._at_rest:
            working_sets = [group.announce(index, part) for group, part in zip(self.groups, lookups, strict=True)]
        return _Announced(batch.dense, batch.labels, working_sets)

    def _prepare(self, batches: Iterable[Samples], first_batch: int) -> Iterator[PreparedBatch]:
        waiting: deque[_Announced] = deque()  # policy ``lookahead`` keeps a window of them
        window = self.groups[0].planner.window  # that of all groups
        spans: list[Span] = []  # since the last batch was handed out
        asked = time.perf_counter()
        for index, batch in enumerate(batches, first_batch):
            started = time.perf_counter()
            waiting.append(self._announce(batch, index))
            spans += (Span("read", asked, started), Span("plan", started, time.perf_counter()))
            if len(waiting) > window:
                yield self._prepare_next(waiting.popleft(), spans)
                spans = []
            asked = time.perf_counter()
        while waiting:
            yield self._prepare_next(waiting.popleft(), spans)
            spans = []

    def _prepare_next(self, announced: _Announced, spans: list[Span]) -> PreparedBatch:
        dense, labels, working_sets = announced
        started = time.perf_counter()
        plans = [group.planner.plan(working_set) for group, working_set in zip(self.groups, working_sets, strict=True)]
        index = plans[0].index
        spans.append(Span("plan", started, time.perf_counter()))
        counted = [
            with_bytes(plan.counters, group.layout.record_bytes) for group, plan in zip(self.groups, plans, strict=True)
        ]
        with self._at_rest, self._stream():
            tensors, moves = self._upload(dense, labels, working_sets, plans)
            for group, plan, group_moves in zip(self.groups, plans, moves, strict=True):
                spans += group.transfer.execute(plan, group_moves)
            admitted = self._admitted[index % self._ring]
            admitted.record()
        label_sum = float(labels.sum(dtype=np.float64)) if len(labels) else 0.0  # numpy's takes 4 us where none are
        table_counts = np.concatenate([plan.table_counts for plan in plans])
        return PreparedBatch(tensors, reduce(operator.add, counted), table_counts, tuple(spans), admitted, label_sum)

    def begin(self, batch: PreparedBatch) -> list[RowUpdate]:
        """The rows of a batch, pooled, of each group; valid until the next call. Wait for ``batch.admitted`` first."""
        return [group.begin(lookups) for group, lookups in zip(self.groups, batch.tensors.lookups, strict=True)]

    def finish(self, batch: PreparedBatch, updates: Sequence[RowUpdate]) -> None:
        """Puts the rows, as their updates left them, back into their slots, and marks the batch as trained."""
        for group, lookups, update in zip(self.groups, batch.tensors.lookups, updates, strict=True):
            group.finish(lookups, update)
        self.trained.mark(batch.tensors.index)

    def reader(self, bits: int = 32) -> RowReader:
        """Reads current rows, wherever they are, for predictions in so many bits an element of the tables.

        Pool with it while no batch is being prepared. Changes nothing that training depends on.
        """
        layouts, reads = [group.layout for group in self.groups], [group.read for group in self.groups]
        return RowReader(self.router, layouts, reads, self.device, averages=self._averages, bits=bits)

    def pooled(self, batch: Any) -> list[Tensor]:
        """Pooled vectors of current rows, [B * tables, dim] of each group, as `reader` gives them."""
        return self._reader.pool(self._reader.find(batch))

    @cached_property
    def _reader(self) -> RowReader:
        return self.reader()

    @property
    def durable_database(self) -> Database:
        """The tier on disk of a cache that has one."""
        assert self._durability is not None
        return self._durability.database

    def disk_bytes(self) -> tuple[int | None, int | None]:
        """Bytes of the file on disk, and the most it can grow to; None without one."""
        if self._durability is None:
            return None, None
        database = self._durability.database
        used = database.file_bytes
        return used, used + shutil.disk_usage(database.path).free

    def close(self) -> None:
        """Writes pending records to the disk and lets others open the store; no batch is trained after it."""
        self._stream.follow()  # memory of copies, which training may still read, is free for other copies from now on
        if self._durability is not None:
            self._durability.database.close()

    def save(self, since: int) -> list[tuple[int, int]]:
        """Appends missing records to the logs; see `TableGroup.save`."""
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
