"""The tables of `CachedEmbeddingBags`: arguments to a cache, and its rows to a state and back."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.kernels import table_offsets
from cachedlrm.base.machine import free_host_bytes, without_cuda
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.table_group import CacheSettings, GroupSlots
from cachedlrm.cache.working_set import NEVER
from cachedlrm.data.batch import Batch
from cachedlrm.data.lookups import Router, TablePart
from cachedlrm.model.row_optimizers import LEAST_EPS, RowStep
from cachedlrm.store.init import ArrayInit, CounterInit, RowInit
from cachedlrm.store.records import OPTIMIZERS, GroupShape, RecordLayout

_POLICIES = ("lru", "lfu", "lrfu", "lookahead")  # ``static`` needs a pass over the data before training
_CHUNK_ROWS = 1 << 18


class TableState(NamedTuple):
    """Rows with their optimizer state.

    Attributes:
        rows: [n] int64, global over the tables.
        records: [n, width] float32.
    """

    rows: Tensor
    records: Tensor


class CachedTables:
    """Tables of one dimension in a cache. The arguments are those of `CachedEmbeddingBags`."""

    def __init__(
        self,
        table_rows: tuple[int, ...],
        dim: int,
        *,
        optimizer: str,
        cache_ratio: float | None,
        cache_rows: int | None,
        policy: str,
        lookahead: int,
        prefetch_depth: int,
        weights: Sequence[Tensor] | None,
        seed: int,
        device: torch.device,
        host_bytes: int | None,
        eps: float | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        if not table_rows:
            raise UserError("table_rows is empty; give the number of rows of each table")
        self.table_rows = tuple(_whole(rows, "an entry of table_rows", 1) for rows in table_rows)
        self._num_rows = sum(table_rows)
        if self._num_rows >= 2**31:
            raise UserError(f"table_rows add up to {self._num_rows:,}; one CachedEmbeddingBags holds less than 2^31")
        self.layout = RecordLayout(_whole(dim, "dim", 1), _one_of(optimizer, "optimizer", tuple(OPTIMIZERS)))
        self._eps, self._weight_decay = eps, weight_decay
        self._check_numbers()
        if (cache_ratio is None) == (cache_rows is None):
            raise UserError("give either cache_ratio or cache_rows, how many rows the device keeps")
        if cache_ratio is not None and not 0 < cache_ratio <= 1:
            raise UserError(f"cache_ratio is {cache_ratio}; a share of all rows is above 0 and at most 1")
        share = round(self._num_rows * cache_ratio) if cache_ratio is not None else cache_rows
        self.cache_rows = max(1, min(_whole(share, "cache_rows", 0), self._num_rows))
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device is cuda: {without_cuda()}, or use device='cpu'")
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        store_bytes = free_host_bytes() if host_bytes is None else _whole(host_bytes, "host_bytes", 1)
        self._store_rows = max(1, store_bytes // self.layout.record_bytes)
        _one_of(policy, "policy", _POLICIES)
        self._settings = CacheSettings(
            policy, _whole(lookahead, "lookahead", 1), _whole(prefetch_depth, "prefetch_depth", 0)
        )
        self._seed = operator.index(seed) if weights is None else None
        self._init = (
            self._counter_init(seed) if weights is None else ArrayInit([[table] for table in self._copied(weights)])
        )
        self._open()

    def _check_numbers(self) -> None:
        """Those of the optimizer."""
        if self._eps is not None and not OPTIMIZERS[self.layout.optimizer].eps:
            raise UserError(f"eps is {self._eps} and optimizer {self.layout.optimizer} has none; drop it")
        if self._eps is not None and not LEAST_EPS <= self._eps < math.inf:
            raise UserError(f"eps is {self._eps}; the least is {LEAST_EPS}")
        if not 0 <= self._weight_decay < math.inf:
            raise UserError(f"weight_decay is {self._weight_decay}; give 0 or more")

    def _counter_init(self, seed: int) -> RowInit:
        return CounterInit(seed, self.table_rows, self.layout, self.device)

    def _copied(self, weights: Sequence[Tensor]) -> list[NDArray[np.float32]]:
        expected = [(rows, self.layout.dim) for rows in self.table_rows]
        found = [tuple(weight.shape) for weight in weights]
        if found != expected:
            raise UserError(f"weights are {found} where the tables are {expected}; give one [rows, dim] for each table")
        return [weight.detach().cpu().to(torch.float32, copy=True).numpy() for weight in weights]

    def _open(self) -> None:
        """An empty cache."""
        router = Router(self.table_rows, [[TablePart(number, rows) for number, rows in enumerate(self.table_rows)]])
        self._cache: EmbeddingCache | None = EmbeddingCache(
            router,
            groups=[GroupShape(self.table_rows, self.layout)],
            slots=[GroupSlots(self.cache_rows, self.cache_rows)],
            store_rows=[self._store_rows],
            inits=[self._init],
            settings=self._settings,
            device=self.device,
        )

    def row_step(self, learning_rate: float, number: int) -> RowStep:
        """The numbers of step ``number``, from 1."""
        return RowStep(learning_rate, number, self._eps, self._weight_decay)

    @property
    def cache(self) -> EmbeddingCache:
        """The cache, of one group."""
        assert self._cache is not None
        return self._cache

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._cache is None

    def close(self) -> None:
        """Frees the rows."""
        self._cache = None

    def check_fits(self, batch: Batch, where: str) -> None:
        """Makes sure that the next batch of the stream can be prepared.

        Raises:
            UserError: the cache cannot hold its rows, or host memory all rows touched so far.
        """
        group = self.cache.groups[0]
        capacity = group.store.capacity_rows
        if len(batch.rows) <= min(self.cache_rows, capacity - group.book.num_addresses):
            return
        rows = np.unique(batch.rows)
        if len(rows) > self.cache_rows:
            raise UserError(
                f"{where} looks up {len(rows):,} rows and the cache holds {self.cache_rows:,}; raise cache_rows or "
                "cache_ratio, or make batches smaller"
            )
        touched = group.book.num_addresses + int((group.book.addresses(rows) == NEVER).sum())
        if touched > capacity:
            raise UserError(
                f"{where}: {touched:,} rows of {self.layout.record_bytes} bytes were touched and host memory may hold "
                f"{capacity:,}; raise host_bytes, or fold ids into fewer rows"
            )

    # The rest is for moments when no batch is being prepared.

    def weight(self, table: int, ids: Tensor | None) -> Tensor:
        """Current weights of a table, [n, dim] on the host."""
        num_tables = len(self.table_rows)
        if not 0 <= table < num_tables:
            raise UserError(f"there is no table {table}; the {num_tables} tables count from 0")
        num_rows = self.table_rows[table]
        local = np.arange(num_rows) if ids is None else ids.detach().cpu().to(torch.int64).reshape(-1).numpy()
        if len(local) and not 0 <= local.min() <= local.max() < num_rows:
            raise UserError(f"table {table}: ids are {local.min()} to {local.max()}, outside 0..{num_rows - 1}")
        rows = local + table_offsets(self.table_rows)[table]
        out = torch.empty(len(rows), self.layout.dim)
        for first in range(0, len(rows), _CHUNK_ROWS):
            part = slice(first, first + _CHUNK_ROWS)
            out[part] = self.cache.groups[0].read(rows[part]).cpu()
        return out

    def identity(self) -> dict[str, Any]:
        """The tables that a state belongs to; ``seed`` is None if the state has all their rows."""
        layout = self.layout
        return {
            "table_rows": list(self.table_rows), "dim": layout.dim, "optimizer": layout.optimizer, "seed": self._seed
        }  # fmt: skip

    def state(self) -> TableState:
        """Rows that were touched; all rows where the others are not a function of the seed."""
        group = self.cache.groups[0]
        self.cache.flush()
        # A row gets an address when its batch is announced, and a record when it is prepared.
        addresses = np.flatnonzero(group.planner.slot_of[: group.book.num_addresses] != NEVER)
        rows, records = group.book.rows()[addresses], group.records(addresses)
        if self._seed is not None:
            return TableState(torch.from_numpy(rows), torch.from_numpy(records))
        all_rows = np.arange(self._num_rows)
        all_records = np.empty((self._num_rows, self.layout.width), np.float32)
        self._init.fill(all_rows, all_records)
        all_records[rows] = records
        return TableState(torch.from_numpy(all_rows), torch.from_numpy(all_records))

    def load(self, state: TableState, identity: Mapping[str, Any]) -> None:
        """Takes the place of all rows, and of the seed.

        Raises:
            UserError: the state is of other tables or damaged.
        """
        expected = {**self.identity(), "seed": None}
        for name, value in expected.items():
            if name not in identity or (name != "seed" and identity[name] != value):
                raise UserError(f"the state is of {name} {identity.get(name)}, these tables of {value}")
        rows, records = state.rows.cpu(), state.records.cpu()
        if rows.dtype != torch.int64 or records.dtype != torch.float32 or rows.ndim != 1:
            raise UserError(
                f"rows are {rows.dtype} {list(rows.shape)} and records {records.dtype}; the state is damaged"
            )
        if tuple(records.shape) != (len(rows), self.layout.width):
            raise UserError(f"records are {list(records.shape)}, not {[len(rows), self.layout.width]}")
        ordered = rows.sort().values
        if len(rows) and (ordered[0] < 0 or ordered[-1] >= self._num_rows or (ordered[1:] == ordered[:-1]).any()):
            raise UserError("rows are not distinct rows of the tables; the state is damaged")
        if len(rows) > min(self._num_rows, self._store_rows):
            raise UserError(f"{len(rows):,} rows are more than host_bytes allows, {self._store_rows:,}; raise it")
        if identity["seed"] is not None:
            self._seed = identity["seed"]
            self._init = self._counter_init(identity["seed"])
        elif len(rows) < self._num_rows:
            raise UserError(f"the state holds {len(rows):,} of {self._num_rows:,} rows and no seed; it is damaged")
        self._open()
        group = self.cache.groups[0]
        addresses = group.book.register(rows.numpy())
        group.planner.restore(group.book.num_addresses)
        group.store.write(addresses, records.contiguous().numpy())


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} is {value!r}; give a whole number") from error
    if number < least:
        raise UserError(f"{name} is {number}; the least is {least}")
    return number


def _one_of(value: str, name: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose {', '.join(choices)}")
    return value
