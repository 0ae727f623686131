"""Common parts of the sources that read files: folded ids, and samples decoded block by block."""

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.data.batch import Batch, make_batch

KEPT_BLOCKS = 2
"""Blocks that are decoded at a time: a batch may lie across the boundary of two."""

_LARGEST_INT64 = 2**63 - 1


class BadIdError(Exception):
    """An id that no table can have.

    Attributes:
        place: index of the first such id.
        what: the problem and the remedy, for the user.
    """

    def __init__(self, wrong: NDArray[np.bool_], what: str) -> None:
        super().__init__(what)
        self.place: tuple[int, ...] = tuple(np.argwhere(wrong)[0].tolist())
        self.what = what


def fold_ids(ids: NDArray[Any], max_ind_range: int) -> NDArray[np.int64]:
    """Integers of any kind as int64, folded modulo ``max_ind_range`` if that is positive.

    Raises:
        BadIdError: an id below 0, or one that int64 cannot hold.
    """
    limits = np.iinfo(ids.dtype)
    if limits.min < 0 and ids.min(initial=0) < 0:
        raise BadIdError(ids < 0, "is negative; correct the data (--max-ind-range folds ids from 0 on)")
    if 0 < max_ind_range <= limits.max:
        ids = ids % ids.dtype.type(max_ind_range)  # not as int64, which would change ids from 2^63 on
    elif limits.max > _LARGEST_INT64 and ids.max(initial=0) > _LARGEST_INT64:
        raise BadIdError(
            ids > _LARGEST_INT64,
            f"is above {_LARGEST_INT64}; correct the data, or fold ids with --max-ind-range",
        )
    return ids.astype(np.int64)


@dataclass(frozen=True)
class DecodedBlock:
    """n samples.

    Attributes:
        dense: [n, num_dense] float32.
        ids: of each table, of any integers, local to it: one of each sample [n], or lists of them one after the other.
        labels: [n] of any numbers; None: the data have none.
        list_starts: of each table where the list of each sample begins in its ids [n + 1] int64; None: it has no
            lists. A missing id is an empty list.
    """

    dense: NDArray[np.float32]
    ids: Sequence[NDArray[Any]]
    labels: NDArray[Any] | None
    list_starts: Sequence[NDArray[np.int64] | None] = ()

    @property
    def has_lists(self) -> bool:
        """Whether any table has."""
        return any(starts is not None for starts in self.list_starts)

    def bag_sizes(self, samples: slice) -> NDArray[np.int64]:
        """Ids of each bag of some samples, [samples, T]."""
        sizes = np.ones((samples.stop - samples.start, len(self.ids)), np.int64)
        for table, starts in enumerate(self.list_starts):
            if starts is not None:
                sizes[:, table] = np.diff(starts[samples.start : samples.stop + 1])
        return sizes

    def put_bags(self, samples: slice, offsets: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """Puts the ids of some samples, bag after bag, where ``offsets`` [samples * T + 1] say."""
        if not self.has_lists:
            by_sample = ids[offsets[0] : offsets[-1]].reshape(-1, len(self.ids))
            for table, column in enumerate(self.ids):
                by_sample[:, table] = column[samples]
            return
        for table, column in enumerate(self.ids):
            places = offsets[table : -1 : len(self.ids)]
            starts = self.list_starts[table]
            if starts is None:
                ids[places] = column[samples]
            else:
                _put_lists(column, starts[samples.start : samples.stop + 1], places, ids)


@numba.njit(cache=True, nogil=True)
def _put_lists(
    values: NDArray[Any], starts: NDArray[np.int64], places: NDArray[np.int64], ids: NDArray[np.int64]
) -> None:
    """Copies lists ``values[starts[i]:starts[i + 1]]`` to where they begin in ``ids``."""
    for number in range(len(places)):
        place = places[number]
        for lookup in range(starts[number], starts[number + 1]):
            ids[place + lookup - starts[number]] = values[lookup]


class BlockSource(ABC):
    """A `Source` whose blocks are decoded when they are reached; the last two stay in memory.

    Args:
        words: option and value, for messages.
        first_samples: number of each block's first sample, and of all samples.
        table_rows: rows of each table.
        num_dense: dense features.
        has_labels: whether the data have labels.
    """

    def __init__(
        self,
        words: str,
        first_samples: Sequence[int],
        table_rows: tuple[int, ...],
        num_dense: int,
        has_labels: bool = True,
    ) -> None:
        self.table_rows = table_rows
        self.max_lookups_per_bag = (1,) * len(table_rows)
        self.num_dense = num_dense
        self.num_samples = first_samples[-1]
        self.has_labels = has_labels
        self.pieces: tuple[int, ...] | None = tuple(first_samples)
        self._words = words
        self._first_samples = first_samples
        self._lock = threading.Lock()
        self._decoded: dict[int, DecodedBlock] = {}

    @abstractmethod
    def _decode(self, number: int) -> DecodedBlock:
        """A block.

        Raises:
            UserError: it cannot be read, or holds a wrong value; names it.
        """

    def read(self, start: int, stop: int) -> Batch:
        """See `Source`."""
        dense, labels = np.empty((stop - start, self.num_dense), np.float32), np.zeros(stop - start, np.float32)
        num_tables = len(self.table_rows)
        with self._lock:
            parts = [(self._block(number), part, out) for number, part, out in spans(self._first_samples, start, stop)]
        offsets = np.arange((stop - start) * num_tables + 1)
        if any(block.has_lists for block, _, _ in parts):
            offsets[1:] = np.cumsum(np.concatenate([block.bag_sizes(part) for block, part, _ in parts]))
        rows = np.empty(offsets[-1], np.int64)
        for block, part, out in parts:
            dense[out] = block.dense[part]
            if block.labels is not None:
                labels[out] = block.labels[part]
            block.put_bags(part, offsets[out.start * num_tables : out.stop * num_tables + 1], rows)
        return make_batch(dense, rows, offsets, labels, self.table_rows, where=self._words, first_sample=start)

    def _block(self, number: int) -> DecodedBlock:
        if number not in self._decoded:
            if len(self._decoded) == KEPT_BLOCKS:
                del self._decoded[next(iter(self._decoded))]
            self._decoded[number] = self._decode(number)
        return self._decoded[number]


def numbered(counts: Iterable[int]) -> tuple[int, ...]:
    """Number of each block's first sample, and of all samples, from the blocks' numbers of samples."""
    return tuple(accumulate(counts, initial=0))


def spans(first_samples: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
    """The blocks that samples ``start`` to ``stop - 1`` lie in: number, samples within it, and places in the batch.

    Args:
        first_samples: of each block, and the number of all samples.
        start: first sample.
        stop: the sample after the last.
    """
    place = start
    while place < stop:
        number = bisect_right(first_samples, place) - 1
        first, end = first_samples[number], min(stop, first_samples[number + 1])
        yield number, slice(place - first, end - first), slice(place - start, end - start)
        place = end
