"""One pass over a model's own batches, whose rows are prepared ahead in a thread."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.data.batch import Batch
from cachedlrm.library.ids import Ids

T = TypeVar("T")


@dataclass(frozen=True)
class Lookup:
    """The ids of a batch.

    Attributes:
        ids, offsets: as the model gave them.
        host: the same in the cache's form.
    """

    ids: Ids
    offsets: Ids | None
    host: Batch


class Stream(Generic[T]):
    """Hands out batches with their rows prepared. The consumer trains each, or marks it as left as it is.

    An error of the batches, or of ``look_up``, is raised in its place in the stream, when the batches before it have
    been handed out.

    Args:
        cache: whose rows are prepared; no other stream may be under way.
        batches: the model's.
        look_up: gives the ids of a batch; called in the thread, with the batch and its number in the cache's life.
        first_batch: number of the first batch in the cache's life.
        depth: batches prepared ahead.
        pause_every: after every so many batches none is prepared ahead; 0: no pause.
    """

    def __init__(
        self,
        cache: EmbeddingCache,
        batches: Iterator[T],
        look_up: Callable[[T, int], Lookup],
        *,
        first_batch: int,
        depth: int,
        pause_every: int,
    ) -> None:
        self._cache = cache
        self._batches = batches
        self._look_up = look_up
        self._first_batch = first_batch
        self._depth = depth
        self._pause_every = pause_every
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._waiting: deque[tuple[T, Lookup]] = deque()
        prepared = cache.prepare(self._read(), first_batch)
        self._prepared = iter(Prefetcher(prepared, depth, cache.trained, self._pauses_after))
        self.next_batch = first_batch
        self.at_rest = False

    def _read(self) -> Iterator[Batch]:
        """The batches in the cache's form, until `end` is called."""
        number = self._first_batch
        try:
            while not self._ended.is_set():
                try:
                    batch = next(self._batches)
                except StopIteration:
                    return
                lookup = self._look_up(batch, number)
                self._waiting.append((batch, lookup))
                yield lookup.host
                number += 1
        except Exception as error:
            self._error = error  # for the consumer, after the batches read before it

    def _pauses_after(self, index: int) -> bool:
        return self._pause_every > 0 and (index + 1 - self._first_batch) % self._pause_every == 0

    def __iter__(self) -> Iterator[tuple[T, Lookup, PreparedBatch]]:
        for prepared in self._prepared:
            self.next_batch = prepared.tensors.index + 1
            self.at_rest = self._depth == 0 or self._pauses_after(prepared.tensors.index)
            yield *self._waiting.popleft(), prepared
        self.at_rest = True
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Reads no further batch and leaves those on the way as they are; the cache is at rest then.

        With policy ``lookahead`` these are the batches of the window: their rows still move.
        """
        self._ended.set()
        for prepared in self._prepared:
            self.next_batch = prepared.tensors.index + 1
            prepared.admitted.wait()
            self._cache.trained.mark(prepared.tensors.index)
