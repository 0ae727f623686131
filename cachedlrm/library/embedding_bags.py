"""`CachedEmbeddingBags`: cached embedding tables for any PyTorch model and training loop."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cachedlrm.base.errors import UserError
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.data.batch import Batch
from cachedlrm.library.current import CurrentBatch
from cachedlrm.library.ids import Ids, host_batch
from cachedlrm.library.stream import Lookup, Stream
from cachedlrm.library.tables import CachedTables, TableState

T = TypeVar("T")


class CachedEmbeddingBags(nn.Module):
    """Sum-pooled embedding tables that may be far larger than the device, trained by an optimizer of their own.

    It takes the place of one ``nn.EmbeddingBag(rows, dim, mode="sum", sparse=True)`` for each table and of their
    optimizer. All rows live in host memory, ``cache_rows`` of them on the device; results are the same to the last
    bit whatever the cache holds.

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
        weights: initial weights of the tables, [rows, D] each, which are copied. Default: uniform in
            ±sqrt(1 / rows), computed from ``seed`` when a row is first touched, so that tables of any size start at
            once and rows never touched take no memory.
        seed: of the initial weights.
        device: where cached rows and pooled vectors are.
        host_bytes: the most bytes of rows in host memory. Default: the free memory.

    Attributes:
        learning_rate: of the next step.
        steps: steps taken.
        counters: the cache's work for the batches so far: hits, rows fetched, evicted, written back.

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
        weights: Sequence[Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        host_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.steps = 0
        self.counters = CacheCounters()
        self._prefetch_depth = prefetch_depth
        self._tables = CachedTables(
            tuple(table_rows),
            dim,
            optimizer=optimizer,
            eps=eps,
            weight_decay=weight_decay,
            cache_ratio=cache_ratio,
            cache_rows=cache_rows,
            policy=policy,
            lookahead=lookahead,
            prefetch_depth=prefetch_depth,
            weights=weights,
            seed=seed,
            device=torch.device(device),
            host_bytes=host_bytes,
        )
        self._next_batch = 0  # of the cache's life
        self._stream: Stream[Any] | None = None
        self._current: CurrentBatch | None = None

    @property
    def table_rows(self) -> tuple[int, ...]:
        """Rows of each table."""
        return self._tables.table_rows

    @property
    def dim(self) -> int:
        """Columns of every table."""
        return self._tables.layout.dim

    @property
    def device(self) -> torch.device:
        """Where cached rows and pooled vectors are."""
        return self._tables.device

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        tables = self._tables
        rows = f"{len(tables.table_rows)} tables, {sum(tables.table_rows):,} rows of {self.dim}"
        return f"{rows}, {tables.cache_rows:,} on {tables.device}, {tables.layout.optimizer}"

    # --- training

    def prefetch(
        self, batches: Iterable[T], ids: Callable[[T], Ids | tuple[Ids, Ids]], pause_every: int = 0
    ) -> Iterator[T]:
        """Iterates over your batches, their rows prepared ahead by a thread.

        Call `forward` with the same ids, `step` after ``backward``, and then go on to the next batch. A batch for which
        neither is called is left as it is, as are those read ahead when you leave the loop.

        Args:
            batches: yours, as a ``DataLoader`` gives them; they are read in the thread.
            ids: from a batch to its ids, or to ids and offsets; called in the thread. Keep them on the host.
            pause_every: after every so many batches nothing is prepared ahead, so that inside the loop, too, you can
                evaluate and take the ``state_dict``. 0: only after the loop.

        Raises:
            UserError: ids that do not fit, in their batch's place; or a batch was left without `step`.
        """
        self._check_open()
        self._leave_current("starting to prefetch")
        self.end_prefetch()

        def look_up(batch: T, number: int) -> Lookup:
            found = ids(batch)
            if isinstance(found, tuple) and len(found) != 2:
                raise UserError(f"batch {number}: ids gave {len(found)} values; it gives ids, or ids and offsets")
            batch_ids, offsets = found if isinstance(found, tuple) else (found, None)
            return self._next_lookup(batch_ids, offsets, number)

        stream = Stream(
            self._tables.cache,
            iter(batches),
            look_up,
            first_batch=self._next_batch,
            depth=self._prefetch_depth,
            pause_every=pause_every,
        )
        self._stream = stream
        try:
            for batch, lookup, prepared in stream:
                self._begin(lookup, prepared)
                yield batch
                if self._stream is not stream:
                    raise UserError("this prefetch was ended; go through one after the other, not one inside another")
                self._leave_current("going on to the next batch")
        finally:
            if self._stream is stream:
                self.end_prefetch()

    def end_prefetch(self) -> None:
        """Ends a prefetch loop that is still under way, as leaving it does.

        For loops that ended in an exception which is still referred to, as a notebook does.
        """
        if self._stream is not None:
            self._drop_current()
            self._stream.end()
            self._next_batch = self._stream.next_batch
            self._stream = None

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
        self._check_open()
        trains = self.training and torch.is_grad_enabled()
        if (trains or self._stream is not None) and self._is_current(ids, offsets):
            assert self._current is not None
            return self._by_table(self._current.pooled(trains))
        if not trains:
            return self._read(self._host_batch(ids, offsets, "evaluation"))
        if self._stream is not None:
            raise UserError(
                "forward was called with other ids than those of the batch that prefetch handed out; "
                "train that batch, or call eval() first if this is an evaluation"
            )
        self._leave_current("forward with the next batch")
        return self._by_table(self._prepare(ids, offsets).pooled(trains))

    def step(self) -> None:
        """Moves the rows of the batch by the gradient that ``backward`` brought.

        Raises:
            UserError: there is no batch, or no gradient.
        """
        self._check_open()
        if self._current is None:
            raise UserError("step was called without a batch; call forward and backward first, once for each step")
        self._current.step(self._tables.row_step(self.learning_rate, self.steps + 1))
        self.steps += 1
        self._current = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradient of the batch. Without another ``backward`` its rows stay as they are."""
        if self._current is not None:
            self._current.zero_grad()

    def _host_batch(self, ids: Ids, offsets: Ids | None, where: str) -> Batch:
        return host_batch(ids, offsets, self.table_rows, where)

    def _next_lookup(self, ids: Ids, offsets: Ids | None, number: int) -> Lookup:
        """The next batch to prepare, number ``number`` in the cache's life."""
        host = self._host_batch(ids, offsets, f"batch {number}")
        self._tables.check_fits(host, f"batch {number}")
        return Lookup(ids, offsets, host)

    def _begin(self, lookup: Lookup, prepared: PreparedBatch) -> CurrentBatch:
        self._current = CurrentBatch(self._tables.cache, lookup, prepared)
        self.counters += prepared.counters
        return self._current

    def _prepare(self, ids: Ids, offsets: Ids | None) -> CurrentBatch:
        """A batch whose rows are prepared now."""
        lookup = self._next_lookup(ids, offsets, self._next_batch)
        (prepared,) = self._tables.cache.prepare([lookup.host], self._next_batch)
        self._next_batch += 1
        return self._begin(lookup, prepared)

    def _is_current(self, ids: Ids, offsets: Ids | None) -> bool:
        """Whether these are the ids of the batch that is trained now."""
        current = self._current
        if current is None or current.is_given(ids, offsets):
            return current is not None
        return current.looks_up(self._host_batch(ids, offsets, "forward"))

    def _by_table(self, pooled: Tensor) -> Tensor:
        """[B, T, D] from [B * T, D]."""
        return pooled.view(-1, len(self.table_rows), self.dim)

    def _leave_current(self, doing: str) -> None:
        if self._current is not None:
            self._current.check_may_be_left(doing)
        self._drop_current()

    def _drop_current(self) -> None:
        if self._current is not None:
            self._current.leave()
            self._current = None

    # --- reading

    def _read(self, host: Batch) -> Tensor:
        self._check_at_rest("forward in evaluation mode")
        (pooled,) = self._tables.cache.pooled(host)
        return self._by_table(pooled)

    def weight(self, table: int, ids: Tensor | None = None) -> Tensor:
        """Current weights of a table on the host, of all its rows or of some ``ids`` [n]: [n, D].

        Raises:
            UserError: there is no such table or row; rows are on the move.
        """
        self._check_open()
        self._check_at_rest("weight")
        return self._tables.weight(table, ids)

    def _check_at_rest(self, what: str) -> None:
        if self._stream is not None and not self._stream.at_rest:
            raise UserError(
                f"{what}: rows are being prepared for the batches ahead; do this after the prefetch loop, or inside "
                "it after the last of every N batches with prefetch(..., pause_every=N)"
            )
        if self._current is not None:
            self._current.wait()

    # --- state

    def get_extra_state(self) -> dict[str, Any]:
        """The shape of the tables and the steps taken; the rows are beside it."""
        return {"steps": self.steps, **self._tables.identity()}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self._check_open()
        self._check_at_rest("state_dict")
        super()._save_to_state_dict(destination, prefix, keep_vars)  # the extra state
        state = self._tables.state()
        destination[f"{prefix}rows"], destination[f"{prefix}records"] = state.rows, state.records

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
            self._tables.load(TableState(rows, records), identity)
            self.steps = int(identity["steps"])
        except UserError as error:
            error_msgs.append(f"{prefix.rstrip('.') or 'CachedEmbeddingBags'}: {error}")
            return
        self._next_batch = 0

    # --- life

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CachedEmbeddingBags":
        probe = fn(torch.empty(0, device=self.device))
        if probe.device != self.device or probe.dtype != torch.float32:
            raise UserError(
                f"CachedEmbeddingBags stays float32 on {self.device}; choose its device when you make it, and call "
                "to() on the other modules"
            )
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("CachedEmbeddingBags cannot be copied or pickled; save its state_dict()")

    def close(self) -> None:
        """Frees the rows and ends the prefetch; nothing else can be called afterwards."""
        self.end_prefetch()
        self._current = None
        self._tables.close()

    def _check_open(self) -> None:
        if self._tables.is_closed:
            raise UserError("these CachedEmbeddingBags are closed; make new ones")

    def __enter__(self) -> "CachedEmbeddingBags":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
