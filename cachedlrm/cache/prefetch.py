"""Preparing batches ahead of training in a thread of its own."""

import queue
import threading
from collections.abc import Callable, Iterator

from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.cache.streams import StoppedError, TrainedBatches

_LONG_S = 1.0
"""After waiting so long for a batch the consumer looks whether the thread is there."""


class Prefetcher:
    """Iterates, once, over prepared batches, up to ``depth`` of them ahead of the consumer.

    A generator does the work; with depth 0 in the consumer's thread, so that at most one thread is ever busy. Nothing
    is prepared before `start`, which iterating calls. An error of the generator is raised in the consumer, in its place
    in the stream.

    Args:
        prepared: `EmbeddingCache.prepare`'s generator.
        depth: batches prepared before the consumer asks for them.
        trained: woken when the consumer stops early.
        pause_after: whether to prepare nothing beyond batch ``index`` until the consumer asks for more. While it
            holds the last batch before a pause, the consumer may read the cache.
    """

    def __init__(
        self,
        prepared: Iterator[PreparedBatch],
        depth: int,
        trained: TrainedBatches,
        pause_after: Callable[[int], bool],
    ) -> None:
        self._prepared = prepared
        self._trained = trained
        self._pause_after = pause_after
        self._depth = depth
        self._thread: threading.Thread | None = None
        self._ready: queue.SimpleQueue[PreparedBatch | BaseException | None] = queue.SimpleQueue()
        self._ahead = threading.Semaphore(depth)
        self._resume = threading.Semaphore(0)
        self._stop = self._is_over = False
        self._pauses = False  # the consumer holds a batch before a pause

    @property
    def runs_ahead(self) -> bool:
        """Whether a thread of its own prepares batches."""
        return self._depth > 0

    @property
    def native_id(self) -> int:
        """The operating system's number of the thread that prepares batches; the consumer asks."""
        thread = self._thread or threading.current_thread()
        assert thread.native_id is not None
        return thread.native_id

    def start(self) -> None:
        """Lets the thread begin, if there is to be one."""
        if self._depth and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[PreparedBatch]:
        self.start()
        return self

    def __next__(self) -> PreparedBatch:
        # No generator: an interrupt of the consumer would end it, and the thread would go on unseen.
        if not self._depth:
            if self._stop:
                raise StopIteration
            return next(self._prepared)
        if self._is_over:
            raise StopIteration
        if self._pauses:
            self._pauses = False
            self._resume.release()
        item = self._take()
        self._ahead.release()
        if item is None or isinstance(item, BaseException):
            self._is_over = True  # the thread puts nothing after these
            raise StopIteration if item is None else item
        self._pauses = self._pause_after(item.tensors.index)
        return item

    def _take(self) -> PreparedBatch | BaseException | None:
        while self._thread is not None:
            try:
                return self._ready.get(timeout=_LONG_S)
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    break  # an interrupt took away the last item
        return None

    def skip_pauses(self) -> None:
        """Lets the thread go on where it may wait for a consumer that an interrupt took by surprise."""
        self._ahead.release()
        self._resume.release()

    def finish(self) -> None:
        """Prepares no further batch; those that are prepared, or nearly, are still to be consumed."""
        self._stop = True
        self._ahead.release()
        self._resume.release()

    def _run(self) -> None:
        try:
            while True:
                self._ahead.acquire()
                if self._stop:
                    self._ready.put(None)
                    return
                batch = next(self._prepared, None)
                self._ready.put(batch)
                if batch is None:
                    return
                if self._pause_after(batch.tensors.index):
                    self._resume.acquire()
        except StoppedError:
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, whatever it is
            self._ready.put(error)

    def close(self) -> None:
        """Ends the thread; batches not yet consumed are dropped."""
        if self._thread is None:
            return
        self._stop = True
        self._trained.stop()
        self._resume.release()
        self._ahead.release()
        # Not this thread, whose garbage collection may end its owner; nor one that an interrupt kept from starting.
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join()
        self._thread = None
