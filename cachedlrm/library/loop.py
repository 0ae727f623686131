"""A training loop over a user's batches, for one module over cached tables or several."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from cachedlrm.base.errors import UserError
from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.library.current import Progress
from cachedlrm.library.loader import Loader
from cachedlrm.library.lookups import JoinedBatch, Part, join
from cachedlrm.library.stream import Stream
from cachedlrm.library.tables import whole

T = TypeVar("T")


class Member(Protocol):
    """A module over cached tables, as a loop sees it: `cachedlrm.library.module.CachedTables`."""

    _accumulate: int
    _progress: Progress

    def _begin_loop(self, pause_every: int) -> Stream:
        """Ends what is under way; what prepares its batches."""
        ...

    def _asked(self, found: Any, where: str) -> Part:
        """The lookups of a batch, from what its ``ids`` gave."""
        ...

    def _begin(self, batch: JoinedBatch, prepared: PreparedBatch) -> Any:
        """Takes the next step's batches."""
        ...

    def _hand_out(self, number: int) -> None:
        """The user has part ``number`` of them."""
        ...

    def _is_in(self, stream: Stream) -> bool:
        """Whether the loop of ``stream`` is its last one."""
        ...

    def _leave_current(self, doing: str) -> None:
        """The user is through with them."""
        ...

    def end_prefetch(self) -> None:
        """Ends the loop."""
        ...


def prefetch(batches: Iterable[T], ids: Mapping[Member, Callable[[T], Any]], *, pause_every: int = 0) -> Iterator[T]:
    """Iterates over your batches, their rows prepared ahead, for the modules of one loop.

        for batch in prefetch(loader, {bags: lambda batch: batch.features, items: lambda batch: batch.history}):

    Args:
        batches: yours.
        ids: of each module: from a batch to the ids that its ``forward`` will be called with.
        pause_every: see `cachedlrm.library.module.CachedTables.prefetch`, where the rest is said.

    Raises:
        UserError: ids that do not fit, in their batch's place; or a batch was left without ``step``.
    """
    modules = list(ids)
    if not modules:
        raise UserError("prefetch was given no module; give at least one, with the ids that its forward takes")
    together = {module._accumulate for module in modules}
    if len(together) != 1:
        raise UserError("the modules of one loop accumulate different numbers of batches; give all the same")
    (num_together,) = together
    pause_every = whole(pause_every, "pause_every", 0)
    if pause_every % num_together:
        raise UserError(f"pause_every is {pause_every}; accumulate joins {num_together} batches, give a multiple of it")
    streams = [module._begin_loop(pause_every // num_together) for module in modules]
    try:
        yield from _loop(batches, ids, streams, num_together)
    finally:
        for module, stream in zip(modules, streams, strict=True):
            if module._is_in(stream):
                module.end_prefetch()


def _loop(
    batches: Iterable[T],
    ids: Mapping[Member, Callable[[T], Any]],
    streams: list[Stream],
    num_together: int,
) -> Iterator[T]:
    modules = list(ids)
    reader = _Reader(batches, ids, num_together)
    waiting: deque[tuple[list[T], list[list[Part]]]] = deque()
    ahead = max(stream.ahead for stream in streams)
    while True:
        with reader.loader.generators():
            while not reader.has_ended and len(waiting) <= ahead:
                waiting += reader.read(streams)
        for module, stream in zip(modules, streams, strict=True):
            prepared = stream.take()
            if prepared is None:
                return
            module._begin(join(waiting[0][1][modules.index(module)]), prepared)
        group, _ = waiting.popleft()
        for number, batch in enumerate(group):
            for module in modules:
                module._hand_out(number)
            yield batch
            if not all(module._is_in(stream) for module, stream in zip(modules, streams, strict=True)):
                raise UserError(
                    "this prefetch was ended, by load, close or another prefetch of its module; load after the loop, "
                    "and go through one after the other, not one inside another. For several modules in one loop: "
                    "cachedlrm.prefetch(batches, {one: ids, another: ids})"
                )
        for module in modules:
            module._leave_current("going on to the next batch")


class _Reader:
    """Reads a user's batches, as many together as make one step, and feeds their ids to streams."""

    def __init__(self, batches: Iterable[T], ids: Mapping[Member, Callable[[T], Any]], num_together: int) -> None:
        self._ids = ids
        self._num_together = num_together
        first_step = max(module._progress.next_batch for module in ids)
        self._number = num_together * first_step  # of the first batch, for messages
        self.has_ended = False
        self.loader: Loader[Any] = Loader(batches, max(module._progress.num_loops for module in ids))

    def read(self, streams: list[Stream]) -> list[tuple[list[Any], list[list[Part]]]]:
        """The batches of the next step, with what each module looks up in each of them; none at the end.

        An error of theirs, or of ``ids``, goes the way of the batches, so that it comes out in its place.
        """
        group: list[Any] = []
        parts: list[list[Part]] = [[] for _ in streams]
        end: Exception | None = None
        try:
            while len(group) < self._num_together:
                batch = self.loader.read()
                where = f"batch {self._number}"
                found = [module._asked(find(batch), where) for module, find in self._ids.items()]
                group.append(batch)
                for of_module, part in zip(parts, found, strict=True):
                    of_module.append(part)
                self._number += 1
        except StopIteration:
            self.has_ended = True
        except Exception as error:
            end, self.has_ended = error, True
        for stream, of_module in zip(streams, parts, strict=True):
            if group:
                stream.feed(join(of_module))
            if self.has_ended:
                stream.feed(end)
        return [(group, parts)] if group else []
