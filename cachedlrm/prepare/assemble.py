"""From the working folder to the files that training reads."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cachedlrm.data.files import DecodedBlock
from cachedlrm.data.id_files import OFFSETS, ONE_HOT, VALUES
from cachedlrm.data.vocabulary import PREPARED_FILE
from cachedlrm.prepare.spool import DENSE, LABELS, read_numbers
from cachedlrm.prepare.tables import INT32, FinishedTable

TRAIN, TEST = "train", "test"
_PIECE_SAMPLES, _PIECE_LISTS = 1 << 16, 1 << 12
_COPY_BYTES = 1 << 20
_FLOAT32 = np.dtype(np.float32)


def output_names(has_test: bool, has_labels: bool = True, has_lists: bool = False) -> list[str]:
    """Files and folders of an output, in the order in which they are to appear; the others that are written are not.

    Labels come last: without them readers refuse the triple, and find everything else beside it once they are there.
    """
    names = [TEST] if has_test else []
    names += ["counts.npy", "vocabulary.npy", PREPARED_FILE]
    ids = (VALUES, OFFSETS) if has_lists else (ONE_HOT,)
    labels = ("labels.npy",) if has_labels else ()
    return [*names, *(f"{TRAIN}_{part}" for part in ("dense.npy", *ids, *labels))]


def write_triple(
    work: Path, prefix: Path, num_dense: int, tables: Sequence[FinishedTable], samples: range
) -> Iterator[int]:
    """Writes samples as ``*_dense.npy``, ``*_sparse.npy`` and ``*_labels.npy``; of lists ``*_sparse_values.npy`` and
    ``*_sparse_offsets.npy`` (`cachedlrm.data.id_files`) in place of the second.

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
        _ids_file(prefix, tables, samples) as write_ids,
        npy_file(Path(f"{prefix}_labels.npy"), "<i4", (count, 1)) as labels,
    ):
        step = _PIECE_LISTS if any(table.sizes for table in tables) else _PIECE_SAMPLES
        for low in samples[::step]:
            high = min(low + step, samples.stop)
            dense.write(read_numbers(work / DENSE, _FLOAT32, low * num_dense, high * num_dense).data)
            labels.write(read_numbers(work / LABELS, INT32, low, high).data)
            write_ids(low, high)
            yield high - low


@contextmanager
def _ids_file(prefix: Path, tables: Sequence[FinishedTable], samples: range) -> Iterator[Callable[[int, int], None]]:
    """What writes the rows of samples ``low`` to ``high - 1`` of all, piece after piece."""
    if not any(table.sizes for table in tables):
        with npy_file(Path(f"{prefix}_{ONE_HOT}"), "<i4", (len(samples), len(tables))) as file:

            def write(low: int, high: int) -> None:
                rows = np.empty((high - low, len(tables)), np.int32)
                for column, table in enumerate(tables):
                    rows[:, column] = read_numbers(table.rows, INT32, low, high)
                file.write(rows.data)

            yield write
        return
    places = [table.num_lookups(range(samples.start)) for table in tables]  # in each table's rows
    total = sum(table.num_lookups(samples) for table in tables)
    num_bags = len(samples) * len(tables)
    with (
        npy_file(Path(f"{prefix}_{VALUES}"), "<i4", (total,)) as values,
        npy_file(Path(f"{prefix}_{OFFSETS}"), "<i8", (num_bags + 1,)) as offsets,
    ):
        offsets.write(np.zeros(1, "<i8").data)
        end = 0

        def write_lists(low: int, high: int) -> None:
            nonlocal end
            columns, starts = [], []
            for number, table in enumerate(tables):
                sizes = np.ones(high - low, np.int64)
                if table.sizes is not None:
                    sizes = read_numbers(table.sizes, INT32, low, high).astype(np.int64)
                starts.append(np.concatenate([[0], np.cumsum(sizes)]))
                last = places[number] + int(starts[number][-1])
                columns.append(read_numbers(table.rows, INT32, places[number], last))
                places[number] = last
            block = DecodedBlock(np.empty((high - low, 0), np.float32), columns, np.empty(0), starts)
            bags = np.concatenate([[0], np.cumsum(block.bag_sizes(slice(0, high - low)))])
            ids = np.empty(bags[-1], np.int64)
            block.put_bags(slice(0, high - low), bags, ids)
            values.write(ids.astype("<i4").data)
            offsets.write((bags[1:] + end).astype("<i8").data)
            end += int(bags[-1])

        yield write_lists


def most_listed(table: FinishedTable, samples: range) -> int:
    """The most lookups of some samples in a table."""
    if table.sizes is None:
        return 1
    pieces = (
        read_numbers(table.sizes, INT32, low, min(low + _PIECE_SAMPLES, samples.stop))
        for low in samples[::_PIECE_SAMPLES]
    )
    return max(int(piece.max()) for piece in pieces)


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
