"""Records brought into another order on disk, when there are more of them than fit in memory.

A distribution sort in two passes (Knuth, "The Art of Computer Programming" 3, section 5.4.9): the first distributes
records to buckets, each a range of places small enough for memory; the second orders each bucket as it is read. So
every record is written once and read once, in long runs, whatever the two orders are; one by one, each costs a page.
"""

import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write

_LEAST_BUCKET_BYTES, _MOST_BUCKET_BYTES = 1 << 20, 64 << 20
TEMPORARY_FILE = "a temporary file"
"""Its name in messages; on disk it has none."""
PLACE_BYTES = 4
"""Of a record in the file, beside it."""
_BUCKETS = 512  # small ones take less memory, few of them longer runs


class Spool:
    """A temporary file of records, one for each of ``num_records`` places; it goes with its owner.

    Memory: four buckets, six of narrow records, and a few pieces.

    Args:
        folder: where to.
        num_records: places.
        width: float32 columns of a record.
        pieces: places [n] and records [n, width], again and again; each place once.
        bucket_bytes: what is ordered in memory; None: from 1 to 64 MiB, by the number of records.

    Raises:
        UserError: the disk is full, say.
    """

    def __init__(
        self,
        folder: Path,
        num_records: int,
        width: int,
        pieces: Iterable[tuple[NDArray[np.integer], NDArray[np.float32]]],
        bucket_bytes: int | None = None,
    ) -> None:
        self._entry = np.dtype([("place", np.uint32), ("record", np.float32, (width,))])
        if bucket_bytes is None:
            wanted = num_records * self._entry.itemsize // _BUCKETS
            bucket_bytes = min(max(wanted, _LEAST_BUCKET_BYTES), _MOST_BUCKET_BYTES)
        self._per_bucket = max(1, bucket_bytes // self._entry.itemsize)
        self._folder = folder
        self._num_records = num_records
        self._filled = np.zeros(-(-num_records // self._per_bucket), np.int64)  # entries of each bucket
        self._bucket, self._records = -1, np.empty((0, width), np.float32)  # the one in memory, in order
        try:
            # Without a buffer, so that closing it writes nothing more to a disk that is full.
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._distribute_all(pieces)
        except OSError as error:
            raise cannot_write(folder / TEMPORARY_FILE, error, "move the store, and go on with --resume") from error

    def read(self, first: int, last: int) -> NDArray[np.float32]:
        """Records at places ``first`` to ``last - 1``, [last - first, width]; cheapest from the first to the last.

        Raises:
            UserError: the disk cannot be read.
        """
        parts = []
        while first < last:
            bucket, start = divmod(first, self._per_bucket)
            stop = min(self._per_bucket, start + last - first)
            try:
                parts.append(self._ordered(bucket)[start:stop])
            except OSError as error:
                raise UserError(
                    f"cannot read back a temporary file in {self._folder}: {error.strerror or error}; look at the disk"
                ) from error
            first += stop - start
        return np.concatenate([self._records[:0], *parts])

    def _distribute_all(self, pieces: Iterable[tuple[NDArray[np.integer], NDArray[np.float32]]]) -> None:
        gathered: list[NDArray[np.void]] = []
        num_gathered = 0
        for places, records in pieces:
            entries = np.empty(len(places), self._entry)
            entries["place"], entries["record"] = places, records
            gathered.append(entries)
            num_gathered += len(entries)
            if num_gathered >= self._per_bucket:  # long runs: a bucket gets what a bucket's worth of pieces has for it
                self._distribute(np.concatenate(gathered))
                gathered, num_gathered = [], 0
        if num_gathered:  # pieces may be empty
            self._distribute(np.concatenate(gathered))

    def _distribute(self, entries: NDArray[np.void]) -> None:
        """Appends each of ``entries`` to its bucket."""
        buckets = entries["place"] // self._per_bucket
        order = np.argsort(buckets, kind="stable")
        entries = entries[order]
        found, starts = np.unique(buckets[order], return_index=True)
        for bucket, start, stop in zip(found, starts, [*starts[1:], len(entries)], strict=True):
            self._file.seek((int(bucket) * self._per_bucket + int(self._filled[bucket])) * self._entry.itemsize)
            left = entries[start:stop].view(np.uint8).data
            while left:  # the system may take a part
                left = left[self._file.write(left) :]
            self._filled[bucket] += stop - start

    def _ordered(self, bucket: int) -> NDArray[np.float32]:
        """The records of a bucket, in order."""
        if bucket != self._bucket:
            size = min(self._per_bucket, self._num_records - bucket * self._per_bucket)
            assert self._filled[bucket] == size, "a place has no record"
            self._file.seek(bucket * self._per_bucket * self._entry.itemsize)
            entries = np.empty(size, self._entry)
            left = entries.view(np.uint8).data
            while left:
                taken = self._file.readinto(left)
                if not taken:
                    raise OSError("it was cut short")
                left = left[taken:]
            self._records = np.empty((size, self._records.shape[1]), np.float32)
            self._records[entries["place"] - bucket * self._per_bucket] = entries["record"]
            self._bucket = bucket
        return self._records
