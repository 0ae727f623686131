"""The torchrec/MLPerf triple of ``.npy`` files, memory-mapped: ``*_dense.npy``, ``*_sparse.npy``, ``*_labels.npy``.

Bags of several ids have other files in place of ``*_sparse.npy`` (`cachedlrm.data.id_files`). Several triples (day_0,
day_1, ..., day_10) are one stream, in the natural order of their prefixes.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.batch import MOST_ROWS, Batch, IdAdvice, make_batch
from cachedlrm.data.files import numbered, spans
from cachedlrm.data.id_files import MULTI_HOT, OFFSETS, ONE_HOT, VALUES, IdFile, fold_to_rows, open_id_file
from cachedlrm.data.mapped import map_npy, reason
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
_KEY = re.compile(r":(test|only|fold)=")  # after the folder
_FILES = ("dense.npy", "labels.npy", ONE_HOT, MULTI_HOT, VALUES, OFFSETS)


@dataclass(frozen=True)
class _Triple:
    """Memory-mapped files of N samples.

    Attributes:
        prefix: of their paths, as in ``folder/day_0_``.
        dense: [N, num_dense]; None: there is no such file, and no dense features.
        ids: in T tables.
        labels: [N, 1] or [N]; None: there is no such file.
    """

    prefix: str
    dense: NDArray[np.generic] | None
    ids: IdFile
    labels: NDArray[np.generic] | None

    def __len__(self) -> int:
        return self.ids.num_samples

    @property
    def num_dense(self) -> int:
        """Dense features."""
        return 0 if self.dense is None else int(self.dense.shape[1])

    def file(self, part: str) -> str:
        """Path of a part, for messages; ``*`` for all three."""
        return shown(f"{self.prefix}{part}.npy")

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        others = {"dense": self.dense, "labels": self.labels}
        return (
            *self.ids.files,
            *(Path(f"{self.prefix}{part}.npy") for part, held in others.items() if held is not None),
        )

    def floats(self, part: str, start: int, stop: int) -> NDArray[np.float32]:
        """Dense features [n, num_dense], or labels [n] or [n, 1]: zeros where there is no such file.

        Raises:
            UserError: a finite value that is infinite as float32.
        """
        held = self.dense if part == "dense" else self.labels
        if held is None:
            return np.zeros((stop - start, 0) if part == "dense" else stop - start, np.float32)
        values = np.asarray(held[start:stop])
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
        test_samples: how many they are.
        row_counts: [rows of all tables] int64, lookups of each row in the triples; memory-mapped.
        max_lookups_per_bag: the most ids of a bag in each table; None: not recorded.
    """

    table_rows: tuple[int, ...]
    test_folder: str | None
    test_samples: int
    row_counts: NDArray[np.int64]
    max_lookups_per_bag: tuple[int, ...] | None = None


