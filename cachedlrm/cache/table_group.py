"""The embedding tables of one dimension: planner, slab, transfer and store of their records."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.cache.minimum import MinimumMoves
from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import make_policy
from cachedlrm.cache.slab import gather, make_slab, scatter
from cachedlrm.cache.streams import AtRest, CopyStream, TrainedBatches
from cachedlrm.cache.transfer import Transfer
from cachedlrm.cache.upload import DeviceLookups
from cachedlrm.cache.working_set import NEVER, AddressBook, Int64s, WorkingSet
from cachedlrm.data.lookups import Lookups
from cachedlrm.model.row_update import RowUpdate
from cachedlrm.store.database import Database
from cachedlrm.store.host import HostStore, Newer, RecordsBetween, Store
from cachedlrm.store.init import RowInit
from cachedlrm.store.lmdb_store import LmdbStore
from cachedlrm.store.packing import Packing, numbers_of
from cachedlrm.store.record_log import RecordLog
from cachedlrm.store.records import GroupShape


@dataclass(frozen=True)
class CacheSettings:
    """Choices that hold for all tables.

    Attributes:
        policy: eviction policy by its command-line name.
        window: batches known ahead; used by policy ``lookahead``.
        prefetch_depth: batches prepared before they are trained; 0 prepares each when it is needed.
        staging_rows: rows moved in one turn.
        report_min: whether to count the rows that Belady's MIN would move.
        seed: of the noise by which numbers of 16 bits are rounded.
        averages: whether a bag's vector is the mean of its rows, not their sum.
    """

    policy: str = "lrfu"
    window: int = 200
    prefetch_depth: int = 2
    staging_rows: int = 16384
    report_min: bool = False
    seed: int = 0
    averages: bool = False


@dataclass(frozen=True)
class GroupSlots:
    """Slots of a group of tables.

    Attributes:
        quota: those the cache keeps rows in.
        total: with the temporary ones, for a batch whose working set exceeds the quota.
    """

    quota: int
    total: int


@dataclass(frozen=True)
class Durability:
    """The tier on disk.

    Attributes:
        database: where it is.
        spills: whether records beyond ``store_rows`` go there; else it is for checkpoints alone.
        ends: of each group, the first segment after the checkpoint to go on from and the fingerprint of the segments
            before it; None: a new run.
    """

    database: Database
    spills: bool
    ends: tuple[tuple[int, int], ...] | None = None


class TableGroup:
    """Tables whose records have the same columns, so that their rows share slots.

    Args:
        shape: rows of the tables and columns of a record.
        slots: of the slab.
        store_rows: records that host memory may hold.
        init: numbers of first touches.
        settings: of the cache.
        trained: which batches have been trained.
        stream: where rows move.
        at_rest: keeps readers and the preparation of batches apart.
        device: where the slab is.
        durability: the tier on disk, if there is one.
        number: of the group there.
        packing: of its records.

    Raises:
        UserError: the data on disk is damaged, or does not fit.
    """

    def __init__(
        self,
        *,
        shape: GroupShape,
        slots: GroupSlots,
        store_rows: int,
        init: RowInit,
        settings: CacheSettings,
        trained: TrainedBatches,
        stream: CopyStream,
        at_rest: AtRest,
        device: torch.device,
        durability: Durability | None = None,
        number: int = 0,
        packing: Packing,
    ) -> None:
        num_rows, layout = shape.num_rows, shape.layout
        self.shape = shape
        self.layout = layout
        self.policy = make_policy(settings.policy, slots.total, num_rows, settings.window)
        self.book = AddressBook(num_rows, keeps_previous=self.policy.needs_previous or settings.report_min)
        self.planner = Planner(
            slots.quota, slots.total, self.policy, in_flight=settings.prefetch_depth,
            minimum=MinimumMoves(slots.quota) if settings.report_min else None,
            num_tables=shape.bags_per_sample or len(shape.table_rows),
        )  # fmt: skip
        self.log = self._open_log(durability, number)
        self.planner.restore(self.book.num_addresses)
        store_rows = min(num_rows, store_rows)
        self.store: Store
        if self.log is not None and durability is not None and durability.spills:
            self.store = LmdbStore(num_rows, store_rows, layout.width, self.log)
        else:
            self.store = HostStore(store_rows, layout.width, self.log, self.book.num_addresses)
        self.slab = make_slab(slots.total, layout.width, device)
        self._packing = packing
        self.init = self._packing.init(init)
        self.transfer = Transfer(self.slab, self.store, self.init, trained, stream, staging_rows=settings.staging_rows)
        self._averages = settings.averages
        self._stream = stream
        self._at_rest = at_rest
        self._device = device
        self._staging_bytes = 0 if device.type == "cpu" else 4 * settings.staging_rows * layout.record_bytes
        self._numbers = torch.empty(0, layout.columns, dtype=torch.float32, device=device)

    def _open_log(self, durability: Durability | None, number: int) -> RecordLog | None:
        """The log with the checkpoint's records, whose rows get addresses."""
        if durability is None:
            return None
        log = RecordLog(durability.database, number, self.layout.width, self.book, self.shape.num_rows)
        if durability.ends is not None:
            log.load(*durability.ends[number])
        return log

    def announce(self, index: int, lookups: Lookups) -> WorkingSet:
        """Makes the lookups of batch ``index`` known to the planner; their working set.

        Raises:
            UserError: the store cannot hold the rows touched.
        """
        working_set = self.book.working_set(index, lookups.rows, lookups.offsets)
        self.planner.announce(working_set)
        self.store.check_capacity(self.book.num_addresses)
        return working_set

    def begin(self, lookups: DeviceLookups) -> RowUpdate:
        """The rows of a batch, pooled; their numbers [U, columns] are in a buffer that the next call uses again."""
        count = lookups.slots.shape[0]  # `len` is a function of Python
        if count > self._numbers.shape[0]:
            self._numbers = self._numbers.new_empty(count + count // 4, self.layout.columns)
        numbers = self._numbers[:count]
        self._packing.gather(self.slab, lookups.slots, numbers)
        return RowUpdate(
            self.layout, numbers, lookups.positions, lookups.offsets, lookups.transposed, averages=self._averages
        )

    def finish(self, lookups: DeviceLookups, update: RowUpdate) -> None:
        """Puts the rows, as their update left them, back into their slots."""
        self._packing.scatter(self.slab, lookups.slots, update.records, lookups.rows, update.step_number)

    def read(self, rows: Int64s) -> Tensor:
        """Current parameters of ``rows`` [n] wherever they are: [n, parameter_width] on the device. Changes nothing.

        Rows on the device do not leave it, so reading costs only the other rows. Call it while nothing is in
        flight.
        """
        with self._at_rest:
            addresses = self.book.addresses(rows)
            slots = np.where(addresses >= 0, self.planner.slot_of[np.maximum(addresses, 0)], NEVER).astype(np.int64)
            below = np.flatnonzero(slots < NEVER)
            untouched = np.flatnonzero(slots == NEVER)
            records = torch.empty(len(rows), self.layout.width, dtype=torch.float32, device=self._device)
            gather(self.slab, torch.from_numpy(np.maximum(slots, 0)).to(self._device), records)
            self._stream.follow()  # no batch is marked after this, and the next may move these rows
            created = np.empty((len(untouched), self.layout.width), np.float32)
            self.init.fill(rows[untouched], created)
            for indices, values in ((below, self.transfer.read(addresses[below])), (untouched, created)):
                if len(indices):
                    target = torch.from_numpy(indices).to(self._device)
                    scatter(records, target, torch.from_numpy(values).to(self._device))
            return self._packing.unpacked(records)[:, : self.layout.parameter_width]

    def records(self, addresses: Int64s) -> NDArray[np.float32]:
        """Records of ``addresses`` [n] below the device, [n, width]; `flush` brings them there first."""
        with self._at_rest:
            return self.transfer.read(addresses)

    def touched(self) -> tuple[Int64s, RecordsBetween]:
        """The rows that were touched, [n] in order, and their current records by index there. Changes nothing.

        Call it, and read the records, while nothing is in flight.

        Raises:
            UserError: the disk has no room for bringing them into order.
        """
        with self._at_rest:
            rows, addresses = self.book.in_order()
            resident, slots = self.planner.resident()
            self.transfer.finish_write_backs()
            return rows, self.store.arranged(addresses, Newer(resident, lambda some: self.transfer.copies(slots[some])))

    def is_finite(self) -> bool:
        """Whether the store holds no NaN and no infinity."""
        return all(np.isfinite(numbers_of(self.layout, records)).all() for _, records in self.store.scan())

    def save(self, since: int) -> tuple[int, int]:
        """Appends missing records to the log, which has all those trained before batch ``since``.

        Call it while nothing is in flight.

        Returns:
            The number of the first segment after this state, and the fingerprint of those before it.

        Raises:
            UserError: the log cannot be written.
        """
        assert self.log is not None
        with self._at_rest:
            self.transfer.save(*self.planner.resident(since), self.log)
            self.store.save_changed()
            return self.log.begin_checkpoint(), self.log.fingerprint()

    def flush(self) -> None:
        """Brings the store up to date with the slab. Call it while nothing is in flight."""
        with self._at_rest:
            self.transfer.flush(*self.planner.resident())

    @property
    def device_bytes(self) -> dict[str, int]:
        """Bytes of its tensors on the device, by purpose."""
        return {"slab": self.slab.nbytes, "staging": self._staging_bytes, "working_set": self._numbers.nbytes}
