"""Ids of N samples in T tables, in one of three forms of memory-mapped files.

- ``*_sparse.npy`` [N, T]: one id a bag.
- ``*_sparse_multi_hot.npz``: members "0" to "T-1", [N, h_t]: in each table as many ids a bag. MLPerf's multi-hot data.
- ``*_sparse_values.npy`` [L] and ``*_sparse_offsets.npy`` [N * T + 1]: bags of any number of ids; that of sample n in
  table t is ``values[offsets[n * T + t] : offsets[n * T + t + 1]]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.files import BadIdError, fold_ids
from cachedlrm.data.mapped import Array, map_npy, map_npz

ONE_HOT, MULTI_HOT = "sparse.npy", "sparse_multi_hot.npz"
VALUES, OFFSETS = "sparse_values.npy", "sparse_offsets.npy"

_CHUNK_LOOKUPS, _CHUNK_SAMPLES = 1 << 20, 1 << 16
_OFFSETS_AT_A_TIME = 1 << 20

Ids = NDArray[Any]
Int64s = NDArray[np.int64]


class IdFile(ABC):
    """The ids of N samples.

    Args:
        path: of the file that messages name.
        num_samples: N.
        num_tables: T.
    """

    def __init__(self, path: Path, num_samples: int, num_tables: int) -> None:
        self.name = shown(path)
        self.files: tuple[Path, ...] = (path,)
        self.num_samples = num_samples
        self.num_tables = num_tables

    @property
    @abstractmethod
    def max_lookups_per_bag(self) -> tuple[int, ...]:
        """The most ids of a bag in each table.

        Raises:
            UserError: the bags' boundaries are wrong; names the first sample and table.
        """

    @abstractmethod
    def read(self, start: int, stop: int) -> tuple[Ids, Int64s]:
        """Samples ``start`` to ``stop - 1``: ids [L] in the type of the file, and bag boundaries [n * T + 1] in them.

        Raises:
            UserError: the bags' boundaries are wrong; names the first sample and table.
        """

    def folded(self, start: int, ids: Ids, offsets: Int64s, max_ind_range: int) -> Int64s:
        """What `read` gave for ``start``, folded modulo ``max_ind_range`` if that is positive.

        Raises:
            UserError: an id below 0, or one that int64 cannot hold.
        """
        try:
            return fold_ids(ids, max_ind_range)
        except BadIdError as error:
            (lookup,) = error.place
            where = self.place(start * self.num_tables + int(np.searchsorted(offsets, lookup, side="right")) - 1)
            raise UserError(f"{where}: id {ids[lookup]} {error.what}") from error

    def chunks(self) -> Iterator[tuple[int, int]]:
        """First sample of each piece of the samples, and the first after it: of a bounded number of lookups, or one."""
        samples = _samples_at_a_time(sum(self.max_lookups_per_bag))
        for start in range(0, self.num_samples, samples):
            yield start, min(start + samples, self.num_samples)

    def largest(self, max_ind_range: int) -> list[tuple[int, int, str]]:
        """Of each table the largest id once folded (-1: it has none), as it is in the file, and where it is.

        Raises:
            UserError: as `read` and `folded`.
        """
        largest = np.full(self.num_tables, -1)
        found = [(-1, -1, "")] * self.num_tables
        for start, stop in self.chunks():
            ids, offsets = self.read(start, stop)
            folded = self.folded(start, ids, offsets, max_ind_range)
            lookups = np.full(self.num_tables, -1)
            _find_largest(folded, offsets, largest, lookups)
            for table in np.flatnonzero(lookups >= 0).tolist():
                sample = int(np.searchsorted(offsets, lookups[table], side="right") - 1) // self.num_tables
                where = f"{self.name}: sample {start + sample}, column {table}"
                found[table] = int(largest[table]), int(ids[lookups[table]]), where
        return found

    def place(self, bag: int) -> str:
        """Where a bag is, for messages."""
        sample, table = divmod(bag, self.num_tables)
        return f"{self.name}: sample {sample}, table {table}"


@numba.njit(cache=True, nogil=True)
def fold_to_rows(ids: Int64s, offsets: Int64s, table_rows: Int64s) -> None:
    """Takes each id modulo the rows of its table [T], in place."""
    for bag in range(len(offsets) - 1):
        num_rows = table_rows[bag % len(table_rows)]
        for lookup in range(offsets[bag], offsets[bag + 1]):
            ids[lookup] %= num_rows


def open_id_file(folder: Path, prefix: str, names: Sequence[str], found: str, num_samples: int | None) -> IdFile:
    """The ids of a prefix, in the form that is there.

    Args:
        folder: of the files.
        prefix: of their names.
        names: of all files in the folder.
        found: name of one of that prefix.
        num_samples: that the files beside it hold; None: there are none, neither dense features nor labels.

    Raises:
        UserError: ids are missing, in two forms, damaged, of a wrong type, or of another number of samples.
    """
    forms = {
        form: [part for part in parts if f"{prefix}{part}" in names]
        for form, parts in ((OneHotFile, (ONE_HOT,)), (MultiHotFile, (MULTI_HOT,)), (RaggedFile, (VALUES, OFFSETS)))
    }
    present = [form for form, parts in forms.items() if parts]
    if len(present) > 1:
        first, second = (shown(folder / f"{prefix}{forms[form][0]}") for form in present[:2])
        raise UserError(f"{first} and {second} are the same samples' ids in two forms; remove one of them")
    form = present[0] if present else OneHotFile
    if form is RaggedFile and num_samples is None:
        raise UserError(
            f"{shown(folder / f'{prefix}{OFFSETS}')} does not say how many samples and tables its bags are of; write "
            f"{shown(f'{prefix}dense.npy')} beside it, float32 [samples, 0] where there are no dense features"
        )
    return form.open(folder, prefix, found, num_samples)


class OneHotFile(IdFile):
    """One id a bag.

    Args:
        path: of the file.
        ids: [N, T].
    """

    def __init__(self, path: Path, ids: Array) -> None:
        super().__init__(path, *ids.shape)
        self._ids = ids

    @classmethod
    def open(cls, folder: Path, prefix: str, found: str, num_samples: int | None) -> "OneHotFile":
        """See `open_id_file`."""
        path = folder / f"{prefix}{ONE_HOT}"
        ids = map_npy(path, found, "*_dense.npy, *_sparse.npy and *_labels.npy")
        _check(path, ids, "int32 or int64 [N, tables]", 2)
        _check_samples(path, len(ids), num_samples)
        if not ids.shape[1]:
            raise UserError(f"{shown(path)} has no columns where int32 or int64 [N, tables] is needed; write it anew")
        return cls(path, ids)

    @property
    def max_lookups_per_bag(self) -> tuple[int, ...]:
        """See `IdFile`."""
        return (1,) * self.num_tables

    def read(self, start: int, stop: int) -> tuple[Ids, Int64s]:
        """See `IdFile`."""
        ids = np.asarray(self._ids[start:stop]).ravel()
        return ids, np.arange(len(ids) + 1)


class MultiHotFile(IdFile):
    """In each table as many ids in every bag.

    Args:
        path: of the file.
        members: of each table, [N, h_t].
    """

    def __init__(self, path: Path, members: Sequence[Array]) -> None:
        super().__init__(path, len(members[0]), len(members))
        self._members = members
        # int64 and uint64 have no common type but a float.
        self._dtype = np.result_type(*members)
        if self._dtype.kind not in "iu":
            raise UserError(f"{self.name} has members of int64 and of uint64; write all of one type")
        bags = np.cumsum([0, *self.max_lookups_per_bag])
        self._starts, self._lookups = bags[:-1], int(bags[-1])  # in the lookups of a sample

    @classmethod
    def open(cls, folder: Path, prefix: str, found: str, num_samples: int | None) -> "MultiHotFile":
        """See `open_id_file`."""
        path = folder / f"{prefix}{MULTI_HOT}"
        members = map_npz(path, found, "*_dense.npy, *_sparse_multi_hot.npz and *_labels.npy")
        wanted = [str(table) for table in range(max(1, len(members)))]
        if members.keys() != set(wanted):
            odd = next((name for name in members if name not in wanted), None)
            what = "no member 0" if not members else f"a member {shown(odd)} among {len(members)}"
            raise UserError(f"{shown(path)} has {what}; its members are those of the tables, 0, 1, 2 ...")
        for name in wanted:
            member = Path(f"{path}, member {name}")
            _check(member, members[name], "int32 [N, ids of a bag]", 2)
            _check_samples(member, len(members[name]), num_samples)
        return cls(path, [members[name] for name in wanted])

    @property
    def max_lookups_per_bag(self) -> tuple[int, ...]:
        """See `IdFile`."""
        return tuple(member.shape[1] for member in self._members)

    def read(self, start: int, stop: int) -> tuple[Ids, Int64s]:
        """See `IdFile`."""
        count = max(0, stop - start)
        ids = np.empty((count, self._lookups), self._dtype)
        for member, first in zip(self._members, self._starts, strict=True):
            ids[:, first : first + member.shape[1]] = member[start:stop]
        offsets = np.empty(count * self.num_tables + 1, np.int64)
        offsets[:-1] = (np.arange(count)[:, None] * self._lookups + self._starts).ravel()
        offsets[-1] = ids.size
        return ids.ravel(), offsets


class RaggedFile(IdFile):
    """Bags of any number of ids.

    Args:
        path: of the offsets.
        values: [L].
        offsets: [N * T + 1].
        values_path: of the values.
        num_samples: N.
    """

    def __init__(self, path: Path, values: Array, offsets: Array, values_path: Path, num_samples: int) -> None:
        super().__init__(path, num_samples, (len(offsets) - 1) // num_samples)
        self._values, self._offsets = values, offsets
        self.files = (values_path, path)
        self._values_name = shown(values_path)

    @classmethod
    def open(cls, folder: Path, prefix: str, found: str, num_samples: int | None) -> "RaggedFile":
        """See `open_id_file`."""
        assert num_samples is not None, "refused before"
        values_path, path = folder / f"{prefix}{VALUES}", folder / f"{prefix}{OFFSETS}"
        together = "*_dense.npy, *_sparse_values.npy, *_sparse_offsets.npy and *_labels.npy"
        values, offsets = map_npy(values_path, found, together), map_npy(path, found, together)
        _check(values_path, values, "int32 [ids of all bags]", 1)
        _check(path, offsets, "int64 [N * tables + 1]", 1)
        num_tables, rest = divmod(len(offsets) - 1, num_samples)
        if rest or num_tables < 1:
            num_tables = max(1, num_tables + 1)
            sample, table = divmod(max(0, len(offsets) - 1), num_tables)
            raise UserError(
                f"{shown(path)} ends early, at sample {sample}, table {table}: it has {len(offsets):,} offsets, and "
                f"{num_samples:,} samples of {num_tables} tables need {num_samples * num_tables + 1:,}; write it again"
            )
        file = cls(path, values, offsets, values_path, num_samples)
        if int(offsets[0]) != 0:
            raise UserError(f"{file.place(0)}: its ids begin at {offsets[0]}, not at 0; write offsets from 0 on")
        if int(offsets[-1]) < len(values):  # beyond is told with the bag in which that begins
            raise file._wrong(len(offsets) - 2, int(offsets[-2]), int(offsets[-1]))
        return file

    @cached_property
    def max_lookups_per_bag(self) -> tuple[int, ...]:
        """See `IdFile`: in one pass over the offsets, which finds those that are wrong."""
        longest = np.zeros(self.num_tables, np.int64)
        for first in range(0, len(self._offsets) - 1, _OFFSETS_AT_A_TIME):
            self._checked(first, first + _OFFSETS_AT_A_TIME, longest)
        return tuple(longest.tolist())

    def read(self, start: int, stop: int) -> tuple[Ids, Int64s]:
        """See `IdFile`."""
        offsets = self._checked(start * self.num_tables, stop * self.num_tables, np.zeros(self.num_tables, np.int64))
        first, last = offsets[0], offsets[-1]
        return np.asarray(self._values[first:last]), offsets - first

    def chunks(self) -> Iterator[tuple[int, int]]:
        """See `IdFile`."""
        _ = self.max_lookups_per_bag  # so that offsets are known never to fall
        start, step = 0, self.num_tables
        while start < self.num_samples:
            most = min(start + _CHUNK_SAMPLES, self.num_samples)
            ends = np.asarray(self._offsets[start * step : most * step + 1 : step]).astype(np.int64)
            stop = start + max(1, int(np.searchsorted(ends, ends[0] + _CHUNK_LOOKUPS, side="right")) - 1)
            yield start, stop
            start = stop

    def _checked(self, first: int, last: int, longest: Int64s) -> Int64s:
        """Offsets of bags ``first`` to ``last - 1`` of all; ``longest`` bags [T] grow with them."""
        offsets = np.asarray(self._offsets[first : last + 1]).astype(np.int64)
        bad = _measure(offsets, first, len(self._values), longest)
        if bad >= 0:
            raise self._wrong(first + bad, int(offsets[bad]), int(offsets[bad + 1]))
        return offsets

    def _wrong(self, bag: int, begin: int, end: int) -> UserError:
        if end < begin or begin < 0:
            what = f"begin at {begin} and end at {end}; offsets never fall: write them again"
            return UserError(f"{self.place(bag)}: its ids {what}")
        return UserError(
            f"{self.place(bag)}: its ids end at {end} and {self._values_name} holds {len(self._values):,}; write both "
            "from the same samples"
        )


def _check(path: Path, array: Array, wanted: str, dimensions: int) -> None:
    if array.dtype.kind not in "iu" or array.ndim != dimensions:
        held = shown(f"{path} is {array.dtype} {list(array.shape)}")
        raise UserError(f"{held} where {wanted} is needed; convert it")


def _check_samples(path: Path, count: int, num_samples: int | None) -> None:
    if not count and num_samples is None:
        raise UserError(f"{shown(path)} holds no samples; remove it")
    if num_samples is not None and count != num_samples:
        raise UserError(
            f"{shown(path)} has {count:,} samples but the dense features beside it {num_samples:,}; write them from "
            "the same samples"
        )


def _samples_at_a_time(lookups: int) -> int:
    return max(1, min(_CHUNK_SAMPLES, _CHUNK_LOOKUPS // max(1, lookups)))


@numba.njit(cache=True, nogil=True)
def _find_largest(ids: Int64s, offsets: Int64s, largest: Int64s, lookups: Int64s) -> None:
    """Raises the largest id of each table [T] to those of these bags; ``lookups`` [T] of the new ones."""
    num_tables = len(largest)
    for bag in range(len(offsets) - 1):
        table = bag % num_tables
        for lookup in range(offsets[bag], offsets[bag + 1]):
            if ids[lookup] > largest[table]:
                largest[table] = ids[lookup]
                lookups[table] = lookup


@numba.njit(cache=True, nogil=True)
def _measure(offsets: Int64s, first_bag: int, num_values: int, longest: Int64s) -> int:
    """Raises the most ids of a bag in each table [T]; the first bag with wrong boundaries, or -1."""
    num_tables = len(longest)
    for bag in range(len(offsets) - 1):
        begin, end = offsets[bag], offsets[bag + 1]
        if begin < 0 or end < begin or end > num_values:
            return bag
        table = (first_bag + bag) % num_tables
        longest[table] = max(longest[table], end - begin)
    return -1
