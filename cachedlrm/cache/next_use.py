"""Next uses of a whole stream, on disk: what policy ``oracle`` knows of the future.

The stream is read once from its last batch to its first, so that the next use of every row is the one met last, and
each batch's next uses are appended to a file. In memory there are 4 bytes for each row met. What is on disk by the last
`NextUseWriter.save` is taken up by the next writer of the same stream.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numba
import numpy as np

from cachedlrm.cache.working_set import NEVER, Int32s, Int64s

_USES, _SIZES, _ROWS, _PROGRESS = "uses.i32", "sizes.i32", "rows-{}.i32", "progress.json"


class NextUseWriter:
    """Takes the batches of a stream from the last to the first.

    In ``folder``: ``uses.i32``, next uses by position (`NEVER` for none), batch after batch from the last on;
    ``sizes.i32``, working-set rows of each of these batches; ``rows-N.i32``, by row, the next use plus one (0: none) as
    known after N batches; ``progress.json``, what the files belong to and how much of them is safe.

    Args:
        folder: where; made if missing.
        num_rows: rows of all tables.
        num_batches: of the stream.
        fingerprint: of the stream. Files of another one are written anew.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, num_rows: int, num_batches: int, fingerprint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._header: dict[str, str | int] = {
            "fingerprint": fingerprint,
            "num_rows": num_rows,
            "num_batches": num_batches,
        }
        self.done = _progress(folder, self._header, num_rows, num_batches)  # batches, from the last on
        self._next_use_of = np.zeros(num_rows, np.int32)  # by row, plus one; pages cost nothing until touched
        if 0 < self.done < num_batches:
            with (folder / _ROWS.format(self.done)).open("rb") as file:
                file.readinto(self._next_use_of.data)
        elif not self.done:
            for path in folder.glob("*.i32"):
                path.unlink()
        num_uses = int(np.fromfile(folder / _SIZES, np.int32, self.done).sum(dtype=np.int64)) if self.done else 0
        self._uses_file = _open_at(folder / _USES, 4 * num_uses)
        self._sizes_file = _open_at(folder / _SIZES, 4 * self.done)
        self._num_batches = num_batches
        self._found = np.empty(0, np.int32)

    @property
    def next_batch(self) -> int:
        """The batch that `add` takes next; -1: there are no more."""
        return self._num_batches - 1 - self.done

    def add(self, rows: Int64s) -> None:
        """Takes the lookups [L] of batch `next_batch`.

        Raises:
            OSError: the disk is full.
        """
        if len(rows) > len(self._found):
            self._found = np.empty(len(rows), np.int32)
        size = _next_uses(rows, self.next_batch, self._next_use_of, self._found)
        self._uses_file.write(self._found[:size].data)
        self._sizes_file.write(np.int32(size).tobytes())
        self.done += 1

    def save(self) -> None:
        """Makes what was taken so far safe, so that an interrupted pass goes on here.

        Raises:
            OSError: the disk is full.
        """
        for file in (self._uses_file, self._sizes_file):
            file.flush()
            os.fsync(file.fileno())
        rows = self._folder / _ROWS.format(self.done)
        if self.next_batch >= 0:
            with rows.open("wb") as file:
                file.write(self._next_use_of.data)
                file.flush()
                os.fsync(file.fileno())
        partial = self._folder / f".{_PROGRESS}.partial"
        partial.write_text(json.dumps({**self._header, "done": self.done}), encoding="ascii")
        partial.replace(self._folder / _PROGRESS)
        for path in self._folder.glob(_ROWS.format("*")):
            if path != rows:
                path.unlink()

    def close(self) -> None:
        """Closes the files; what `save` did not make safe is lost."""
        for file in (self._uses_file, self._sizes_file):
            with suppress(OSError):  # what is buffered was not promised
                file.close()


class NextUses:
    """Reads what a `NextUseWriter` wrote to the end.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        sizes = np.fromfile(folder / _SIZES, np.int32)
        ends = np.cumsum(sizes, dtype=np.int64)
        self._starts, self._sizes = (ends - sizes)[::-1], sizes[::-1]  # by batch
        self._path = folder / _USES

    def __call__(self, batch: int) -> Int32s:
        """For each position of ``batch``, the batch that uses its row next, or `NEVER`: [U]."""
        return np.fromfile(self._path, np.int32, int(self._sizes[batch]), offset=4 * int(self._starts[batch]))


def _progress(folder: Path, header: dict[str, str | int], num_rows: int, num_batches: int) -> int:
    """Batches whose next uses the folder has for the stream of ``header``."""
    try:
        progress = json.loads((folder / _PROGRESS).read_text(encoding="ascii"))
        done = int(progress.pop("done"))
        if progress != header:
            return 0
        sizes = np.fromfile(folder / _SIZES, np.int32, done)
        is_whole = len(sizes) == done and (folder / _USES).stat().st_size >= 4 * int(sizes.sum(dtype=np.int64))
        if done < num_batches:
            is_whole &= (folder / _ROWS.format(done)).stat().st_size == 4 * num_rows
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return 0
    return done if is_whole else 0


def _open_at(path: Path, length: int) -> BinaryIO:
    """A file open for appending after its first ``length`` bytes."""
    file = path.open("r+b" if length else "wb")
    file.truncate(length)
    file.seek(length)
    return file


@numba.njit(cache=True, nogil=True)
def _next_uses(rows: Int64s, batch: int, next_use_of: Int32s, found: Int32s) -> int:
    """Finds the next uses of the rows of ``batch``, in order of first appearance, and makes it theirs; how many."""
    size = 0
    for row in rows:
        if next_use_of[row] != batch + 1:
            found[size] = next_use_of[row] - 1 if next_use_of[row] else NEVER
            next_use_of[row] = batch + 1
            size += 1
    return size
