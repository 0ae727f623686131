"""Order between the host, the copies and the training, on CUDA and, as no-ops, on the CPU.

Two orders matter. Training a batch must wait for its rows to be admitted; moving a row must wait for the training of
the batch that used it last. On CUDA both are events between the copy stream and the training stream, so the host never
waits for the device inside a step. On the CPU operators have finished when they return, and only threads must wait.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

import torch


class Event:
    """A point in a stream's work; on the CPU it is always in the past.

    The current stream is that of ``device``, where operators on its tensors run, whatever device is current.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def record(self) -> None:
        """Marks the work issued so far on the current stream."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Makes later work of the current stream wait for the mark."""
        if self._event is not None:
            torch.cuda.current_stream(self._device).wait_event(self._event)

    def synchronize(self) -> None:
        """Blocks the host until the mark is reached."""
        if self._event is not None:
            self._event.synchronize()


class CopyStream:
    """The stream on which rows move."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self) -> AbstractContextManager[None]:
        """Issues the block's work on the copy stream."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def follow(self) -> None:
        """Makes later copies wait for the work issued so far on the current stream."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))


class AtRest:
    """Keeps apart whoever prepares batches and whoever reads rows: a reader must not meet rows that are on their way.

    A block inside it has planner, slab and store to itself. Nobody waits for the other, who may wait for training in
    turn: that they meet is a mistake of the program.

    Raises:
        RuntimeError: another thread is inside.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("rows were read or saved while a batch was being prepared; pause the prefetch first")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class StoppedError(Exception):
    """Raised in a thread that waits for training that will never happen."""


class TrainedBatches:
    """Which batches have been trained; written by the training thread, awaited by the copying one.

    Its lock is taken as it is, not by way of the condition, whose methods are of Python: an interrupt as one begins
    would leave the lock to a thread that is through with it.

    Args:
        device: where training happens.
        history: how many of the latest batches keep an event of their own. Waiting for an older one waits for the
            oldest kept, which was trained later.
    """

    def __init__(self, device: torch.device, history: int) -> None:
        self._events = [Event(device) for _ in range(history)]
        self._newest = -1
        self._stopped = False
        self._lock = threading.Lock()
        self._condition = threading.Condition(self._lock)

    def begin(self, first_batch: int) -> None:
        """Batches before ``first_batch`` are over: an earlier process trained them, or they are marked."""
        if self._newest < first_batch - 1:  # it never falls, and as a rule its batches are marked
            with self._lock:
                self._newest = max(self._newest, first_batch - 1)

    def includes(self, index: int) -> bool:
        """Whether batch ``index`` was marked."""
        return self._newest >= index

    def mark(self, index: int) -> None:
        """Batch ``index`` has been issued to the current stream, its row updates included."""
        with self._lock:
            self._events[index % len(self._events)].record()
            self._newest = index
            self._condition.notify_all()

    def wait(self, index: int) -> None:
        """Lets the current stream's later work follow the training of batch ``index``; blocks until it was issued.

        Raises:
            StoppedError: `stop` was called.
        """
        with self._lock:
            self._condition.wait_for(lambda: self._newest >= index or self._stopped)
            if self._stopped:
                raise StoppedError
            if index >= 0:
                kept = max(index, self._newest - len(self._events) + 1)
                self._events[kept % len(self._events)].wait()

    def stop(self) -> None:
        """Wakes every waiting thread with `StoppedError`."""
        with self._lock:
            self._stopped = True
            self._condition.notify_all()
