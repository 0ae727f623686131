"""The cache behind a collection: sized from its arguments, opened, read, and filled from a saved state."""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import free_host_bytes
from cachedlrm.base.units import format_bytes, parse_bytes
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.policies import Static
from cachedlrm.cache.shares import share_bytes, share_rows, store_rows
from cachedlrm.cache.table_group import CacheSettings, Durability, GroupSlots
from cachedlrm.cache.working_set import NEVER
from cachedlrm.library.ids import flat_ids
from cachedlrm.library.lookups import JoinedBatch
from cachedlrm.library.tables import TableSet, device_of, one_of, policy_of, real, whole
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.store.database import open_database
from cachedlrm.store.init import CounterInit, DeviceFill, RowInit
from cachedlrm.store.records import LEAST_EPS, OPTIMIZERS, ROW_DTYPES, STATE_DTYPES, GroupShape, RecordLayout

POLICIES = ("lru", "lfu", "lrfu", "lookahead", "static")
_CHUNK_ROWS = 1 << 16
_MOST_PENDING_BYTES = 256 << 20

Weights = Mapping[int, Tensor]
"""Initial weights of tables, [rows, dim] each, by number of the table."""

SavedGroup = tuple[NDArray[np.int64], Callable[[int, int], NDArray[np.float32]]]
"""Rows [n] of a group, each once, and their records from one index to another, [last - first, width]."""


@dataclass(frozen=True)
class Choices:
    """Arguments of all collections; `cachedlrm.library.collections.CachedCollection` says what they mean."""

    optimizer: str
    eps: float | None
    weight_decay: float
    cache_rows: int | None
    cache_budget: int | str | None
    policy: str
    lookahead: int
    prefetch_depth: int
    seed: int
    device: torch.device | str
    store: str
    store_path: Path | str | None
    host_budget: int | str | None
    row_counts: Mapping[int, NDArray[np.integer]] | None
    report_min: bool
    row_dtype: str = "fp32"
    row_state_dtype: str = "fp32"


