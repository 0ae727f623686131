"""A mini-batch and the protocol every data source follows.

Terms: a *bag* is one sample's lookups in one table. Bags are sample-major: bag ``b * T + t`` belongs to sample
``b`` and table ``t``. A *row* is a global index over the concatenated tables (int64).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.kernels import table_offsets
from cachedlrm.data.fingerprint import Contents
from cachedlrm.data.vocabulary import Vocabulary

MOST_ROWS = 2**31 - 1
"""Rows of all tables together, whose addresses are int32."""

NO_DENSE: NDArray[np.float32] = np.empty((0, 0), np.float32)
NO_LABELS: NDArray[np.float32] = np.empty(0, np.float32)
"""Of batches of lookups alone, whose other features and labels stay with whoever trains them."""


@dataclass(frozen=True)
class Batch:
    """One mini-batch of B samples over T tables, on the host.

    Attributes:
        dense: [B, num_dense] float32, finite.
        rows: [num_lookups] int64, global rows, bag after bag.
        offsets: [B * T + 1] int64; bag ``i`` holds ``rows[offsets[i]:offsets[i + 1]]`` and may be empty.
        labels: [B] float32, 0 or 1 for classification.
    """

    dense: NDArray[np.float32]
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.float32]

    @property
    def num_samples(self) -> int:
        return len(self.labels)


class Source(Protocol):
    """Samples in a fixed order that can be read from any place on: a pure function of the sample's number.

    Attributes:
        table_rows: number of rows of each of the T tables.
        num_dense: number of dense features.
        max_lookups_per_bag: the most lookups a bag can hold in each table (1 for one-hot data).
        num_samples: samples in one epoch.
        has_labels: whether samples have labels; else they are 0.
        pieces: first sample of each piece that is read or decoded whole, and the number of all samples; None: any
            samples are read for themselves.
    """

    table_rows: tuple[int, ...]
    num_dense: int
    max_lookups_per_bag: tuple[int, ...]
    num_samples: int
    has_labels: bool
    pieces: tuple[int, ...] | None

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``, of 0 to `num_samples`; thread-safe; the same numbers at every call.

        Raises:
            UserError: a value is out of range or not finite; the message names the file, sample and table.
        """
        ...


class SourceWrapper:
    """A `Source` around another one; subclasses change `read`.

    Args:
        source: the other one.
    """

    def __init__(self, source: Source) -> None:
        self.table_rows = source.table_rows
        self.num_dense = source.num_dense
        self.max_lookups_per_bag = source.max_lookups_per_bag
        self.num_samples = source.num_samples
        self.has_labels = source.has_labels
        self.pieces = source.pieces
        self._source = source

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        return self._source.read(start, stop)


class RoundedTargets(SourceWrapper):
    """A `Source` whose labels are rounded to 0 or 1 (halves to 0)."""

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        batch = super().read(start, stop)
        return replace(batch, labels=np.round(batch.labels))


class KnownRows(SourceWrapper):
    """A `Source` for smaller tables: rows beyond their ends become row 0 of their table, that of all other values.

    Args:
        source: whose tables have more rows.
        table_rows: rows of each of the smaller tables.
    """

    def __init__(self, source: Source, table_rows: tuple[int, ...]) -> None:
        super().__init__(source)
        self.table_rows = table_rows
        self._larger, self._first_rows = table_offsets(source.table_rows), table_offsets(table_rows)

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        batch = super().read(start, stop)
        tables = np.searchsorted(self._larger, batch.rows, side="right") - 1
        ids = batch.rows - self._larger[tables]
        ids[ids >= np.diff(self._first_rows)[tables]] = 0
        return replace(batch, rows=ids + self._first_rows[tables])


class WatchedSource(SourceWrapper):
    """A `Source` that reports how far it was read.

    Args:
        source: to read.
        tell: takes the share of the samples that were read, before each read.
    """

    def __init__(self, source: Source, tell: Callable[[float], None]) -> None:
        super().__init__(source)
        self._tell = tell

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        self._tell(start / self.num_samples)
        return super().read(start, stop)


