"""The torchrec/MLPerf triple of ``.npy`` files, memory-mapped: ``*_dense.npy``, ``*_sparse.npy``, ``*_labels.npy``.

Several triples (day_0, day_1, ..., day_10) are one stream, in the natural order of their prefixes.
"""

import os
import re
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.batch import MOST_ROWS, Batch, IdAdvice, make_batch
from cachedlrm.data.files import BadIdError, fold_ids, numbered, spans
from cachedlrm.data.raw.inputs import natural_order
from cachedlrm.data.spec import DataRequest, SourceSpec, too_many_rows
from cachedlrm.data.vocabulary import (
    PREPARED_FILE,
    TEST_FOLDER,
    Vocabulary,
    garbled,
    read_summary,
    read_table_names,
    read_vocabulary,
)

_TRIPLE = "*_dense.npy, *_sparse.npy and *_labels.npy"
_TOGETHER = {PREPARED_FILE: f"{PREPARED_FILE} and counts.npy"}
_PARTS = ("dense", "sparse", "labels")
_MAGIC, _ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
_SCAN_SAMPLES = 1 << 16


@dataclass(frozen=True)
class _Triple:
    """Three memory-mapped files of N samples: dense [N, num_dense], sparse [N, T], labels [N, 1] or [N].

    Attributes:
        prefix: of their paths, as in ``folder/day_0_``.
    """

    prefix: str
    dense: NDArray[np.generic]
    sparse: NDArray[np.generic]
    labels: NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.dense)

    def file(self, part: str) -> str:
        """Path of a part, for messages; ``*`` for all three."""
        return shown(f"{self.prefix}{part}.npy")

    def ids(self, start: int, stop: int, max_ind_range: int) -> NDArray[np.int64]:
        """Ids [n, T], folded modulo ``max_ind_range`` if that is positive.

        Raises:
            UserError: an id below 0, or one that int64 cannot hold.
        """
        ids = np.asarray(self.sparse[start:stop])
        try:
            return fold_ids(ids, max_ind_range)
        except BadIdError as error:
            sample, table = error.place
            raise UserError(
                f"{self.file('sparse')}: sample {start + sample}, table {table}: id {ids[sample, table]} {error.what}"
            ) from error

    def floats(self, part: str, start: int, stop: int) -> NDArray[np.float32]:
        """Dense features or labels, in the shape they have.

        Raises:
            UserError: a finite value that is infinite as float32.
        """
        values = np.asarray(self.dense[start:stop] if part == "dense" else self.labels[start:stop])
        with np.errstate(over="ignore", invalid="ignore"):
            floats = values.astype(np.float32)
        if np.isinf(floats).any():
            grown = np.isinf(floats) & np.isfinite(values)
            if grown.any():
                place = tuple(np.argwhere(grown)[0])
                column = f", column {place[1]}" if len(place) == 2 else ""
                raise UserError(
                    f"{self.file(part)}: sample {start + place[0]}{column} is {values[place]}, which float32 cannot "
                    "hold; scale the data"
                )
        return floats


@dataclass(frozen=True)
class Prepared:
    """Facts that `cachedlrm.prepare` recorded about the triples of a folder.

    Attributes:
        table_rows: rows of each table.
        test_folder: with held-out samples, if there are any.
        row_counts: [rows of all tables] int64, lookups of each row in the triples; memory-mapped.
    """

    table_rows: tuple[int, ...]
    test_folder: str | None
    row_counts: NDArray[np.int64]


