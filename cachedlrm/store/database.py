"""A store that one trainer has open: written by one thread, never half.

What is written is queued and reaches the disk in transactions of some megabytes, in order. So whoever opens the store
finds everything up to some moment, and nothing after it: `cachedlrm.store.record_log` relies on that order.
"""

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import lmdb
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import lock
from cachedlrm.store.environment import (
    DATA_FILE,
    FIRST_MAP_BYTES,
    LOCK_FILE,
    META,
    OTHERWISE,
    TRANSACTION_BYTES,
    Shapes,
    cannot_open,
    cannot_write_store,
    check_exists,
    check_length,
    claim,
    group_name,
    open_environment,
    parse_key,
    segment_key,
)
from cachedlrm.store.mapped_file import explain_bus_errors

_MOST_MAP_BYTES = 1 << 46
_GATHERED_BYTES = 4 << 20  # a transaction waits for this much, unless a caller waits for it


class Stored(Protocol):
    """Is told where its segments lie: a `cachedlrm.store.record_log.RecordLog`."""

    def stored(self, sequence: int, address: int) -> None:
        """A segment's value lies at ``address`` of this process's memory, until it is deleted or the map grows."""
        ...

    def sequences(self) -> list[int]:
        """Its segments that are in the environment."""
        ...


@dataclass(frozen=True)
class Put:
    """A segment to write: of ``group``, and its words."""

    group: int
    sequence: int
    words: NDArray[np.uint32]


@dataclass(frozen=True)
class Delete:
    """A segment to delete."""

    group: int
    sequence: int


@dataclass(frozen=True)
class Meta:
    """An entry of the database of metadata to write."""

    key: bytes
    value: bytes


@dataclass(frozen=True)
class _Barrier:
    """Everything before it is to be written now."""

    done: threading.Event


_Operation = Put | Delete | Meta | _Barrier


