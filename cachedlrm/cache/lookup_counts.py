"""How often rows are used, in two bytes a row.

Exact below `MANY`. Rows with more are the last to leave any cache, and a window of a few batches nearly always has
their next use, so their exact number is not needed.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.kernels import AHEAD, load_ahead
from cachedlrm.cache.working_set import Int64s

Counts = NDArray[np.uint16]

MANY = 2**16 - 1
"""This many lookups or more."""

_PIECE = 1 << 20  # rows taken over at a time


@numba.njit(cache=True, nogil=True)
def add_lookups(rows: Int64s, counts: Counts, times: int) -> None:
    """Adds the lookups ``rows`` [L], each ``times`` times, to ``counts`` [num_rows]."""
    for index in range(len(rows)):
        if index + AHEAD < len(rows):
            load_ahead(counts, rows[index + AHEAD])
        count = int(counts[rows[index]]) + times
        counts[rows[index]] = min(count, MANY)


def lookups_left(row_counts: NDArray[np.integer], epochs: int, passed: Counts | None = None) -> Counts:
    """Lookups of each row that are left of a run, [num_rows].

    Args:
        row_counts: lookups in an epoch, [num_rows].
        epochs: of the run.
        passed: lookups that were trained before, [num_rows]; None: there were none.
    """
    left = np.empty(len(row_counts), np.uint16)
    enough = 2 * MANY  # so many are many, whatever passed
    for start in range(0, len(row_counts), _PIECE):
        piece = slice(start, start + _PIECE)
        counts = np.minimum(row_counts[piece].astype(np.int64), enough) * min(epochs, enough)
        if passed is not None:
            counts = np.where(passed[piece] == MANY, MANY, np.maximum(counts - passed[piece], 0))
        left[piece] = np.minimum(counts, MANY)
    return left