@dataclass(frozen=True)
class NpySpec(SourceSpec):
    """``npy:DIR``: the triples of a folder, in order.

    Attributes:
        triples: one or more, of equal columns.
        request: the options.
        folder: that holds them.
        prepared: facts about triples that were prepared; None: others.
    """

    words: str
    triples: tuple[_Triple, ...]
    request: DataRequest
    folder: Path
    prepared: Prepared | None = None

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """Opens the triples of a folder; one that is missing, empty, truncated or of another type is refused."""
        try:
            names = os.listdir(argument)
        except (FileNotFoundError, ValueError) as error:  # ValueError: a null character in it
            raise UserError(f"{words}: no such folder; name another one") from error
        except OSError as error:
            raise UserError(f"{words} cannot be read: {_reason(error)}; change that, or name another folder") from error
        pattern = re.compile(rf"((?:.*_)?)(?:{'|'.join(_PARTS)})\.npy", re.DOTALL)
        found = {match[1]: name for name in sorted(names) if (match := pattern.fullmatch(name))}
        if not found:
            raise UserError(f"{words}: no {_TRIPLE} in it; name the folder that holds them")
        folder = Path(argument)
        triples = tuple(_open_triple(folder, prefix, found[prefix]) for prefix in sorted(found, key=natural_order))
        for triple in triples[1:]:
            for part in ("dense", "sparse"):
                columns, expected = getattr(triple, part).shape[1], getattr(triples[0], part).shape[1]
                if columns != expected:
                    raise UserError(
                        f"{triple.file(part)} has {columns} columns but {triples[0].file(part)} has {expected}; "
                        "files of a folder must agree"
                    )
        return cls(words, triples, request, folder, _read_prepared(folder, triples[0].sparse.shape[1]))

    @property
    def columns(self) -> tuple[int, int]:
        """See `SourceSpec`."""
        return self.triples[0].sparse.shape[1], self.triples[0].dense.shape[1]

    def table_rows(self) -> tuple[int, ...]:
        """One more than each column's largest id, in one pass; of prepared files those they state."""
        max_ind_range = self.request.max_ind_range
        if self.prepared is not None and max_ind_range <= 0:
            return self.prepared.table_rows
        largest = [-1] * self.columns[0]
        places = [(self.triples[0], 0)] * len(largest)
        for triple in self.triples:
            for start in range(0, len(triple), _SCAN_SAMPLES):
                ids = triple.ids(start, start + _SCAN_SAMPLES, max_ind_range)
                for column in np.flatnonzero(ids.max(axis=0) > largest).tolist():
                    sample = int(ids[:, column].argmax())
                    largest[column], places[column] = int(ids[sample, column]), (triple, start + sample)
        rows = tuple(id_ + 1 for id_ in largest)
        if sum(rows) > MOST_ROWS:
            column = max(range(len(rows)), key=rows.__getitem__)
            triple, sample = places[column]
            where = f"{triple.file('sparse')}: sample {sample}, column {column}"
            raise too_many_rows(f"{where} holds id {triple.sparse[sample, column]}", rows, max_ind_range)
        return rows

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "NpySource":
        """See `SourceSpec`."""
        return NpySource(self, table_rows)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """That of prepared files, also of those held out."""
        vocabulary = read_vocabulary(self.folder)
        return None if vocabulary is None else vocabulary.folded(self.request.max_ind_range)

    @cached_property
    def table_names(self) -> tuple[str, ...] | None:
        """Those of prepared files."""
        names = read_table_names(self.folder)
        return names if names is not None and len(names) == self.columns[0] else None

    def held_out_part(self) -> "NpySpec | None":
        """The samples that `cachedlrm.prepare` held out."""
        if self.prepared is None or self.prepared.test_folder is None:
            return None
        return self.read(f"{self.words}, held-out part", self.prepared.test_folder, self.request, self)

    def row_counts(self, table_rows: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Counts of prepared files, unless ids are folded."""
        if self.prepared is None or self.request.max_ind_range > 0 or table_rows != self.prepared.table_rows:
            return None
        return self.prepared.row_counts


class NpySource:
    """A `Source` over the triples of a folder.

    Args:
        spec: of the folder.
        table_rows: rows of each table; as many as there are sparse columns.
    """

    max_lookups_per_bag = 1
    pieces: tuple[int, ...] | None = None

    def __init__(self, spec: NpySpec, table_rows: tuple[int, ...]) -> None:
        self.table_rows = table_rows
        self.num_dense = spec.columns[1]
        self._triples = spec.triples
        self._first_samples = numbered(map(len, spec.triples))
        self.num_samples = self._first_samples[-1]
        self._max_ind_range = spec.request.max_ind_range
        self._advice = IdAdvice()
        if self._max_ind_range > 0:
            self._advice = IdAdvice(
                beyond="raise that entry of --arch-embedding-size, or lower --max-ind-range, by which ids are "
                f"folded, from {self._max_ind_range} to {min(table_rows)}"
            )

    def read(self, start: int, stop: int) -> Batch:
        """See `Source`; of several files where the range spans them."""
        batches = [
            self._read(self._triples[number], part.start, part.stop)
            for number, part, _ in spans(self._first_samples, start, stop)
        ]
        if not batches:
            return self._read(self._triples[0], 0, 0)
        if len(batches) == 1:
            return batches[0]
        rows = np.concatenate([batch.rows for batch in batches])
        return Batch(
            np.concatenate([batch.dense for batch in batches]),
            rows,
            np.arange(len(rows) + 1),
            np.concatenate([batch.labels for batch in batches]),
        )

    def _read(self, triple: _Triple, start: int, stop: int) -> Batch:
        ids = triple.ids(start, stop, self._max_ind_range).ravel()
        return make_batch(
            triple.floats("dense", start, stop),
            ids,
            np.arange(len(ids) + 1),
            triple.floats("labels", start, stop).reshape(-1),
            self.table_rows,
            where=triple.file("*"),
            first_sample=start,
            advice=self._advice,
        )


def _read_prepared(folder: Path, num_tables: int) -> Prepared | None:
    """Reads ``prepared.json`` and ``counts.npy``; None without them.

    Raises:
        UserError: they are damaged, or of other triples.
    """
    path, summary = folder / PREPARED_FILE, read_summary(folder)
    if summary is None:
        return None
    try:
        rows = tuple(int(count) for count in summary["table_rows"])
        test_folder = str(folder / TEST_FOLDER) if summary["test_samples"] else None
    except (ValueError, KeyError, TypeError) as error:
        raise garbled(path) from error
    counts = _open_array(folder / "counts.npy", PREPARED_FILE)
    if len(rows) != num_tables or counts.shape != (sum(rows),) or counts.dtype != np.int64:
        raise UserError(
            f"{shown(path)} and counts.npy beside it are not those of the triples there; prepare the data again, or "
            "remove both"
        )
    return Prepared(rows, test_folder, counts.astype(np.int64, copy=False))


def _open_triple(folder: Path, prefix: str, found: str) -> _Triple:
    """The files of a prefix, of which the one called ``found`` is there."""
    files = {part: folder / f"{prefix}{part}.npy" for part in _PARTS}
    dense, sparse, labels = (_open_array(path, found) for path in files.values())
    for part, array, kinds, wanted in (
        ("dense", dense, "f", "float32 [N, features]"),
        ("sparse", sparse, "iu", "int32 or int64 [N, tables]"),
        ("labels", labels, "iufb", "int32 [N, 1]"),
    ):
        dimensions = (1, 2) if part == "labels" else (2,)
        wide = part == "labels" and array.ndim == 2 and array.shape[1] != 1
        if array.dtype.kind not in kinds or array.ndim not in dimensions or wide:
            held = shown(f"{files[part]} is {array.dtype} {list(array.shape)}")
            raise UserError(f"{held} where {wanted} is needed; convert it")
        if part != "labels" and not array.shape[1]:
            raise UserError(f"{shown(files[part])} has no columns where {wanted} is needed; write it anew")
        if len(array) != len(dense):
            raise UserError(
                f"{shown(files[part])} has {len(array):,} samples but {shown(files['dense'])} has {len(dense):,}; "
                "write them from the same samples"
            )
    if not len(dense):
        raise UserError(f"{shown(files['dense'])} and the files beside it hold no samples; remove them")
    return _Triple(str(folder / prefix) if prefix else f"{folder}{os.sep}", dense, sparse, labels)


def _open_array(path: Path, found: str) -> NDArray[np.generic]:
    """A memory-mapped file, which ``found`` beside it needs. Only regular files are opened: others may block."""
    name = shown(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{name} is not a regular file but a folder, pipe or device; replace it with an .npy file")
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
        if start != _MAGIC:
            what = "is a .npz archive" if start.startswith(_ZIP_MAGIC) else "is not an .npy file"
            raise UserError(f"{name} {what if start else 'is empty'}; write its one array with numpy.save")
        with np.errstate(all="ignore"):  # sizes in a garbled header overflow
            array: NDArray[np.generic] = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        what = "is a link to nothing" if path.is_symlink() else "is missing"
        raise UserError(
            f"{name} {what} but {shown(found)} is there; {_TOGETHER.get(found, _TRIPLE)} belong together"
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {_reason(error)}; change that, or name another folder") from error
    except UserError:
        raise
    except Exception as error:  # a garbled header leads numpy's parser into many kinds
        raise UserError(
            f"{name} is truncated, garbled, or holds Python objects; write plain numbers with numpy.save again"
        ) from error
    return array


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()