@dataclass(frozen=True)
class Dataset:
    """The samples that ``--data`` opens.

    Attributes:
        train: the samples to train on.
        test: held-out samples, if there are any.
        row_counts: [rows of all tables] int64, lookups of each row in an epoch, if known in advance.
        vocabulary: which value each row stands for; None: not on record.
        table_names: the user's names of the tables, in order; None: they have none.
        notes: what a user should know before training.
        contents: what was opened; see `cachedlrm.data.fingerprint`.
    """

    train: Source
    test: Source | None
    row_counts: NDArray[np.int64] | None = None
    vocabulary: Vocabulary | None = None
    table_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    contents: tuple[Contents, ...] = ()

    @property
    def vocabulary_fingerprint(self) -> str | None:
        """What runs, stores and models record of the vocabulary."""
        return None if self.vocabulary is None else self.vocabulary.fingerprint


_kept_table_offsets = lru_cache(maxsize=16)(table_offsets)  # every batch needs its source's


@numba.njit(cache=True, nogil=True)
def _globalise(
    ids: NDArray[np.int64],
    bag_offsets: NDArray[np.int64],
    first_rows: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> int:
    """Adds each table's first row to its ids; the index of the first lookup out of range, or -1."""
    num_tables = len(first_rows) - 1
    for bag in range(len(bag_offsets) - 1):
        table = bag % num_tables
        first_row = first_rows[table]
        num_rows = first_rows[table + 1] - first_row
        for lookup in range(bag_offsets[bag], bag_offsets[bag + 1]):
            if ids[lookup] < 0 or ids[lookup] >= num_rows:
                return lookup
            rows[lookup] = ids[lookup] + first_row
    return -1


@numba.njit(cache=True, nogil=True)
def _is_clean(dense: NDArray[np.float32], labels: NDArray[np.float32]) -> bool:
    """Whether all numbers are finite and labels are within 0 to 1."""
    for sample in range(dense.shape[0]):
        for column in range(dense.shape[1]):
            if not np.isfinite(dense[sample, column]):
                return False
    for sample in range(len(labels)):  # noqa: SIM110 - numba's loop
        if not 0 <= labels[sample] <= 1:
            return False
    return True


class IdAdvice(NamedTuple):
    """Advice on an id outside its table: below 0, or beyond the end."""

    negative: str = "ids count from 0; correct the data"
    beyond: str = "correct the data, raise that entry of --arch-embedding-size, or fold ids with --max-ind-range"


FILE_ADVICE = IdAdvice()
"""For data in files."""


def make_batch(
    dense: NDArray[np.float32],
    ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
    labels: NDArray[np.float32],
    table_rows: tuple[int, ...],
    *,
    where: str,
    first_sample: int,
    advice: IdAdvice = FILE_ADVICE,
) -> Batch:
    """A checked batch from ids local to their tables.

    Args:
        dense: [B, num_dense] float32.
        ids: [num_lookups] int64, local to their table, bag after bag.
        offsets: [B * T + 1] int64.
        labels: [B] float32.
        table_rows: rows of each table.
        where: the file or source, for the message.
        first_sample: number of the first sample in ``where``, for the message.
        advice: on an id outside its table, for the message.

    Raises:
        UserError: an id outside its table, a dense feature or label that is NaN or infinite, or a label outside 0..1.
    """
    first_rows = _kept_table_offsets(table_rows)
    rows = np.empty(len(ids), np.int64)
    bad = _globalise(ids, offsets, first_rows, rows)
    if bad >= 0:
        bag = int(np.searchsorted(offsets, bad, side="right")) - 1
        sample, table = divmod(bag, len(table_rows))
        raise UserError(
            f"{where}: sample {first_sample + sample}, table {table}: id {ids[bad]} is outside "
            f"0..{table_rows[table] - 1}; {advice.negative if ids[bad] < 0 else advice.beyond}"
        )
    if not _is_clean(dense, labels):
        raise _unclean(dense, labels, where, first_sample)
    return Batch(dense, rows, offsets, labels)


def _unclean(dense: NDArray[np.float32], labels: NDArray[np.float32], where: str, first_sample: int) -> UserError:
    """Names the first number that `_is_clean` refuses."""
    for name, values in (("dense feature", dense), ("label", labels)):
        if not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0]
            column = f" {place[1]}" if values.ndim == 2 else ""
            return UserError(
                f"{where}: sample {first_sample + place[0]}: {name}{column} is {values[tuple(place)]}; "
                "replace NaN and infinities before training"
            )
    sample = int(((labels < 0) | (labels > 1)).argmax())
    return UserError(
        f"{where}: sample {first_sample + sample}: label is {labels[sample]}; labels are 0 to 1, correct the data"
    )
