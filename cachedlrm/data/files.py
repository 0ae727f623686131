"""Common parts of the sources that read files: folded ids, and samples decoded block by block."""

import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

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
        ids: [n, T] of any integers, local to their tables.
        labels: [n] of any numbers; None: the data have none.
        missing: [n, T], whether an id is missing; None: none is.
    """

    dense: NDArray[np.float32]
    ids: NDArray[Any]
    labels: NDArray[Any] | None
    missing: NDArray[np.bool_] | None = None


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
        ids, missing = np.empty((stop - start, len(self.table_rows)), np.int64), None
        with self._lock:
            for number, part, out in spans(self._first_samples, start, stop):
                block = self._block(number)
                dense[out], ids[out] = block.dense[part], block.ids[part]
                if block.labels is not None:
                    labels[out] = block.labels[part]
                if block.missing is not None:
                    missing = np.zeros(ids.shape, np.bool_) if missing is None else missing
                    missing[out] = block.missing[part]
        rows, offsets = ids.ravel(), np.arange(ids.size + 1)
        if missing is not None:  # its bag is empty
            rows, offsets = ids[~missing], np.concatenate([[0], np.cumsum(~missing.ravel())])
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