class Database:
    """An LMDB environment of this process alone. Use `open_database`.

    Attributes:
        path: its folder.
        lock: held while addresses of segments are used or change.
    """

    def __init__(self, path: Path, environment: Any, num_groups: int, owner: FileLock, pending_bytes: int) -> None:
        self.path = path
        self.lock = threading.Lock()
        self._environment = environment
        self._owner = owner
        self._meta = environment.open_db(META)
        self._groups = [environment.open_db(group_name(group)) for group in range(num_groups)]
        self._logs: dict[int, Stored] = {}
        self._most_pending = pending_bytes
        self._least_gathered = max(1, min(_GATHERED_BYTES, pending_bytes // 4))
        self._pending_bytes = 0
        self._room = threading.Condition()
        self._queue: queue.SimpleQueue[_Operation | None] = queue.SimpleQueue()
        self._error: UserError | None = None
        self._thread = threading.Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    def attach(self, group: int, log: Stored) -> None:
        """``log`` is told where the segments of ``group`` lie."""
        self._logs[group] = log

    def segments(self, group: int) -> Iterator[tuple[int, memoryview]]:
        """Number and value of every segment of a group, in order. For the time before anything is written.

        Raises:
            UserError: the keys are not those of segments.
        """
        with self._environment.begin(buffers=True) as transaction:
            before = -1
            for key, value in transaction.cursor(self._groups[group]):
                try:
                    sequence = parse_key(bytes(key))
                    if sequence <= before:  # pages that lead in a circle
                        raise ValueError(f"segment {sequence} comes after segment {before}")
                except ValueError as error:
                    raise self.damaged(f"group {group}: {error}") from error
                yield sequence, value
                before = sequence

    def damaged(self, what: str) -> UserError:
        """The error that ends a run whose store is not as it was written; ``what`` says where."""
        return UserError(
            f"the store in {self.path} is damaged: {what}; put back a copy of the store, or start the run again"
        )

    def read_meta(self, key: bytes) -> bytes | None:
        """An entry of the metadata that was committed."""
        with self._environment.begin() as transaction:
            value = transaction.get(key, db=self._meta)
        return None if value is None else bytes(value)

    def write(self, operation: Put | Delete | Meta) -> None:
        """Queues an operation; blocks while too much waits.

        Raises:
            UserError: the writer has failed: the disk is full, say. What was committed before stays.
        """
        size = _size(operation)
        with self._room:
            self._room.wait_for(
                lambda: (
                    self._error is not None
                    or self._pending_bytes < self._least_gathered  # or the writer and this thread wait for each other
                    or self._pending_bytes + size <= self._most_pending
                )
            )
            self._raise_error()
            self._pending_bytes += size
        self._queue.put(operation)

    def wait(self) -> None:
        """Returns when everything queued is on the disk.

        Raises:
            UserError: it could not be written.
        """
        done = threading.Event()
        self._queue.put(_Barrier(done))
        done.wait()
        self._raise_error()

    @property
    def file_bytes(self) -> int:
        """Bytes of the data file."""
        return (self.path / DATA_FILE).stat().st_size

    def close(self) -> None:
        """Writes what is queued, if it can, and lets others open the store."""
        self._queue.put(None)
        self._thread.join()
        self._environment.close()
        self._owner.release()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        """The writer's thread."""
        going = True
        while going:
            operations, barriers, going = self._take()
            if self._error is None:
                try:
                    if lasting := _lasting(operations):
                        self._commit(lasting)
                except (lmdb.Error, OSError, MemoryError) as error:
                    self._error = cannot_write_store(self.path, error)
            with self._room:
                self._pending_bytes -= sum(map(_size, operations))
                self._room.notify_all()
            for barrier in barriers:
                barrier.done.set()

    def _take(self) -> tuple[list[Put | Delete | Meta], list[_Barrier], bool]:
        """Operations for a transaction, barriers after them, and whether there will be more."""
        operations: list[Put | Delete | Meta] = []
        size = 0
        while True:
            must_wait = size < self._least_gathered
            try:
                operation = self._queue.get(block=must_wait)
            except queue.Empty:
                return operations, [], True
            if operation is None:
                return operations, [], False
            if isinstance(operation, _Barrier):
                return operations, [operation], True
            operations.append(operation)
            size += _size(operation)
            if size >= TRANSACTION_BYTES or isinstance(operation, Meta):
                return operations, [], True

    def _commit(self, operations: list[Put | Delete | Meta]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for operation in operations:
                        self._apply(operation, transaction)
                break
            except lmdb.MapFullError:
                self._grow()
        written = [operation for operation in operations if isinstance(operation, Put)]
        with self.lock, self._environment.begin(buffers=True) as transaction:
            for put in written:
                self._tell(put.group, put.sequence, transaction)

    def _apply(self, operation: Put | Delete | Meta, transaction: Any) -> None:
        if isinstance(operation, Put):
            key, value = segment_key(operation.sequence), operation.words.data.cast("B")
            transaction.put(key, value, db=self._groups[operation.group], append=True)
        elif isinstance(operation, Delete):
            transaction.delete(segment_key(operation.sequence), db=self._groups[operation.group])
        else:
            transaction.put(operation.key, operation.value, db=self._meta)

    def _tell(self, group: int, sequence: int, transaction: Any) -> None:
        """Tells the log where a segment lies, if it is still there."""
        value = transaction.get(segment_key(sequence), db=self._groups[group])
        if value is not None and group in self._logs:
            self._logs[group].stored(sequence, np.frombuffer(value, np.uint8).ctypes.data)

    def _grow(self) -> None:
        """Doubles the map, which may move it."""
        size = self._environment.info()["map_size"] * 2
        if size > _MOST_MAP_BYTES:
            raise OSError(f"the store would need a map of {size} bytes")
        with self.lock:
            self._environment.set_mapsize(size)
            with self._environment.begin(buffers=True) as transaction:
                for group, log in self._logs.items():
                    for sequence in log.sequences():
                        self._tell(group, sequence, transaction)


def _size(operation: Put | Delete | Meta) -> int:
    """Bytes of memory that wait with an operation."""
    if isinstance(operation, Put):
        return operation.words.nbytes
    return len(operation.value) if isinstance(operation, Meta) else 0


def _lasting(operations: list[Put | Delete | Meta]) -> list[Put | Delete | Meta]:
    """The same without segments that both come and go among them.

    LMDB would take pages at the end of the file for them and never write these: the file would look cut short.
    """
    written = {(operation.group, operation.sequence) for operation in operations if isinstance(operation, Put)}
    gone = written & {
        (operation.group, operation.sequence) for operation in operations if isinstance(operation, Delete)
    }
    return [
        operation
        for operation in operations
        if isinstance(operation, Meta) or (operation.group, operation.sequence) not in gone
    ]


def open_database(
    path: Path,
    identity: Mapping[str, str],
    shapes: Shapes,
    pending_bytes: int,
    *,
    resumes: bool,
    map_bytes: int = FIRST_MAP_BYTES,
    before: Mapping[str, str] = MappingProxyType({}),
) -> Database:
    """Opens a store for training; makes one where there is none, or none that was ever committed.

    Args:
        path: folder of the store.
        identity: what its records belong to, name by name as a user spells it.
        shapes: rows and columns of each group of tables.
        pending_bytes: the most that may wait to be written.
        resumes: whether to go on from the checkpoint there.
        map_bytes: of the map at first, or the size of the file; it grows.
        before: values that earlier releases recorded in place of those of ``identity``.

    Raises:
        UserError: another process uses it, it is of another model, it holds a run that is not resumed, it is damaged,
            or it cannot be written.
    """
    explain_bus_errors(path / DATA_FILE)
    if resumes:
        check_exists(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        owner = lock(path / LOCK_FILE, f"the store in {path}", f"wait for it or {OTHERWISE}")
    except OSError as error:
        raise cannot_write_store(path, error) from error
    try:
        environment = open_environment(path, len(shapes), map_bytes)
        with contextlib.ExitStack() as undo:
            undo.callback(environment.close)
            check_length(path, environment)
            claim(path, environment, identity, shapes, resumes=resumes, before=before)
            undo.pop_all()
        return Database(path, environment, len(shapes), owner, pending_bytes)
    except (lmdb.Error, OSError) as error:
        owner.release()
        raise cannot_open(path, error) from error
    except BaseException:
        owner.release()
        raise


def copy_store(source: Path, target: Path) -> None:
    """A copy of what is committed in a store, without its free pages.

    Raises:
        UserError: there is no store, or the copy could not be written.
    """
    check_exists(source)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if (target / DATA_FILE).exists():
            raise UserError(f"{target} already holds a store; {OTHERWISE}")
        environment = open_environment(source, 0, FIRST_MAP_BYTES, read_only=True)
        with contextlib.closing(environment):
            environment.copy(str(target), compact=True)
    except (OSError, lmdb.Error) as error:
        raise cannot_write_store(target, error) from error