class GivenRows:
    """Initial numbers of a group of which some tables are given, and the others drawn from a counter.

    Args:
        drawn: the others.
        first_rows: first row of each given table in the group.
        weights: of each, [rows, dim] float32.
    """

    fill_on_device: DeviceFill | None = None

    def __init__(self, drawn: RowInit, first_rows: Sequence[int], weights: Sequence[NDArray[np.float32]]) -> None:
        self._drawn = drawn
        self._first_rows = first_rows
        self._weights = weights

    def fill(self, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """See `cachedlrm.store.init.RowInit`."""
        self._drawn.fill(rows, out)
        for first, weight in zip(self._first_rows, self._weights, strict=True):
            here = np.flatnonzero((rows >= first) & (rows < first + len(weight)))
            out[here, : weight.shape[1]] = weight[rows[here] - first]


@contextmanager
def in_arguments() -> Iterator[None]:
    """Messages of the engine that name options of the command line name the arguments of the same names."""
    try:
        yield
    except UserError as error:
        raise in_words_of_arguments(error) from error.__cause__


def in_words_of_arguments(error: UserError) -> UserError:
    """``--host-budget`` as ``host_budget``."""
    return UserError(re.sub(r"--([a-z][a-z-]*)", lambda match: match[1].replace("-", "_"), str(error)))


class Engine:
    """The cache of some tables.

    Args:
        tables: of the model.
        choices: how to keep them.
        weights: initial weights of some; they are copied.

    Raises:
        UserError: a choice does not fit; names the argument.
    """

    def __init__(self, tables: TableSet, choices: Choices, weights: Weights) -> None:
        self.tables = tables
        self._choices = choices
        one_of(choices.optimizer, "optimizer", tuple(OPTIMIZERS))
        if choices.eps is not None and not OPTIMIZERS[choices.optimizer].eps:
            raise UserError(f"eps is {choices.eps} and optimizer {choices.optimizer} has none; drop it")
        self._eps = None if choices.eps is None else real(choices.eps, "eps", LEAST_EPS)
        self._weight_decay = real(choices.weight_decay, "weight_decay", 0.0)
        policy_of(choices.policy, POLICIES)
        one_of(choices.store, "store", ("host", "lmdb"))
        one_of(choices.row_dtype, "row_dtype", ROW_DTYPES)
        one_of(choices.row_state_dtype, "row_state_dtype", STATE_DTYPES)
        self.layouts = [
            RecordLayout(group.dim, choices.optimizer, row_dtype=choices.row_dtype, state_dtype=choices.row_state_dtype)
            for group in tables.groups
        ]
        self.shapes = [
            GroupShape(tables.table_rows(group), layout, len(group.features) if tables.pools else 1)
            for group, layout in zip(tables.groups, self.layouts, strict=True)
        ]
        self.slots = self._size_slots()
        self.device = device_of(choices.device)
        self.settings = CacheSettings(
            choices.policy,
            whole(choices.lookahead, "lookahead", 1),
            whole(choices.prefetch_depth, "prefetch_depth", 0),
            report_min=choices.report_min,
        )
        self._spills = choices.store == "lmdb"
        if choices.store_path is not None and not self._spills:
            raise UserError("store_path is of store='lmdb'; give both or neither")
        if choices.policy == "static" and choices.row_counts is None:
            raise UserError("policy='static' needs row_counts, how often each row of each table is looked up")
        if choices.policy != "static" and choices.row_counts is not None:  # lookahead would need the epochs to come
            raise UserError(
                f"row_counts are of policy='static', and policy is {choices.policy!r}; give both or neither"
            )
        self.seed = whole(choices.seed, "seed", -(2**63))
        self._folder: Path | None = None
        self.inits: list[RowInit] = []
        self.take_weights(weights)
        self._cache: EmbeddingCache | None = None
        self.open()

    def _size_slots(self) -> list[int]:
        """Slots of each group."""
        choices = self._choices
        if (choices.cache_rows is None) == (choices.cache_budget is None):
            raise UserError("give either cache_rows or cache_budget, what the device keeps")
        if choices.cache_budget is None:
            return share_rows(self.shapes, whole(choices.cache_rows, "cache_rows", 1))
        slots = share_bytes(self.shapes, size(choices.cache_budget, "cache_budget"))
        if 0 in slots:
            raise UserError(f"cache_budget is {choices.cache_budget}; it leaves no row for a table, give more")
        return slots

    def take_weights(self, weights: Weights) -> None:
        """Rows that were never touched begin as ``weights`` say, where tables are named there; else from the seed."""
        self.given = frozenset(weights)
        self.inits = []
        first_element = 0
        for group, shape in zip(self.tables.groups, self.shapes, strict=True):
            drawn = CounterInit(self.seed, shape.table_rows, shape.layout, self.device, first_element)
            first_element += shape.num_rows * group.dim
            numbers = [number for number in group.tables if number in weights]
            if not numbers:
                self.inits.append(drawn)
                continue
            for number in numbers:
                table, weight = self.tables.tables[number], weights[number]
                found = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
                if found != [table.num_embeddings, table.embedding_dim]:
                    raise UserError(
                        f"weights of table {table.name} are {found}; give a tensor [rows, columns], "
                        f"{[table.num_embeddings, table.embedding_dim]}"
                    )
            copies = [weights[number].detach().cpu().to(torch.float32, copy=True).numpy() for number in numbers]
            self.inits.append(GivenRows(drawn, [self.tables.first_rows[number] for number in numbers], copies))

    def open(self) -> None:
        """An empty cache, in the place of the one before."""
        self._close_cache()
        budget = self._host_bytes()
        with in_arguments():
            rows = store_rows(self.shapes, budget, self._spills)
            durability = self._open_store(budget) if self._spills else None
            try:
                self._cache = EmbeddingCache(
                    attrgetter("lookups"),
                    groups=self.shapes,
                    slots=[GroupSlots(slots, slots) for slots in self.slots],
                    store_rows=rows,
                    inits=self.inits,
                    settings=replace(self.settings, seed=self.seed),
                    device=self.device,
                    durability=durability,
                )
            except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError and a subclass
                if durability is not None:
                    durability.database.close()
                raise UserError(
                    f"{sum(self.slots):,} slots cannot be reserved on {self.device}, or {format_bytes(budget)} of "
                    "records in memory; lower cache_rows, cache_budget or host_budget"
                ) from error
        self._inform_policies()

    def _host_bytes(self) -> int:
        if self._choices.host_budget is not None:
            return size(self._choices.host_budget, "host_budget")
        return free_host_bytes() // 2 if self._spills else free_host_bytes()  # the other half: pages of the store

    def _open_store(self, budget: int) -> Durability:
        """The tier on disk. It is room, not a state: whoever opens it finds nothing."""
        path = self._choices.store_path
        if path is None and self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cachedlrm-store-"))
        shapes = [(shape.num_rows, shape.layout.width) for shape in self.shapes]
        pending = min(_MOST_PENDING_BYTES, budget // 4)
        folder = Path(path) if path is not None else self._folder
        assert folder is not None
        return Durability(open_database(folder, {}, shapes, pending, resumes=False), spills=True)

    def _inform_policies(self) -> None:
        counts = self._choices.row_counts
        if counts is None:
            return
        for group, shape, of_cache in zip(self.tables.groups, self.shapes, self.cache.groups, strict=True):
            for number in group.tables:
                table = self.tables.tables[number]
                if number not in counts or len(counts[number]) != table.num_embeddings:
                    raise UserError(
                        f"row_counts of table {table.name}: give {table.num_embeddings:,} counts, one a row"
                    )
            of_rows = np.concatenate([np.asarray(counts[number], np.int64) for number in group.tables])
            assert len(of_rows) == shape.num_rows
            if isinstance(of_cache.policy, Static):
                of_cache.policy.take_counts(of_rows)

    @property
    def cache(self) -> EmbeddingCache:
        """The cache."""
        assert self._cache is not None
        return self._cache

    @property
    def is_whole(self) -> bool:
        """Whether it is open and every row in its place."""
        return self._cache is not None and not self._cache.is_broken

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._cache is None

    def _close_cache(self) -> None:
        if self._cache is not None:
            cache, self._cache = self._cache, None
            cache.close()

    def close(self) -> None:
        """Frees the rows."""
        self._close_cache()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def row_step(self, learning_rate: float, number: int) -> RowStep:
        """The numbers of step ``number``, from 1 on.

        Raises:
            UserError: the learning rate is none.
        """
        return RowStep(real(learning_rate, "learning_rate", 0.0), number, self._eps, self._weight_decay)

    def check_fits(self, batch: JoinedBatch, where: str) -> None:
        """Makes sure that the next batch of the stream can be prepared.

        Raises:
            UserError: the cache cannot hold its rows, or host memory all rows touched so far.
        """
        for group, lookups, slots in zip(self.cache.groups, batch.lookups, self.slots, strict=True):
            capacity, num_lookups = group.store.capacity_rows, len(lookups.rows)
            if num_lookups <= slots and num_lookups + group.book.num_addresses <= capacity:
                continue
            rows = np.unique(lookups.rows)
            if len(rows) > slots:
                of_all = f" for tables of {group.layout.dim} columns" if len(self.slots) > 1 else ""
                raise UserError(
                    f"{where} looks up {len(rows):,} rows and the cache holds {slots:,}{of_all}; raise cache_rows, "
                    "cache_budget or cache_ratio, or make batches smaller"
                )
            touched = group.book.num_addresses + int((group.book.addresses(rows) == NEVER).sum())
            if touched > capacity:
                raise UserError(
                    f"{where}: {touched:,} rows of {group.layout.record_bytes} bytes were touched and host memory may "
                    f"hold {capacity:,}; raise host_bytes or host_budget, keep rows on disk with store='lmdb', or fold "
                    "ids into fewer rows"
                )

    # The rest is for moments when no batch is being prepared.

    def weight(self, table: int, ids: Tensor | None) -> Tensor:
        """Current weights of a table, [n, dim] on the host."""
        of = self.tables.tables[table]
        num_rows = of.num_embeddings
        local = np.arange(num_rows) if ids is None else flat_ids(ids, f"table {of.name}: ids")
        if len(local) and not 0 <= local.min() <= local.max() < num_rows:
            raise UserError(f"table {of.name}: ids are {local.min()} to {local.max()}, outside 0..{num_rows - 1}")
        rows = local + self.tables.first_rows[table]
        group = self.cache.groups[self.tables.group_of(table)]
        out = torch.empty(len(rows), of.embedding_dim, dtype=torch.float32, device="cpu")
        for first in range(0, len(rows), _CHUNK_ROWS):
            part = slice(first, first + _CHUNK_ROWS)
            out[part] = group.read(rows[part])[:, : of.embedding_dim].cpu()
        return out

    def touched(self) -> list[SavedGroup]:
        """The rows of each group that have records, in order."""
        self.cache.flush()
        saved = []
        for group in self.cache.groups:
            # A row gets an address when its batch is announced, and a record when it is prepared.
            rows, addresses = group.book.in_order()
            here = group.planner.slot_of[addresses] != NEVER
            if here.all():
                saved.append(group.touched())
            else:
                saved.append((rows[here], _by_address(group.records, addresses[here].astype(np.int64))))
        return saved

    @contextmanager
    def whole_or_broken(self) -> Iterator[None]:
        """A block that moves rows from one state to another; if it ends halfway, the cache is broken."""
        try:
            yield
        except BaseException:
            if self._cache is not None:
                self._cache.is_broken = True
            raise

    def put(self, group: int, pieces: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]) -> None:
        """Gives rows [n] of a group records [n, width], piece by piece, in a cache that was opened and not used."""
        of_cache = self.cache.groups[group]
        with in_arguments():
            for rows, records in pieces:
                addresses = of_cache.book.register(rows)
                of_cache.planner.restore(of_cache.book.num_addresses)
                of_cache.store.check_capacity(of_cache.book.num_addresses)
                of_cache.store.write(addresses, np.ascontiguousarray(records))


def _by_address(
    records: Callable[[NDArray[np.int64]], NDArray[np.float32]], addresses: NDArray[np.int64]
) -> Callable[[int, int], NDArray[np.float32]]:
    return lambda first, last: records(addresses[first:last])


def size(value: int | str, name: str) -> int:
    """Bytes, as a number or as ``2GiB``.

    Raises:
        UserError: neither; says ``name``.
    """
    if not isinstance(value, str):
        return whole(value, name, 1)
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
