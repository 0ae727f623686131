"""A batch's ids to the lookups of each group of tables.

Tables whose rows have the same number of columns share a slab, so a model may have several groups; and an embedding
may be two tables (the quotient-remainder trick). Without either there is one group whose lookups are the batch's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.kernels import AHEAD, load_ahead, table_offsets
from cachedlrm.data.batch import Batch

Int64s = NDArray[np.int64]


class Lookups(NamedTuple):
    """Lookups of B samples in the T tables of a group.

    Attributes:
        rows: [num_lookups] int64, global over the group's tables, bag after bag.
        offsets: [B * T + 1] int64, bag boundaries; bags are sample-major.
    """

    rows: Int64s
    offsets: Int64s


@dataclass(frozen=True)
class TablePart:
    """A table that holds a feature's ids, or quotients or remainders of them.

    Attributes:
        feature: number of the sparse feature.
        num_rows: rows of the table.
        collisions: remainders of the quotient-remainder trick; 0: the row is the id.
        is_remainder: with collisions, whether the row is ``id % collisions`` and not ``id // collisions``.
    """

    feature: int
    num_rows: int
    collisions: int = 0
    is_remainder: bool = False


class Router:
    """Splits batches into the lookups of each group.

    Args:
        feature_rows: ids of each sparse feature; a batch's rows are global over them.
        groups: the tables of each group, in its order.

    Attributes:
        is_identity: whether there is one group, of the batch's own tables.
    """

    def __init__(self, feature_rows: tuple[int, ...], groups: Sequence[Sequence[TablePart]]) -> None:
        plain = tuple(TablePart(feature, rows) for feature, rows in enumerate(feature_rows))
        self.is_identity = len(groups) == 1 and tuple(groups[0]) == plain
        self._first_ids = table_offsets(feature_rows)
        self._groups = [
            (
                np.array([part.feature for part in parts]),
                table_offsets(tuple(part.num_rows for part in parts)),
                np.array([0 if part.is_remainder else max(part.collisions, 1) for part in parts]),
                np.array([part.collisions for part in parts]),
            )
            for parts in groups
        ]

    @property
    def num_groups(self) -> int:
        return len(self._groups)

    @property
    def num_rows(self) -> tuple[int, ...]:
        """Rows of each group."""
        return tuple(int(first_rows[-1]) for _, first_rows, _, _ in self._groups)

    def __call__(self, batch: Batch) -> tuple[Lookups, ...]:
        """The batch's lookups, group by group."""
        if self.is_identity:
            return (Lookups(batch.rows, batch.offsets),)
        return tuple(
            Lookups(*_route(batch.rows, batch.offsets, self._first_ids, features, first_rows, divisors, moduli))
            for features, first_rows, divisors, moduli in self._groups
        )


def row_bits(num_rows: int) -> NDArray[np.uint8]:
    """Room for `count_unique`: a bit for each row, all 0."""
    return np.zeros(-(-num_rows // 8), np.uint8)


@numba.njit(cache=True, nogil=True)
def count_unique(rows: Int64s, bits: NDArray[np.uint8]) -> int:
    """How many different rows there are among ``rows`` [L]; leaves ``bits``, see `row_bits`, as they were."""
    count = 0
    for lookup in range(len(rows)):
        if lookup + AHEAD < len(rows):
            load_ahead(bits, rows[lookup + AHEAD] >> 3)
        place, bit = rows[lookup] >> 3, np.uint8(1 << (rows[lookup] & 7))
        count += bits[place] & bit == 0
        bits[place] |= bit
    for row in rows:
        bits[row >> 3] = 0
    return count


@numba.njit(cache=True, nogil=True)
def _route(
    rows: Int64s,
    offsets: Int64s,
    first_ids: Int64s,
    features: Int64s,
    first_rows: Int64s,
    divisors: Int64s,
    moduli: Int64s,
) -> tuple[Int64s, Int64s]:
    """Rows and offsets of one group; a divisor of 0 stands for the remainder by the modulus."""
    num_features, num_tables = len(first_ids) - 1, len(features)
    num_samples = (len(offsets) - 1) // num_features
    new_offsets = np.zeros(num_samples * num_tables + 1, np.int64)
    for sample in range(num_samples):
        for table in range(num_tables):
            bag = sample * num_features + features[table]
            new_bag = sample * num_tables + table
            new_offsets[new_bag + 1] = new_offsets[new_bag] + offsets[bag + 1] - offsets[bag]
    new_rows = np.empty(new_offsets[-1], np.int64)
    for new_bag in range(len(new_offsets) - 1):
        sample, table = new_bag // num_tables, new_bag % num_tables
        feature = features[table]
        start = offsets[sample * num_features + feature]
        for number in range(new_offsets[new_bag + 1] - new_offsets[new_bag]):
            index = rows[start + number] - first_ids[feature]
            row = index // divisors[table] if divisors[table] else index % moduli[table]
            new_rows[new_offsets[new_bag] + number] = first_rows[table] + row
    return new_rows, new_offsets
