"""Making things ahead of their use, in a thread of its own."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")


def ahead(items: Iterator[_Item], depth: int) -> Generator[_Item]:
    """The items, up to ``depth`` of which a thread makes before they are asked for; with 0 the caller makes them.

    An error is raised in its place. Close the generator where it is left early: that ends the thread.
    """
    if not depth:
        yield from items
        return
    ready: queue.SimpleQueue[tuple[bool, _Item | BaseException | None]] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    stopped = threading.Event()

    def work() -> None:
        try:
            while True:
                room.acquire()
                if stopped.is_set():
                    return
                try:
                    item = next(items)
                except StopIteration:
                    ready.put((False, None))
                    return
                ready.put((True, item))
        except BaseException as error:  # handed to the caller, whatever it is
            ready.put((False, error))

    thread = threading.Thread(target=work, name="reads ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, item = ready.get()
            if is_item:
                room.release()
                yield item  # type: ignore[misc]
            elif isinstance(item, BaseException):
                raise item
            else:
                return
    finally:
        stopped.set()
        room.release()
        thread.join()
