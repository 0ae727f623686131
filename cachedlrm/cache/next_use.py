"""Next uses of a whole stream, on disk: the future that policy ``oracle`` knows.

The stream is read once from its last batch to its first, so that the next use of every row is the one met last, and
each batch's next uses are appended to a file. In memory there are 4 bytes for each row met.
"""

from pathlib import Path

import numba
import numpy as np

from cachedlrm.cache.working_set import NEVER, Int32s, Int64s

_USES, _SIZES = "uses.i32", "sizes.i32"


class NextUseWriter:
    """Takes the batches of a stream from the last to the first.

    In ``folder``: ``uses.i32``, next uses by position (`NEVER` for none), batch after batch from the last on;
    ``sizes.i32``, working-set rows of each of these batches.

    Args:
        folder: where; made if missing. What is there of another stream is replaced.
        num_rows: rows of all tables.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, num_rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._next_use_of = np.zeros(num_rows, np.int32)  # by row, plus one; pages cost nothing until touched
        self._uses_file = (folder / _USES).open("wb")
        self._sizes_file = (folder / _SIZES).open("wb")
        self._found = np.empty(0, np.int32)

    def add(self, batch: int, rows: Int64s) -> None:
        """Takes the lookups ``rows`` [L] of batch number ``batch``, the one before that of the last call.

        Raises:
            OSError: the disk is full.
        """
        if len(rows) > len(self._found):
            self._found = np.empty(len(rows), np.int32)
        size = _next_uses(rows, batch, self._next_use_of, self._found)
        self._uses_file.write(self._found[:size].data)
        self._sizes_file.write(np.int32(size).tobytes())

    def close(self) -> None:
        """Completes the files.

        Raises:
            OSError: the disk is full.
        """
        self._uses_file.close()
        self._sizes_file.close()


class NextUses:
    """Reads the files of a `NextUseWriter`.

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
