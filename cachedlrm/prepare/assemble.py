"""From the working folder to the files that training reads."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cachedlrm.data.vocabulary import PREPARED_FILE
from cachedlrm.prepare.spool import DENSE, LABELS, read_numbers
from cachedlrm.prepare.tables import INT32, FinishedTable

TRAIN, TEST = "train", "test"
_PIECE_SAMPLES = 1 << 16
_COPY_BYTES = 1 << 20
_FLOAT32 = np.dtype(np.float32)


def output_names(has_test: bool, has_labels: bool = True) -> list[str]:
    """Files and folders of an output, in the order in which they are to appear; the others that are written are not.

    Labels come last: without them readers refuse the triple, and find everything else beside it once they are there.
    """
    names = [TEST] if has_test else []
    names += ["counts.npy", "vocabulary.npy", PREPARED_FILE]
    return [*names, *(f"{TRAIN}_{part}.npy" for part in ("dense", "sparse", *(["labels"] if has_labels else [])))]


def write_triple(
    work: Path, prefix: Path, num_dense: int, tables: Sequence[FinishedTable], samples: range
) -> Iterator[int]:
    """Writes samples as ``*_dense.npy``, ``*_sparse.npy`` and ``*_labels.npy``.

    Args:
        work: the working folder.
        prefix: of the files to write, with their folder.
        num_dense: dense features.
        tables: finished.
        samples: their numbers.

    Yields:
        Numbers of samples done.
    """
    count = len(samples)
    with (
        npy_file(Path(f"{prefix}_dense.npy"), "<f4", (count, num_dense)) as dense,
        npy_file(Path(f"{prefix}_sparse.npy"), "<i4", (count, len(tables))) as sparse,
        npy_file(Path(f"{prefix}_labels.npy"), "<i4", (count, 1)) as labels,
    ):
        for low in samples[::_PIECE_SAMPLES]:
            high = min(low + _PIECE_SAMPLES, samples.stop)
            dense.write(read_numbers(work / DENSE, _FLOAT32, low * num_dense, high * num_dense).data)
            labels.write(read_numbers(work / LABELS, INT32, low, high).data)
            rows = np.empty((high - low, len(tables)), np.int32)
            for column, table in enumerate(tables):
                rows[:, column] = read_numbers(table.rows, INT32, low, high)
            sparse.write(rows.data)
            yield high - low


def write_rows(out: Path, tables: Sequence[FinishedTable]) -> None:
    """Writes ``counts.npy`` and ``vocabulary.npy``: of each row, table after table, its lookups and its key."""
    num_rows = sum(table.num_rows for table in tables)
    with (
        npy_file(out / "counts.npy", "<i8", (num_rows,)) as counts,
        npy_file(out / "vocabulary.npy", "<u8", (num_rows,)) as keys,
    ):
        for table in tables:
            for path, target in ((table.counts, counts), (table.keys, keys)):
                with path.open("rb") as file:
                    shutil.copyfileobj(file, target, _COPY_BYTES)


@contextmanager
def npy_file(path: Path, descr: str, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A ``.npy`` file whose numbers are written piece by piece, and which is on the disk when the block ends.

    Args:
        path: the file.
        descr: type of its numbers, as in its header.
        shape: of its array.
    """
    with path.open("wb") as file:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file
        file.flush()
        os.fsync(file.fileno())
