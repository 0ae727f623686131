"""One pass over batches of a user's own, whose rows are prepared ahead in a thread."""

import queue
import threading
from collections.abc import Callable, Iterator

from cachedlrm.base.errors import UserError
from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.library.engine import in_words_of_arguments
from cachedlrm.library.lookups import JoinedBatch

Check = Callable[[JoinedBatch, str], None]
"""Raises a `UserError` if a batch cannot be prepared; takes its name in messages."""


class Stream:
    """Prepares the batches that it is fed, and hands them out in order. The consumer trains each or leaves it.

    A step of the consumer: `feed` until `ahead` batches beyond the one it wants are fed, then `take`.

    Args:
        cache: whose rows are prepared; no other stream may be under way.
        check: called with each batch before it is prepared.
        first_batch: number of the first batch in the cache's life.
        depth: batches prepared ahead; 0: in the consumer's thread.
        pause_every: after every so many batches none is prepared ahead; 0: no pause.

    Attributes:
        next_batch: number in the cache's life of the batch that `take` gives next.
        at_rest: whether nothing is being prepared.
    """

    def __init__(self, cache: EmbeddingCache, check: Check, *, first_batch: int, depth: int, pause_every: int) -> None:
        self._cache = cache
        self._check = check
        self._first_batch = first_batch
        self._depth = depth
        self._pause_every = pause_every
        self._fed: queue.SimpleQueue[JoinedBatch | Exception | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._error: Exception | None = None
        prepared = cache.prepare(self._read(), first_batch)
        self._prefetcher = Prefetcher(prepared, depth, cache.trained, self._pauses_after)
        self.next_batch = first_batch
        self.at_rest = False

    @property
    def ahead(self) -> int:
        """Batches to be fed beyond the one that is wanted, so that the thread has work."""
        return self._depth + self._cache.groups[0].planner.window

    def feed(self, batch: JoinedBatch | Exception | None) -> None:
        """Takes a batch to prepare; None: there are no more; an error: there are no more, and `take` raises it then."""
        self._prefetcher.start()  # not before: whoever feeds holds the stream, so that an interrupt leaves no thread
        self._fed.put(batch)

    def _read(self) -> Iterator[JoinedBatch]:
        """All that is fed, until `end` is called."""
        number = self._first_batch
        while not self._ended.is_set() and (batch := self._fed.get()) is not None:
            if isinstance(batch, JoinedBatch):
                try:
                    self._check(batch, f"batch {number}")
                except UserError as error:
                    batch = error
            if isinstance(batch, Exception):
                self._error = batch  # for the consumer, after the batches before it
                return
            yield batch
            number += 1

    def _pauses_after(self, index: int) -> bool:
        return self._pause_every > 0 and (index + 1 - self._first_batch) % self._pause_every == 0

    def take(self) -> PreparedBatch | None:
        """The next batch; None: there are no more.

        Raises:
            Exception: what was fed.
            UserError: its rows cannot be prepared; the disk is full, say.
        """
        self.at_rest = False
        try:
            prepared = next(self._prefetcher, None)
        except UserError as error:
            raise in_words_of_arguments(error) from error.__cause__
        if prepared is None:
            self.at_rest = True
            if self._error is not None:
                raise self._error
            return None
        self.next_batch = prepared.tensors.index + 1
        self.at_rest = self._depth == 0 or self._pauses_after(prepared.tensors.index)
        return prepared

    def end(self) -> None:
        """Prepares no further batch and leaves those on the way as they are; the cache is at rest then.

        With policy ``lookahead`` these are the batches of the window: their rows still move.
        """
        self._ended.set()
        self._fed.put(None)
        if not self.at_rest:
            # An interrupt may have taken a batch away on its way from the thread, which may wait for its training. So
            # the next number counts as trained, whether there is a batch of it or not, and is not used again.
            self._cache.trained.mark(self.next_batch)
            self.next_batch += 1
            self._prefetcher.skip_pauses()
        while (prepared := next(self._prefetcher, None)) is not None:
            self.next_batch = prepared.tensors.index + 1
            prepared.admitted.wait()
            self._cache.trained.mark(prepared.tensors.index)

    def abort(self) -> None:
        """Ends the thread, wherever it is; the cache is of no use then."""
        self._ended.set()
        self._fed.put(None)
        self._prefetcher.close()
