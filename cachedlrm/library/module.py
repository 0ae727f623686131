"""The base of all modules over cached tables: training, prefetching, reading, saving, and their end."""

import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cachedlrm.base.errors import UserError
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.library.current import CurrentBatch, Progress
from cachedlrm.library.engine import Choices, Engine, Weights, in_words_of_arguments
from cachedlrm.library.ids import FeatureIds
from cachedlrm.library.lookups import JoinedBatch, Part, Routes, join
from cachedlrm.library.loop import prefetch
from cachedlrm.library.saved import export_tables, load_tables, save_tables
from cachedlrm.library.stats import Stats
from cachedlrm.library.stream import Stream
from cachedlrm.library.tables import TableSet, real, whole

T = TypeVar("T")
Self = TypeVar("Self", bound="CachedTables")


class CachedTables(nn.Module):
    """Cached tables, trained by an optimizer of their own.

    Args:
        tables: of the model.
        choices: how to keep them.
        routes: from ids to lookups.
        weights: initial weights of some tables.
        learning_rate: of the rows.
        accumulate: batches whose gradients one step adds up.

    Attributes:
        learning_rate: of the next step.
    """

    def __init__(
        self,
        tables: TableSet,
        choices: Choices,
        routes: Routes,
        *,
        weights: Weights,
        learning_rate: float,
        accumulate: int,
    ) -> None:
        super().__init__()
        self.learning_rate = real(learning_rate, "learning_rate", 0.0)
        self._routes = routes
        self._accumulate = whole(accumulate, "accumulate", 1)
        self._engine = Engine(tables, choices, weights)
        self._progress = Progress()
        self._reading = threading.Lock()  # threads that serve a model take turns
        self._held = _Held(self._engine)
        weakref.finalize(self, self._held.end)  # at the latest at the interpreter's end, before threads are cut off

    @property
    def device(self) -> torch.device:
        """The device of cached rows and results."""
        return self._engine.device

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        engine, tables = self._engine, self._engine.tables
        dims = " and ".join(str(group.dim) for group in tables.groups)
        rows = f"{len(tables.tables)} tables, {tables.num_rows:,} rows of {dims}"
        return f"{rows}, {sum(engine.slots):,} on {engine.device}, {engine.layouts[0].optimizer}"

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self._progress.steps

    @property
    def counters(self) -> CacheCounters:
        """The cache's work for the batches so far: hits, rows fetched, evicted, written back."""
        return self._progress.counters

    # --- training

    @abstractmethod
    def _look_up(self, *ids: Any) -> Any:
        """``forward``."""

    @torch.compiler.disable(reason="rows are looked up outside compiled code; drop fullgraph=True")
    def _not_compiled(self, *ids: Any) -> Any:
        """``forward`` in a compiled model, outside its graph. Elsewhere torch's wrapper would only cost time."""
        return self._look_up(*ids)

    @abstractmethod
    def _ids(self, *ids: Any) -> FeatureIds:
        """What ``forward`` was called with, in the one form of ids."""

    def _part(self, where: str | None, *ids: Any) -> Part:
        """The lookups of what ``forward`` takes; ``where`` is its name in messages, None: ``forward`` was called."""
        try:
            return self._routes(self._ids(*ids))
        except UserError as error:
            raise UserError(f"{where or self._where()}: {error}") from error.__cause__

    def _asked(self, found: Any, where: str) -> Part:
        """The lookups of a batch, from what ``ids`` of `prefetch` gave."""
        return self._part(where, found)

    def prefetch(self, batches: Iterable[T], ids: Callable[[T], Any], pause_every: int = 0) -> Iterator[T]:
        """Iterates over your batches, their rows prepared ahead by a thread.

        Call ``forward`` with the same ids, `step` after ``backward``, and then go on to the next batch. A batch for
        which neither is called is left as it is, as are those read ahead when you leave the loop. For several modules
        in one loop: `cachedlrm.prefetch`.

        Your batches are read ahead in your own thread (let a ``DataLoader`` have workers where reading takes long), by
        random generators of their own: what `torch.manual_seed` was given decides both what the loader draws and what
        your model draws, at every prefetch depth alike.

        Args:
            batches: yours, as a ``DataLoader`` gives them.
            ids: from a batch to its ids, in any form that ``forward`` takes. Keep them on the host.
            pause_every: after every so many batches nothing is prepared ahead, so that inside the loop, too, you can
                evaluate and save. 0: only after the loop.

        Raises:
            UserError: ids that do not fit, in their batch's place; or a batch was left without `step`.
        """
        yield from prefetch(batches, {self: ids}, pause_every=pause_every)

    def end_prefetch(self) -> None:
        """Ends a prefetch loop that is still under way, as leaving it does.

        For loops that ended in an exception which is still referred to, as a notebook does.
        """
        if (stream := self._held.stream) is not None:
            self._drop_current()
            stream.end()
            self._progress.next_batch = stream.next_batch
            self._held.stream = None

    def _vectors(self, part: Part) -> list[Tensor]:
        """The vectors of what ``forward`` was called with, [bags, dim] of each group.

        Raises:
            UserError: other ids than those of the batch that `prefetch` handed out; the batch before was not trained.
        """
        self._check_whole()
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call] # rows would be constants of its graph
            raise UserError(f"{type(self).__name__} cannot be traced; trace the layers after it, or use torch.compile")
        trains = self.training and torch.is_grad_enabled()
        current = self._progress.current
        if current is not None and (trains or self._held.stream is not None):
            number = current.find(part)
            if number is not None and not self._is_next_part(current, number):
                return current.vectors(number, trains)
        if not trains:
            with self._reading:
                self._check_at_rest("forward in evaluation mode")
                return self._engine.cache.pooled(join([part]))
        if self._held.stream is not None:
            raise UserError(
                "forward was called with other ids than those of the batch that prefetch handed out; "
                "train that batch, or call eval() first if this is an evaluation"
            )
        if current is not None and self._has_room(current):
            return current.vectors(current.add(part, self._engine.cache.pooled(join([part]))), trains)
        self._leave_current("forward with the next batch")
        return self._begin(*self._prepare(join([part]))).vectors(0, trains)

    def _has_room(self, current: CurrentBatch) -> bool:
        """Whether the step takes in another batch."""
        return current.num_parts < self._accumulate and bool(current.leaves())

    def _is_next_part(self, current: CurrentBatch, number: int) -> bool:
        """Whether ids equal to those of part ``number`` are a batch after it: its ``backward`` was called.

        In a prefetch loop the part in hand says which batch it is.
        """
        return self._held.stream is None and current.part_has_gradient(number) and self._has_room(current)

    def _where(self) -> str:
        """The name in messages of what ``forward`` is called with."""
        if not (self.training and torch.is_grad_enabled()):
            return "evaluation"
        return "forward" if self._held.stream is not None else f"batch {self._progress.next_batch}"

    def step(self) -> None:
        """Moves the rows of the batch by the gradient that ``backward`` brought.

        Interrupted, it is taken whole or not at all: `steps` says which.

        Raises:
            UserError: there is no batch, or no gradient, or `learning_rate` is no finite number from 0 on; correct it
                and call this again.
        """
        self._check_whole()
        progress = self._progress
        if progress.current is None:
            raise UserError("step was called without a batch; call forward and backward first, once for each step")
        progress.current.check_step()
        numbers = self._engine.row_step(self.learning_rate, progress.steps + 1)
        self._prepare_wider()
        progress.current.move(numbers)
        try:
            progress.finish_step(numbers.number)
        except BaseException:  # an interrupt between two groups of tables, say: a step is taken whole, or not at all
            with self._engine.whole_or_broken():
                progress.finish_step(numbers.number)
            raise

    def _prepare_wider(self) -> None:
        """Prepares the rows of parts that were only read, to move them."""
        current = self._progress.current
        if current is not None and (batch := current.wider()) is not None:
            self._engine.check_fits(batch, f"the {current.num_parts} batches of a step")
            current.leave()
            _, prepared = self._prepare(batch)
            self._progress.counters += prepared.counters
            current.prepare_again(batch, prepared)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops the gradient of the batch. Without another ``backward`` its rows stay as they are."""
        if self._progress.current is not None:
            self._progress.current.zero_grad()

    def leaves(self) -> list[Tensor]:
        """The vectors of the batch, whose gradients `step` moves the rows by."""
        return self._progress.current.leaves() if self._progress.current is not None else []

    def row_gradients(self) -> list[Tensor]:
        """The gradient of the batch's rows, each a sum over its lookups: [rows, columns] of each group of tables."""
        self._prepare_wider()
        return self._progress.current.row_gradients() if self._progress.current is not None else []

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The vectors of the batch with their gradients: all that ``torch.amp.GradScaler`` needs to know.

        ``scaler.step(module)`` unscales them and calls `step`, unless one is infinite.
        """
        return [{"params": self.leaves(), "lr": self.learning_rate}]

    def _prepare(self, batch: JoinedBatch) -> tuple[JoinedBatch, PreparedBatch]:
        """A batch whose rows are prepared now."""
        number = self._progress.next_batch
        self._engine.check_fits(batch, f"batch {number}")
        self._progress.next_batch += 1  # before an interrupt may come: a number is not used twice
        try:
            return batch, self._engine.cache.prepare_one(batch, number)
        except UserError as error:
            raise in_words_of_arguments(error) from error.__cause__

    def _begin(self, batch: JoinedBatch, prepared: PreparedBatch) -> CurrentBatch:
        self._progress.current = CurrentBatch(self._engine.cache, batch, prepared)
        self._progress.counters += prepared.counters
        return self._progress.current

    def _leave_current(self, doing: str) -> None:
        if self._progress.current is not None:
            self._progress.current.check_may_be_left(doing)
        self._drop_current()

    def _drop_current(self) -> None:
        if self._progress.current is not None:
            self._progress.current.leave()
            self._progress.current = None

    # --- what a loop over batches of several modules does with each; see `cachedlrm.library.loop`

    def _begin_loop(self, pause_every: int) -> Stream:
        self._check_whole()
        self._leave_current("starting to prefetch")
        self.end_prefetch()
        self._progress.num_loops += 1
        stream = Stream(
            self._engine.cache,
            self._engine.check_fits,
            first_batch=self._progress.next_batch,
            depth=self._engine.settings.prefetch_depth,
            pause_every=pause_every,
        )
        self._held.stream = stream
        return stream

    def _hand_out(self, number: int) -> None:
        """The user has part ``number`` of the batch from now on."""
        if self._progress.current is not None:
            self._progress.current.in_hand = number

    def _is_in(self, stream: Stream) -> bool:
        return self._held.stream is stream

    # --- reading

    def _read_weight(self, table: int, ids: Tensor | None) -> Tensor:
        with self._reading:
            self._check_whole()
            self._check_at_rest("weight")
            return self._engine.weight(table, ids)

    def _check_at_rest(self, what: str) -> None:
        stream = self._held.stream
        if stream is not None and not stream.at_rest:
            raise UserError(
                f"{what}: rows are being prepared for the batches ahead; do this after the prefetch loop, or inside "
                "it after the last of every N batches with prefetch(..., pause_every=N)"
            )
        if self._progress.current is not None:
            self._progress.current.wait()

    @property
    def stats(self) -> Stats:
        """The cache's work so far, and all that it holds now: print it, show it with rich, log it."""
        self._check_open()
        return Stats.of(self._engine, self.counters, self.steps)

    # --- state

    def save(self, path: Path | str) -> None:
        """Writes the tables to a file: rows that were touched, their optimizer state, the steps taken.

        Out of core: it takes a few megabytes of memory. The file appears when it is whole, and what was there before
        stays until then: whatever kills the process leaves the one or the other. The rest of a training's state is
        yours: other parameters, their optimizer, the place in your data, and torch's generators.

        Raises:
            UserError: it cannot be written, or rows are on the move.
        """
        self._check_whole()
        self._check_at_rest("save")
        if self._progress.current is not None and self._progress.current.has_gradient:
            raise UserError("save: the batch before was not trained; call step() or zero_grad() first")
        save_tables(self._engine, Path(path), {"steps": self.steps, "loops": self._progress.num_loops})

    def load(self, path: Path | str) -> None:
        """Takes over the state that `save` wrote, in the place of all rows; training goes on with the same bits.

        The cache's sizes, its policy and the store may be others than those of the module that saved.

        Raises:
            UserError: there is no such file, it is damaged, or it is of other tables or another optimizer. These tables
                are as they were then, unless reading failed halfway.
        """
        self._check_open()
        if self._engine.is_whole:
            self._leave_current("load")
        else:  # a gradient for broken rows is of no use
            self._drop_current()
        self.end_prefetch()
        counts = load_tables(self._engine, Path(path))
        self._progress.steps, self._progress.num_loops = counts["steps"], counts["loops"]

    def export(self, folder: Path | str) -> None:
        """Writes all weights, and optimizer state where TorchRec has it, to a folder as ``cachedlrm.export`` does.

        ``docs/hand_over.md`` says how TorchRec reads what ``--format torchrec`` writes, which this is. Out of core.

        Raises:
            UserError: it cannot be written, or rows are on the move.
        """
        self._check_whole()
        self._check_at_rest("export")
        export_tables(self._engine, Path(folder), real(self.learning_rate, "learning_rate", 0.0))

    # --- life

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(torch.empty(0, dtype=torch.float32, device=self.device))
        if probe.device != self.device or probe.dtype != torch.float32:
            raise UserError(
                f"{type(self).__name__} stays float32 on {self.device}; choose its device when you make it, and call "
                "to() on the other modules"
            )
        return self

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Refuses ``False``, which means nothing without parameters."""
        if not requires_grad:
            raise UserError(
                f"{type(self).__name__} has no parameters to freeze; call eval() on it, and leave out prefetch and step"
            )
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(f"{type(self).__name__} cannot be copied or pickled; save its state_dict(), or call save(path)")

    def close(self) -> None:
        """Frees the rows and ends the prefetch; nothing else can be called afterwards."""
        self.end_prefetch()
        self._progress.current = None
        self._held.end()

    def _check_open(self) -> None:
        if self._engine.is_closed:
            raise UserError(f"these {type(self).__name__} are closed; make new ones")

    def _check_whole(self) -> None:
        if self._engine.is_whole:
            return
        self._check_open()
        raise UserError(
            "preparing a batch ended halfway, or a load, by an interrupt or an error, so rows may be in the "
            "wrong place or of two states; load() what was saved last, or make new tables"
        )

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Held:
    """All that must end with a module, whatever ends it: its thread, and the tier on disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.stream: Stream | None = None

    def end(self) -> None:
        if self.stream is not None:
            self.stream.abort()
            self.stream = None
        self._engine.close()


def cached_modules(model: nn.Module) -> list[CachedTables]:
    """The modules over cached tables inside a model."""
    return [module for module in model.modules() if isinstance(module, CachedTables)]