@dataclass(frozen=True)
class NpySpec(SourceSpec):
    """``npy:DIR``: the triples of a folder, in order.

    ``npy:DIR:test=day_23`` holds out the triple of that prefix; ``npy:DIR:only=train`` reads the triple of that prefix
    and no other. With ``:fold=rows`` ids are taken modulo the rows of their table, as TorchRec's reader of Criteo's
    data takes them.

    Attributes:
        triples: one or more, of equal columns.
        request: the options.
        folder: that holds them.
        prepared: facts about triples that were prepared; None: others.
        held_out: triples of the same columns that are not trained.
        folds: whether ids are taken modulo the rows of their table.
    """

    words: str
    triples: tuple[_Triple, ...]
    request: DataRequest
    folder: Path
    prepared: Prepared | None = None
    held_out: tuple[_Triple, ...] = ()
    folds: bool = False

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """Opens the triples of a folder; one that is missing, empty, truncated or of another type is refused."""
        path, *pairs = _KEY.split(argument)
        settings = dict(zip(pairs[::2], pairs[1::2], strict=True))
        test, only = settings.get("test"), settings.get("only")
        if len(settings) < len(pairs) // 2 or settings.get("fold", "rows") != "rows" or None not in (test, only):
            raise UserError(f"{words}: test=PREFIX or only=PREFIX, and fold=rows, can follow the folder, each once")
        try:
            names = os.listdir(path)
        except (FileNotFoundError, ValueError) as error:  # ValueError: a null character in it
            raise UserError(f"{words}: no such folder; name another one") from error
        except OSError as error:
            raise UserError(f"{words} cannot be read: {reason(error)}; change that, or name another folder") from error
        pattern = re.compile(rf"((?:.*_)?)(?:{'|'.join(map(re.escape, _FILES))})", re.DOTALL)
        found = {match[1]: name for name in sorted(names) if (match := pattern.fullmatch(name))}
        if not found:
            raise UserError(f"{words}: no {_TRIPLE} in it; name the folder that holds them")
        if only is not None:
            found = {prefix: name for prefix, name in found.items() if prefix == f"{only}_"}
            if not found:
                raise UserError(f"{words}: {shown(only)}_dense.npy is not there; name the prefix of other files")
        folder = Path(path)
        triples = tuple(
            _open_triple(folder, prefix, names, found[prefix], request.needs_labels)
            for prefix in sorted(found, key=natural_order)
        )
        first = triples[0]
        for triple in triples[1:]:
            for name, columns, first_name, expected in (
                (triple.file("dense"), triple.num_dense, first.file("dense"), first.num_dense),
                (triple.ids.name, triple.ids.num_tables, first.ids.name, first.ids.num_tables),
            ):
                if columns != expected:
                    raise UserError(
                        f"{name} has {columns} columns but {first_name} has {expected}; files of a folder must agree"
                    )
        prepared, folds = _read_prepared(folder, first.ids.num_tables), "fold" in settings
        if test is None:
            return cls(words, triples, request, folder, prepared, folds=folds)
        trained = tuple(triple for triple in triples if triple.prefix != f"{folder / test}_")
        held_out = tuple(triple for triple in triples if triple.prefix == f"{folder / test}_")
        if not trained or not held_out:
            what = "is all there is to train" if held_out else "is not there"
            raise UserError(f"{words}: {shown(test)}_dense.npy {what}; name the prefix of other held-out files")
        return cls(words, trained, request, folder, prepared, held_out, folds)

    @property
    def columns(self) -> tuple[int, int]:
        """See `SourceSpec`."""
        return self.triples[0].ids.num_tables, self.triples[0].num_dense

    def table_rows(self) -> tuple[int, ...]:
        """One more than each column's largest id, in one pass; of prepared files those they state."""
        max_ind_range = self.request.max_ind_range
        if self.prepared is not None and max_ind_range <= 0:
            return self.prepared.table_rows
        triples = *self.triples, *self.held_out
        of_files = zip(*(triple.ids.largest(max_ind_range) for triple in triples), strict=True)
        largest = [max(found, key=lambda one: one[0]) for found in of_files]  # of equal ones the first
        rows = tuple(max(1, id_ + 1) for id_, _, _ in largest)
        if sum(rows) > MOST_ROWS:
            _, held, where = max(largest, key=lambda one: one[0])
            raise too_many_rows(f"{where} holds id {held}", rows, max_ind_range)
        return rows

    def max_lookups_per_bag(self) -> tuple[int, ...]:
        """The most ids of a bag in each table; of prepared files those they state, else perhaps in one pass."""
        if self.prepared is not None and self.prepared.max_lookups_per_bag is not None:
            return self.prepared.max_lookups_per_bag
        return tuple(map(max, *(triple.ids.max_lookups_per_bag for triple in (*self.triples, *self.triples[:1]))))

    @property
    def files(self) -> tuple[Path, ...]:
        """See `SourceSpec`."""
        return tuple(path for triple in self.triples for path in triple.files)

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "NpySource":
        """See `SourceSpec`."""
        return NpySource(self, table_rows)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """That of prepared files, also of those held out."""
        if self.folds:
            return None
        vocabulary = read_vocabulary(self.folder)
        return None if vocabulary is None else vocabulary.folded(self.request.max_ind_range)

    @cached_property
    def table_names(self) -> tuple[str, ...] | None:
        """Those of prepared files."""
        names = read_table_names(self.folder)
        return names if names is not None and len(names) == self.columns[0] else None

    def held_out_part(self) -> "NpySpec | None":
        """The samples that ``test=`` names, or that `cachedlrm.prepare` held out."""
        if self.held_out:
            return replace(self, words=f"{self.words}, held-out part", triples=self.held_out, held_out=())
        if self.prepared is None or self.prepared.test_folder is None:
            return None
        return self.read(f"{self.words}, held-out part", self.prepared.test_folder, self.request, self)

    @property
    def left_out(self) -> str | None:
        """See `SourceSpec`: what `cachedlrm.prepare` held out."""
        if self.prepared is None or self.prepared.test_folder is None:
            return None
        samples, test = self.prepared.test_samples, self.prepared.test_folder
        return shown(f"{self.folder} also holds out {samples:,} samples: --data npy:{test}")

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

    pieces: tuple[int, ...] | None = None

    def __init__(self, spec: NpySpec, table_rows: tuple[int, ...]) -> None:
        self.table_rows = table_rows
        self.num_dense = spec.columns[1]
        self.max_lookups_per_bag = spec.max_lookups_per_bag()
        self._triples = spec.triples
        self._modulo = np.array(table_rows, np.int64) if spec.folds else None
        self._first_samples = numbered(map(len, spec.triples))
        self.num_samples = self._first_samples[-1]
        self.has_labels = all(triple.labels is not None for triple in spec.triples)
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
        sizes = np.concatenate([[0], *(np.diff(batch.offsets) for batch in batches)])
        return Batch(
            np.concatenate([batch.dense for batch in batches]),
            np.concatenate([batch.rows for batch in batches]),
            np.cumsum(sizes),
            np.concatenate([batch.labels for batch in batches]),
        )

    def _read(self, triple: _Triple, start: int, stop: int) -> Batch:
        ids, offsets = triple.ids.read(start, stop)
        folded = triple.ids.folded(start, ids, offsets, self._max_ind_range)
        if self._modulo is not None:
            fold_to_rows(folded, offsets, self._modulo)
        return make_batch(
            triple.floats("dense", start, stop),
            folded,
            offsets,
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
        test_samples = int(summary["test_samples"])
        test_folder = str(folder / TEST_FOLDER) if test_samples else None
        most = summary.get("max_lookups_per_bag")
        most = None if most is None else tuple(int(count) for count in most)
    except (ValueError, KeyError, TypeError) as error:
        raise garbled(path) from error
    counts = map_npy(folder / "counts.npy", PREPARED_FILE, f"{PREPARED_FILE} and counts.npy")
    if most is not None and len(most) != num_tables:
        raise UserError(f"{shown(path)} is not that of the triples there; prepare the data again, or remove it")
    if len(rows) != num_tables or counts.shape != (sum(rows),) or counts.dtype != np.int64:
        raise UserError(
            f"{shown(path)} and counts.npy beside it are not those of the triples there; prepare the data again, or "
            "remove both"
        )
    return Prepared(rows, test_folder, test_samples, counts.astype(np.int64, copy=False), most)


def _open_triple(folder: Path, prefix: str, names: Sequence[str], found: str, needs_labels: bool) -> _Triple:
    """The files of a prefix, of which the one called ``found`` is there, among ``names``."""
    held: dict[str, NDArray[np.generic] | None] = {}
    for part, kinds, dimensions, wanted in (
        ("dense", "f", (2,), "float32 [N, features]"),
        ("labels", "iufb", (1, 2), "int32 [N, 1]"),
    ):
        path = folder / f"{prefix}{part}.npy"
        if path.name not in names and not (part == "labels" and needs_labels):
            held[part] = None
            continue
        array = held[part] = map_npy(path, found, _TRIPLE)
        wide = part == "labels" and array.ndim == 2 and array.shape[1] != 1
        if array.dtype.kind not in kinds or array.ndim not in dimensions or wide:
            words = shown(f"{path} is {array.dtype} {list(array.shape)}")
            raise UserError(f"{words} where {wanted} is needed; convert it")
    dense, labels = held["dense"], held["labels"]
    paths = [folder / f"{prefix}{part}.npy" for part in held]
    if dense is not None and labels is not None and len(labels) != len(dense):
        raise UserError(
            f"{shown(paths[1])} has {len(labels):,} samples but {shown(paths[0])} has {len(dense):,}; "
            "write them from the same samples"
        )
    counted = [(path, array) for path, array in zip(paths, held.values(), strict=True) if array is not None]
    for path, array in counted[:1]:
        if not len(array):
            raise UserError(f"{shown(path)} and the files beside it hold no samples; remove them")
    ids = open_id_file(folder, prefix, names, found, len(counted[0][1]) if counted else None)
    return _Triple(str(folder / prefix) if prefix else f"{folder}{os.sep}", dense, ids, labels)
