"""Reading all of a store, to find what is not as it was written. Nothing is changed; a trainer may go on meanwhile.

What is read is one moment, that of the last commit: LMDB keeps its pages until the reader is done.
"""

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.check.findings import Findings, GroupCounts
from cachedlrm.store import environment as store
from cachedlrm.store.checkpoint_value import decode_checkpoint
from cachedlrm.store.mapped_file import damage_explained
from cachedlrm.store.segment import SegmentView, fingerprint, parse_segment

_MOST_GROUPS = 1000
_AS_WHOM = "check it as a user who may write there, or a copy of it"
_META_PAGES = 2  # at the beginning of LMDB's file


def inspect_store(path: Path) -> Findings:
    """Reads all of a store. Memory: a byte for each touched row of a group at a time, and the checkpoint.

    A file that is damaged beyond what LMDB sees through ends the process, with one line and status 1.

    Args:
        path: folder of a store.

    Raises:
        UserError: it cannot be kept from changing meanwhile, or does not say the shape of its groups.
    """
    findings = Findings()
    data = path / store.DATA_FILE
    with damage_explained(data), _held(path) as is_held, ExitStack() as stack:
        try:
            # No trainer can make the file twice as large before the transaction begins.
            environment = store.open_environment(path, _MOST_GROUPS, 2 * data.stat().st_size, True, not is_held)
            stack.enter_context(closing(environment))
            store.check_length(path, environment)
            with environment.begin(buffers=True) as transaction:
                _Inspection(path, environment, transaction, findings).run()
        except store.NoShapesError:
            raise
        except UserError as error:
            findings.wrong(str(error))
        except (lmdb.Error, OSError, MemoryError) as error:
            reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
            findings.wrong(f"{store.DATA_FILE} does not read: {reason}")
    return findings


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether trainers are kept away inside. They need not be where LMDB's lock file can be written."""
    lock, owner = path / store.LMDB_LOCK_FILE, path / store.LOCK_FILE
    if os.access(lock if lock.exists() else path, os.W_OK):
        yield False
        return
    with ExitStack() as stack:
        if owner.exists():
            if sys.platform == "win32":
                raise UserError(f"cannot check the store in {path} without writing to {lock}; {_AS_WHOM}")
            import fcntl  # noqa: PLC0415 - not on Windows

            try:
                fcntl.flock(stack.enter_context(owner.open("rb")), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                reason = "a trainer uses it" if isinstance(error, BlockingIOError) else f"{owner}: {error.strerror}"
                raise UserError(
                    f"cannot check the store in {path} without writing to {lock}: {reason}; {_AS_WHOM}"
                ) from error
        yield True


class _Inspection:
    """One reading of a store.

    Args:
        path: its folder.
        environment: LMDB's.
        transaction: for reading, with buffers.
        findings: to be filled.
    """

    def __init__(self, path: Path, environment: Any, transaction: Any, findings: Findings) -> None:
        self._path = path
        self._environment = environment
        self._transaction = transaction
        self._findings = findings
        info = environment.info()
        findings.num_pages = info["last_pgno"] + 1
        findings.page_bytes = environment.stat()["psize"]
        main = environment.open_db(None, transaction, create=False)
        self._content_pages = _META_PAGES + _pages(transaction.stat(main))
        found = itertools.islice(transaction.cursor(main).iternext(values=False), _MOST_GROUPS + 1)
        self._databases: dict[bytes, Any] = {}
        for name in map(bytes, found):
            self._databases[name] = environment.open_db(name, transaction, create=False)
            self._content_pages += _pages(transaction.stat(self._databases[name]))

    def run(self) -> None:
        """Reads everything.

        Raises:
            UserError: there is no telling what the rest should be.
            lmdb.Error: LMDB's own pages are damaged.
        """
        findings = self._findings
        findings.free_pages = findings.num_pages - self._content_pages
        if findings.free_pages < 0:
            raise UserError(f"{self._content_pages:,} pages are in use, and there are {findings.num_pages:,}")
        value = store.read_identity(self._environment, self._transaction)
        if value is None:
            if any(self._transaction.stat(handle)["entries"] for handle in self._databases.values()):
                findings.wrong("it does not say what it is of")
            return
        findings.identity = store.parse_identity(self._path, value)
        for name, ours in store.own_identity().items():
            theirs = findings.identity.get(name)
            if theirs != ours:
                raise UserError(f"it is of {name} {theirs}, and this release reads {name} {ours} on this machine")
        shapes = store.read_shapes(self._path, self._transaction, self._databases[store.META])
        groups = [store.group_name(number) for number in range(len(shapes))]
        for stray in self._databases.keys() - {store.META, *groups}:
            findings.wrong(f"{stray!r} does not belong there")
        boundaries = self._checkpoint(len(groups))
        for number, (num_rows, width) in enumerate(shapes):
            counts = GroupCounts(num_rows, 4 * width)
            findings.groups.append(counts)
            if groups[number] in self._databases:
                self._segments(number, self._databases[groups[number]], boundaries[number], counts)
            else:
                findings.wrong(f"group {number} is missing")

    def _checkpoint(self, num_groups: int) -> tuple[int, ...]:
        """The first segment of each group after the checkpoint; none is after a damaged one."""
        value = self._transaction.get(store.CHECKPOINT, db=self._databases[store.META])
        if value is None:
            return (0,) * num_groups
        try:
            self._findings.checkpoint = decode_checkpoint(bytes(value))
            ends = self._findings.checkpoint.ends
            if len(ends) == num_groups:
                return tuple(boundary for boundary, _ in ends)
            self._findings.wrong(f"the checkpoint is of {len(ends)} groups of tables, not {num_groups}")
        except ValueError as error:
            self._findings.wrong(str(error))
        return (1 << 64,) * num_groups

    def _segments(self, group: int, handle: Any, boundary: int, counts: GroupCounts) -> None:
        """Reads the segments of a group from the newest to the oldest, so that a row's first record is its live one."""
        seen = np.zeros(counts.num_rows, bool)
        later: bytes | None = None
        num_found = num_read = 0
        live: list[int] = []
        for found, value in self._transaction.cursor(handle).iterprev():
            key = bytes(found)
            if later is not None and key >= later:
                self._findings.wrong(f"group {group}: its pages lead in a circle")
                return
            later = key
            num_found += 1
            sequence = -1
            try:
                sequence = store.parse_key(key)
                view = parse_segment(value, sequence, counts.record_bytes // 4, counts.num_rows)
            except ValueError as error:
                where = f"group {group}" if sequence < 0 else f"group {group}, segment {sequence}"
                self._findings.wrong(f"{where}: {error}")
                continue
            num_read += 1
            for place in _damaged(view):
                self._findings.wrong(
                    f"group {group}, segment {sequence}: the record of row {view.rows[place]} is not what was written"
                )
            if sequence < boundary:
                counts.segments += 1
                counts.records += len(view.rows)
                num_live = _mark(view.rows, seen)
                counts.live += num_live
                if num_live:
                    live.append(sequence)
            else:
                counts.later_segments += 1
                counts.later_records += len(view.rows)
        expected = self._transaction.stat(handle)["entries"]
        if num_found != expected:
            self._findings.wrong(f"group {group} has {num_found:,} segments of {expected:,}")
        ends = self._findings.checkpoint.ends if self._findings.checkpoint else ()
        if num_read == expected and group < len(ends) and fingerprint(np.array(live, np.int64)) != ends[group][1]:
            self._findings.wrong(f"group {group} lacks a segment that the checkpoint needs")


def _pages(stat: dict[str, int]) -> int:
    """Pages of one of LMDB's databases."""
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]


def _damaged(view: SegmentView) -> Iterator[int]:
    """Places of the records that are not as they were written."""
    first = 0
    while (place := SegmentView(view.rows[first:], view.entries[first:]).first_damaged()) >= 0:
        yield first + place
        first += place + 1


@numba.njit(cache=True, nogil=True)
def _mark(rows: NDArray[np.uint32], seen: NDArray[np.bool_]) -> int:
    """Marks rows as seen; how many were not."""
    num_new = 0
    for row in rows:
        if not seen[row]:
            seen[row] = True
            num_new += 1
    return num_new
