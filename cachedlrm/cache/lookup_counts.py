"""How often rows are looked up, in two bytes a row.

Exact below `MANY`. A row with more is looked up so often that a window of a few batches nearly always has its next use,
so that nobody asks how much more.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.cache.working_set import Int64s
from cachedlrm.rows import AHEAD, load_ahead

Counts = NDArray[np.uint16]

MANY = 2**16 - 1
"""This many lookups or more."""

_PIECE = 1 << 20  # rows taken over at a time


@numba.njit(cache=True, nogil=True)
def add_lookups(rows: Int64s, counts: Counts) -> None:
    """Adds the lookups ``rows`` [L] to ``counts`` [num_rows]."""
    for index in range(len(rows)):
        if index + AHEAD < len(rows):
            load_ahead(counts, rows[index + AHEAD])
        counts[rows[index]] += counts[rows[index]] != MANY


def lookups_of_run(row_counts: NDArray[np.integer], epochs: int) -> Counts:
    """Lookups of each row in so many epochs, from those in one, [num_rows]."""
    total = np.empty(len(row_counts), np.uint16)
    for start in range(0, len(row_counts), _PIECE):
        piece = np.minimum(row_counts[start : start + _PIECE], MANY).astype(np.int64)
        total[start : start + _PIECE] = np.minimum(piece * epochs, MANY)
    return total
