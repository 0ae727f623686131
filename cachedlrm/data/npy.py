"""The torchrec/MLPerf triple of ``.npy`` files, memory-mapped: ``*_dense.npy``, ``*_sparse.npy``, ``*_labels.npy``.

Several triples (day_0, day_1, ..., day_10) are one stream, in the natural order of their prefixes.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedlrm.data.batch import Batch, make_batch
from cachedlrm.errors import UserError

_PARTS = ("dense", "sparse", "labels")
_SCAN_SAMPLES = 1 << 16


@dataclass(frozen=True)
class _Triple:
    """Three memory-mapped files of N samples: dense [N, num_dense], sparse [N, T], labels [N, 1] or [N]."""

    name: str
    dense: NDArray[np.generic]
    sparse: NDArray[np.generic]
    labels: NDArray[np.generic]

    def __len__(self) -> int:
        return len(self.dense)


class NpySource:
    """A `Source` over the triples of a folder. Use `open_npy`."""

    max_lookups_per_bag = 1

    def __init__(self, triples: list[_Triple], table_rows: tuple[int, ...], max_ind_range: int) -> None:
        self.table_rows = table_rows
        self.num_dense = triples[0].dense.shape[1]
        self.num_samples = sum(map(len, triples))
        self._triples = triples
        self._max_ind_range = max_ind_range

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``, of several files where the range spans them."""
        batches = []
        first = 0  # sample number of the triple's first
        for triple in self._triples:
            low, high = max(start - first, 0), min(stop - first, len(triple))
            if low < high:
                batches.append(self._read(triple, low, high))
            first += len(triple)
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
        ids = triple.sparse[start:stop].astype(np.int64).ravel()
        if self._max_ind_range > 0:
            ids %= self._max_ind_range
        return make_batch(
            triple.dense[start:stop].astype(np.float32),
            ids,
            np.arange(len(ids) + 1),
            triple.labels[start:stop].reshape(-1).astype(np.float32),
            self.table_rows,
            triple.name,
            start,
        )


def open_npy(directory: str, table_rows: tuple[int, ...] | None = None, max_ind_range: int = -1) -> NpySource:
    """Opens the triples of a folder.

    Args:
        directory: the folder.
        table_rows: rows of each table; None finds each column's largest id, in one pass over the ids.
        max_ind_range: ids are folded modulo this if positive.

    Raises:
        UserError: no triple, a file missing, empty, truncated, or of another type or shape; names it.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise UserError(f"--data npy:{directory}: no such folder")
    pattern = re.compile(rf"(.*?)_?({'|'.join(_PARTS)})\.npy")
    names = {match[1] for path in folder.glob("*.npy") if (match := pattern.fullmatch(path.name))}
    if not names:
        raise UserError(f"--data npy:{directory}: no *_dense.npy, *_sparse.npy and *_labels.npy in it")
    triples = [_open_triple(folder, name) for name in sorted(names, key=_natural_order)]
    for triple in triples[1:]:
        for part in ("dense", "sparse"):
            columns, expected = getattr(triple, part).shape[1], getattr(triples[0], part).shape[1]
            if columns != expected:
                raise UserError(f"{triple.name}: {part} has {columns} columns where {triples[0].name} has {expected}")
    num_tables = triples[0].sparse.shape[1]
    if table_rows is None:
        table_rows = _largest_ids(triples, max_ind_range)
    if len(table_rows) != num_tables:
        raise UserError(
            f"--arch-embedding-size has {len(table_rows)} tables but {triples[0].name} has {num_tables} sparse columns"
        )
    if max_ind_range > 0:
        table_rows = tuple(min(rows, max_ind_range) for rows in table_rows)
    return NpySource(triples, table_rows, max_ind_range)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """day_2 before day_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _open_triple(folder: Path, name: str) -> _Triple:
    files = {part: folder / (f"{name}_{part}.npy" if name else f"{part}.npy") for part in _PARTS}
    arrays = {part: _open_array(path) for part, path in files.items()}
    dense, sparse, labels = arrays["dense"], arrays["sparse"], arrays["labels"]
    for part, array, kinds, wanted in (
        ("dense", dense, "f", "float32 [N, features]"),
        ("sparse", sparse, "iu", "int32 [N, tables]"),
        ("labels", labels, "iufb", "int32 [N, 1]"),
    ):
        dimensions = (1, 2) if part == "labels" else (2,)
        wide = part == "labels" and array.ndim == 2 and array.shape[1] != 1
        if array.dtype.kind not in kinds or array.ndim not in dimensions or wide:
            raise UserError(f"{files[part]} is {array.dtype} {list(array.shape)} where {wanted} is needed")
        if len(array) != len(dense):
            raise UserError(f"{files[part]} has {len(array):,} samples but {files['dense']} has {len(dense):,}")
    if not sparse.size or not dense.size:
        raise UserError(f"{files['dense']} holds no samples or no features")
    return _Triple(str(folder / f"{name}_*.npy" if name else folder / "*.npy"), dense, sparse, labels)


def _open_array(path: Path) -> NDArray[np.generic]:
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; a triple is *_dense.npy, *_sparse.npy and *_labels.npy") from error
    except (ValueError, EOFError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is empty, truncated or no .npy file ({reason}); write it again") from error
    return array


def _largest_ids(triples: list[_Triple], max_ind_range: int) -> tuple[int, ...]:
    """One more than each column's largest id, read piece by piece."""
    largest = np.zeros(triples[0].sparse.shape[1], np.int64)
    for triple in triples:
        for start in range(0, len(triple), _SCAN_SAMPLES):
            ids = triple.sparse[start : start + _SCAN_SAMPLES].astype(np.int64)
            if max_ind_range > 0:
                ids %= max_ind_range
            largest = np.maximum(largest, ids.max(axis=0))
    return tuple(int(most) + 1 for most in largest)
