"""The host tier: records of rows that left the device, in memory.

A record's *address* is its row's number in order of first touch, so addresses are dense: memory is used for touched
rows only, and rows that became popular early are neighbours.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.errors import UserError


@numba.njit(cache=True, nogil=True)
def _gather(records: NDArray[np.float32], addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    for index in range(len(addresses)):
        source = addresses[index]
        for column in range(records.shape[1]):
            out[index, column] = records[source, column]


@numba.njit(cache=True, nogil=True)
def _scatter(records: NDArray[np.float32], addresses: NDArray[np.int64], values: NDArray[np.float32]) -> None:
    for index in range(len(addresses)):
        target = addresses[index]
        for column in range(records.shape[1]):
            records[target, column] = values[index, column]


class HostStore:
    """Records by address. One writer at a time; reads may run beside a write of other addresses.

    Args:
        capacity_rows: the most records it may hold. Memory is reserved, not used: the system backs a page when a
            record on it is first written.
        width: float32 columns of a record.
    """

    def __init__(self, capacity_rows: int, width: int) -> None:
        self.capacity_rows = capacity_rows
        self._records = np.empty((capacity_rows, width), np.float32)
        self.used_rows = 0  # up to the highest address written

    def read(self, addresses: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Copies the records at ``addresses`` [n] into ``out`` [n, width]; each must have been written."""
        _gather(self._records, addresses, out)

    def write(self, addresses: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Copies ``values`` [n, width] to ``addresses`` [n], each below the capacity."""
        if len(addresses):
            self.used_rows = max(self.used_rows, int(addresses.max()) + 1)
            _scatter(self._records, addresses, values)

    def check_capacity(self, num_rows: int) -> None:
        """Makes sure that ``num_rows`` records fit, for every touched row comes down in the end.

        Raises:
            UserError: they do not; names ``--host-budget``.
        """
        if num_rows > self.capacity_rows:
            raise UserError(
                f"the host store is full: {num_rows:,} rows of {4 * self._records.shape[1]} bytes were touched and it "
                f"may hold {self.capacity_rows:,}; raise --host-budget or train fewer rows (--max-ind-range)"
            )

    def records(self, num_records: int) -> NDArray[np.float32]:
        """A view of the first ``num_records`` records, [num_records, width]."""
        return self._records[:num_records]
