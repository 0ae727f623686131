"""`CachedEmbeddingBags`: cached tables of one dimension, numbered and summed, in the place of `nn.EmbeddingBag`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.library.engine import Choices, Engine
from cachedlrm.library.ids import FeatureIds, Ids, bag_ids
from cachedlrm.library.lookups import Part, Routes
from cachedlrm.library.module import CachedTables
from cachedlrm.library.saved import saved_groups
from cachedlrm.library.tables import EmbeddingTable, TableSet, policy_of, whole

_POLICIES = ("lru", "lfu", "lrfu", "lookahead")


class CachedEmbeddingBags(CachedTables):
    """Sum-pooled embedding tables that may be far larger than the device, trained by an optimizer of their own.

    It takes the place of one ``nn.EmbeddingBag(rows, dim, mode="sum", sparse=True)`` for each table and of their
    optimizer. All rows live in host memory, ``cache_rows`` of them on the device; results are the same to the last
    bit whatever the cache holds. `CachedEmbeddingBagCollection` is the same for tables with names, of several
    dimensions, averaged, or larger than memory.

        for batch in bags.prefetch(loader, lambda batch: batch.ids):
            loss = loss_function(model(batch), batch.labels)  # calls bags(batch.ids): [B, T, D]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()  # the model's other parameters
            bags.step()  # the rows of the batch

    `prefetch` prepares rows ahead in a thread; without it `forward` prepares them when it is called. In evaluation mode
    and under ``torch.no_grad()`` `forward` reads the current rows, and changes neither rows nor cache. The tables are
    not an ``nn.Parameter``, so ``model.parameters()`` are the other parameters alone; ``model.state_dict()`` has
    the tables.

    Args:
        table_rows: rows of each of the T tables.
        dim: columns of every table, D.
        optimizer: ``sgd``, ``adagrad``, ``rwsadagrad`` (one sum a row) or ``adam`` (lazy, as torch.optim.SparseAdam).
        learning_rate: of the rows; the attribute of this name may be changed between steps.
        eps: added to the root that a gradient is divided by. Default: torch's, 1e-10, of adam 1e-8.
        weight_decay: decoupled, as torch.optim.AdamW has it; only rows of the batch decay.
        cache_ratio: share of all rows that the device keeps.
        cache_rows: their number, instead of the ratio. The unique rows of one batch must fit.
        policy: which rows leave first: ``lru``, ``lfu``, ``lrfu``, or ``lookahead``, which needs `prefetch`.
        lookahead: batches that policy ``lookahead`` knows ahead.
        prefetch_depth: batches that `prefetch` prepares ahead; 0: no thread.
        accumulate: batches whose gradients one step adds up.
        row_dtype: how weights are kept everywhere: ``fp32``, ``bf16`` or ``fp16``, rounded stochastically by noise that
            is a function of seed, row, column and step, so that a cached run has the bits of a resident one.
        row_state_dtype: how optimizer state is kept: ``fp32`` or ``bf16``.
        weights: initial weights of the tables, [rows, D] each, which are copied. Default: uniform in
            ±sqrt(1 / rows), computed from ``seed`` when a row is first touched, so that tables of any size start at
            once and rows never touched take no memory.
        seed: of the initial weights.
        device: where cached rows and pooled vectors are.
        host_bytes: the most bytes of rows in host memory. Default: the free memory.

    Raises:
        UserError: an argument does not fit; the message names it.
    """

    def __init__(
        self,
        table_rows: Sequence[int],
        dim: int,
        *,
        optimizer: str = "adagrad",
        learning_rate: float = 0.01,
        eps: float | None = None,
        weight_decay: float = 0.0,
        cache_ratio: float | None = None,
        cache_rows: int | None = None,
        policy: str = "lrfu",
        lookahead: int = 200,
        prefetch_depth: int = 2,
        accumulate: int = 1,
        row_dtype: str = "fp32",
        row_state_dtype: str = "fp32",
        weights: Sequence[Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        host_bytes: int | None = None,
    ) -> None:
        self._table_rows = tuple(whole(rows, "an entry of table_rows", 1) for rows in table_rows)
        self._dim = whole(dim, "dim", 1)
        tables = [EmbeddingTable(str(n), rows, self._dim, (str(n),)) for n, rows in enumerate(self._table_rows)]
        if not tables:
            raise UserError("table_rows is empty; give the number of rows of each table")
        choices = Choices(
            optimizer=optimizer,
            eps=eps,
            weight_decay=weight_decay,
            cache_rows=_cache_rows(cache_ratio, cache_rows, sum(self._table_rows)),
            cache_budget=None,
            policy=policy_of(policy, _POLICIES),
            lookahead=lookahead,
            prefetch_depth=prefetch_depth,
            seed=seed,
            device=device,
            store="host",
            store_path=None,
            host_budget=None if host_bytes is None else whole(host_bytes, "host_bytes", 1),
            row_counts=None,
            row_dtype=row_dtype,
            row_state_dtype=row_state_dtype,
            report_min=False,
        )
        table_set = TableSet(tables, pools=True)
        labels = [f"table {number}" for number in range(len(tables))]
        super().__init__(
            table_set,
            choices,
            Routes(table_set, labels, "correct the data or raise that entry of table_rows"),
            weights=self._given(weights),
            learning_rate=learning_rate,
            accumulate=accumulate,
        )

    def _given(self, weights: Sequence[Tensor] | None) -> dict[int, Tensor]:
        if weights is None:
            return {}
        expected = [(rows, self._dim) for rows in self._table_rows]
        found = [tuple(weight.shape) for weight in weights]
        if found != expected:
            raise UserError(f"weights are {found} where the tables are {expected}; give one [rows, dim] for each table")
        return dict(enumerate(weights))

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each table."""
        return self._table_rows

    @property
    def dim(self) -> int:
        """Columns of every table."""
        return self._dim

    def forward(self, ids: Ids, offsets: Ids | None = None) -> Tensor:
        """Sums of the rows that each sample looks up in each table: [B, T, D] float32; an empty bag is zero.

        Args:
            ids: [B, T], or [B, T, L], or T tensors [L_t], or [L] table after table; int32 or int64, on the host.
            offsets: for the last two: T tensors [B], as ``nn.EmbeddingBag`` takes them, or [T * B + 1], the
                ``offsets()`` of a TorchRec ``KeyedJaggedTensor``.

        Raises:
            UserError: ids that do not fit; other ids than those of the batch that `prefetch` handed out; the batch
                before was not trained.
        """
        found: Tensor = (self._not_compiled if torch.compiler.is_compiling() else self._look_up)(ids, offsets)
        return found

    def _look_up(self, ids: Ids, offsets: Ids | None) -> Tensor:
        (pooled,) = self._vectors(self._part(None, ids, offsets))
        return pooled.view(-1, len(self._table_rows), self._dim)

    def _ids(self, ids: Ids, offsets: Ids | None) -> FeatureIds:
        return bag_ids(ids, offsets, len(self._table_rows))

    def _asked(self, found: Any, where: str) -> Part:
        if isinstance(found, tuple) and len(found) != 2:
            raise UserError(f"{where}: ids gave {len(found)} values; it gives ids, or ids and offsets")
        ids, offsets = found if isinstance(found, tuple) else (found, None)
        return self._part(where, ids, offsets)

    def weight(self, table: int, ids: Tensor | None = None) -> Tensor:
        """Current weights of a table on the host, of all its rows or of some ``ids`` [n]: [n, D].

        Raises:
            UserError: there is no such table or row; rows are on the move.
        """
        if whole(table, "table", 0) >= len(self._table_rows):
            raise UserError(f"there is no table {table}; the {len(self._table_rows)} tables count from 0")
        return self._read_weight(table, ids)

    # --- state: rows and records, as ever

    def get_extra_state(self) -> dict[str, Any]:
        """The shape of the tables, the steps and loops so far and the seed of rounding; the rows are beside it."""
        progress = self._progress
        counts = {"steps": progress.steps, "loops": progress.num_loops}
        return {**counts, "rounding_seed": self._engine.seed, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """The tables that a state belongs to; ``seed`` is None if the state has all their rows."""
        engine = self._engine
        return {
            "table_rows": list(self._table_rows),
            "dim": self._dim,
            "optimizer": engine.layouts[0].optimizer,
            "row_dtype": engine.layouts[0].row_dtype,
            "row_state_dtype": engine.layouts[0].state_dtype,
            "seed": None if engine.given else engine.seed,
        }

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._check_whole()
        self._check_at_rest("state_dict")
        super()._save_to_state_dict(destination, prefix, keep_vars)  # the extra state
        ((rows, records),) = saved_groups(self._engine)
        destination[f"{prefix}rows"] = torch.from_numpy(rows)
        destination[f"{prefix}records"] = torch.from_numpy(np.array(records(0, len(rows))))

    def _load_from_state_dict(  # noqa: PLR0917 - torch.nn.Module's signature
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._check_open()
        names = [f"{prefix}{name}" for name in ("rows", "records", "_extra_state")]
        missing = [name for name in names if name not in state_dict]
        if missing:
            missing_keys.extend(missing)
            return
        rows, records, identity = (state_dict[name] for name in names)
        self.end_prefetch()
        self._drop_current()
        try:
            _check_state(self._engine, _State(rows.cpu(), records.cpu()), identity, self._identity())
            seed = identity["seed"]
            with self._engine.whole_or_broken():
                self._engine.seed = identity.get("rounding_seed", self._engine.seed) if seed is None else seed
                self._engine.take_weights({})
                self._engine.open()
                self._engine.put(0, [(rows.cpu().numpy(), records.cpu().contiguous().numpy())])
            if identity["seed"] is None:  # all rows are touched ones now, and a state of them is complete
                self._engine.given = frozenset(range(len(self._table_rows)))
            self._progress.steps = int(identity["steps"])
            self._progress.num_loops = int(identity.get("loops", 0))  # a state of before has none
        except UserError as error:
            error_msgs.append(f"{prefix.rstrip('.') or 'CachedEmbeddingBags'}: {error}")
            return


class _State(NamedTuple):
    """Rows with their optimizer state: [n] int64, global over the tables, and [n, width] float32."""

    rows: Tensor
    records: Tensor


def _check_state(engine: Engine, state: _State, identity: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Makes sure that a state is of these tables.

    Raises:
        UserError: it is not, or damaged.
    """
    (layout,), (shape,) = engine.layouts, engine.shapes
    identity = {"row_dtype": "fp32", "row_state_dtype": "fp32", **identity}  # a state of before has neither
    for name, value in {**expected, "seed": None}.items():
        if name not in identity or (name != "seed" and identity[name] != value):
            raise UserError(f"the state is of {name} {identity.get(name)}, these tables of {value}")
    rows, records = state
    if rows.dtype != torch.int64 or records.dtype != torch.float32 or rows.ndim != 1:
        raise UserError(f"rows are {rows.dtype} {list(rows.shape)} and records {records.dtype}; the state is damaged")
    if tuple(records.shape) != (len(rows), layout.width):
        raise UserError(f"records are {list(records.shape)}, not {[len(rows), layout.width]}")
    ordered = rows.sort().values
    if len(rows) and (ordered[0] < 0 or ordered[-1] >= shape.num_rows or (ordered[1:] == ordered[:-1]).any()):
        raise UserError("rows are not distinct rows of the tables; the state is damaged")
    capacity = engine.cache.groups[0].store.capacity_rows
    if len(rows) > capacity:
        raise UserError(f"{len(rows):,} rows are more than host_bytes allows, {capacity:,}; raise it")
    if identity["seed"] is None and len(rows) < shape.num_rows:
        raise UserError(f"the state holds {len(rows):,} of {shape.num_rows:,} rows and no seed; it is damaged")


def _cache_rows(ratio: float | None, rows: int | None, num_rows: int) -> int:
    """The number of rows that the device keeps."""
    if (ratio is None) == (rows is None):
        raise UserError("give either cache_ratio or cache_rows, how many rows the device keeps")
    if ratio is not None and not 0 < ratio <= 1:
        raise UserError(f"cache_ratio is {ratio}; a share of all rows is above 0 and at most 1")
    share = round(num_rows * ratio) if ratio is not None else rows
    return max(1, min(whole(share, "cache_rows", 0), num_rows))
