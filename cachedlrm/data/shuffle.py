"""The samples of a source in an order of its own for each epoch: a pure function of seed and epoch.

A permutation of all samples would read each of them from another place on the disk. Here the disk is read in *pieces*
of samples that lie together, and as many pieces as fit a *pool* in memory are mixed at a time:

1. The data are cut into as many stretches as the pool holds pieces. Each stretch's pieces are permuted, and pieces are
   taken from the stretches in turn. So pieces that are in the pool together come from all over the data, and files
   sorted by time or by label mix as well as any others.
2. The samples of each piece are permuted and dealt out, in equal *hands*, to as many *blocks* that follow each other.
   So one block needs a full pool, the next one needs one more piece and one less, forwards and backwards alike; after
   the last block comes the first.
3. The samples of each block are permuted. The blocks, one after the other, are the epoch.

Every sample is in one hand of one piece, and so in one block: it comes once.
"""

import threading
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.kernels import GAMMA, mix
from cachedlrm.data.batch import Batch, Source
from cachedlrm.data.files import numbered, spans

POOL_BYTES = 768 << 20
"""Of the samples that are mixed. It decides the order, and so it is the same on every machine."""

ORDER = 3
"""Number of the way in which samples are dealt out: a run goes on in the order that it began with."""

# Where a source can be read in pieces of any size:
_LARGEST_PIECE = 1 << 16  # samples: 256 KiB of labels, 10 MiB of Criteo's shape
_PIECES = 64  # that fit the pool, at least
_LEAST_PIECES = 8  # where it cannot: fewer do not mix
_READ_SAMPLES = 1 << 12
_KEPT_BLOCKS = 2  # a batch may lie across the boundary of two
_PROBES, _PROBE_SAMPLES = 16, 64  # that tell the lookups of a sample
_STRETCHES, _PIECE, _BLOCK = range(3)  # what a permutation is of
_MASK = (1 << 64) - 1

Int32s = NDArray[np.int32]
Int64s = NDArray[np.int64]
Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class _Samples:
    """n samples of a piece or of a block, in 4 bytes a number.

    Attributes:
        dense: [n, num_dense] float32.
        rows: [lookups] int32, global.
        offsets: [n * T + 1] int32, bag boundaries; None: every bag has one lookup.
        labels: [n] float32.
    """

    dense: Float32s
    rows: Int32s
    offsets: Int32s | None
    labels: Float32s

    def __len__(self) -> int:
        return len(self.labels)

    def bag_offsets(self, num_tables: int) -> Int32s:
        """Bag boundaries [n * T + 1]."""
        return np.arange(len(self) * num_tables + 1, dtype=np.int32) if self.offsets is None else self.offsets

    def batch(self, start: int, stop: int, num_tables: int) -> Batch:
        """Samples ``start`` to ``stop - 1``, copied: who keeps a batch does not keep all samples."""
        first, last = start * num_tables, stop * num_tables
        if self.offsets is None:
            offsets = np.arange(last - first + 1)
        else:
            offsets = self.offsets[first : last + 1].astype(np.int64)
            first, last = offsets[0], offsets[-1]
            offsets -= first
        rows = self.rows[first:last].astype(np.int64)
        return Batch(self.dense[start:stop].copy(), rows, offsets, self.labels[start:stop].copy())


@dataclass(frozen=True)
class _Deal:
    """How the pieces of one epoch are dealt out.

    Attributes:
        epoch: its number.
        pieces: [C] in the order of their first hands.
        first_samples: of each block, and the number of all samples.
    """

    epoch: int
    pieces: Int64s
    first_samples: tuple[int, ...]


class ShuffledEpochs:
    """Samples of a source by their place in an epoch. A place may be read at any time, from any thread.

    Args:
        source: of the samples.
        seed: of the orders.
        pool_bytes: of the samples that are mixed; decides the orders as the seed does.
    """

    def __init__(self, source: Source, seed: int, pool_bytes: int = POOL_BYTES) -> None:
        self._source = source
        self._seed = seed
        self._pool_bytes = pool_bytes
        self._num_tables = len(source.table_rows)
        self._lock = threading.Lock()
        self._deal: _Deal | None = None
        self._pool: dict[int, _Samples] = {}
        self._orders: dict[int, Int32s] = {}  # of the samples of pieces in the pool, in the epoch of the deal
        self._blocks: dict[tuple[int, int], _Samples] = {}  # by epoch and number

    def read(self, epoch: int, start: int, stop: int) -> Batch:
        """The samples at places ``start`` to ``stop - 1`` of an epoch, of which there is one at least.

        Raises:
            UserError: as of the source; or it is read in pieces of which too few fit the pool.
        """
        with self._lock:
            deal = self._dealt(epoch)
            return _joined(
                [
                    self._block(deal, number).batch(part.start, part.stop, self._num_tables)
                    for number, part, _ in spans(deal.first_samples, start, stop)
                ]
            )

    @property
    def most_bytes(self) -> int:
        """Memory that reading takes at most: the pool, the blocks, and a piece or a block in the making, twice."""
        first_samples, num_pooled = self._layout
        largest = max(stop - start for start, stop in pairwise(first_samples))
        pooled = min(num_pooled * largest, self._source.num_samples)
        return int(self._sample_bytes * (pooled + (_KEPT_BLOCKS + 2) * largest))

    @cached_property
    def _sample_bytes(self) -> float:
        """Of a sample in the pool: dense features, label, place in its piece's order, rows, and bag boundaries if any.

        Where bags have one lookup or none, and some have none, boundaries come on top.
        """
        num_dense, num_tables = self._source.num_dense, self._num_tables
        if set(self._source.max_lookups_per_bag) == {1}:
            return 4 * (num_dense + 2 + num_tables)
        return 4 * (num_dense + 2 + self._lookups_of_a_sample() + num_tables)

    @cached_property
    def _layout(self) -> tuple[tuple[int, ...], int]:
        """The first sample of each piece and the number of all samples; and how many pieces the pool holds."""
        source, sample_bytes = self._source, self._sample_bytes
        most = int(max(1, min(_LARGEST_PIECE, self._pool_bytes / _PIECES // sample_bytes)))
        if source.pieces is None:
            count = -(-source.num_samples // most)
            first_samples = tuple(source.num_samples * number // count for number in range(count + 1))
        else:
            first_samples = _merged(source.pieces, most)
        largest, count = max(stop - start for start, stop in pairwise(first_samples)), len(first_samples) - 1
        fitting = int(max(1, self._pool_bytes / sample_bytes // largest))
        if source.num_samples * sample_bytes <= self._pool_bytes:
            fitting = count
        if fitting < min(count, _LEAST_PIECES):
            raise UserError(
                f"--shuffle mixes {_LEAST_PIECES} pieces of the data at least, and they are read in pieces of up to "
                f"{largest:,} samples (a row group of a Parquet file, or all of a compressed one), of which "
                f"{fitting} can be in memory; write row groups of up to "
                f"{int(self._pool_bytes / _LEAST_PIECES // sample_bytes):,}, decompress the file, or use "
                "python -m cachedlrm.prepare"
            )
        return first_samples, min(count, fitting)

    def _lookups_of_a_sample(self) -> float:
        """On average, estimated from samples all over the data."""
        source = self._source
        counted = lookups = 0
        for probe in range(_PROBES):
            start = source.num_samples * probe // _PROBES
            batch = source.read(start, min(start + _PROBE_SAMPLES, source.num_samples))
            counted, lookups = counted + batch.num_samples, lookups + len(batch.rows)
        return lookups / counted

    def _dealt(self, epoch: int) -> _Deal:
        if self._deal is None or self._deal.epoch != epoch:
            first_samples, num_pooled = self._layout
            sizes = np.diff(first_samples)
            pieces = _in_turn(len(sizes), num_pooled, self._key(epoch, _STRETCHES))
            self._deal = _Deal(epoch, pieces, numbered(_block_sizes(sizes[pieces], num_pooled).tolist()))
            self._orders.clear()
        return self._deal

    def _key(self, epoch: int, what: int, number: int = 0) -> np.uint64:
        """Of one permutation."""
        key = 0
        for part in (self._seed, epoch, what, number):
            key = int(mix(np.uint64((key + part + GAMMA) & _MASK)))
        return np.uint64(key)

    def _block(self, deal: _Deal, number: int) -> _Samples:
        block = self._blocks.get((deal.epoch, number))
        if block is None:
            if len(self._blocks) == _KEPT_BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[deal.epoch, number] = self._mix(deal, number)
        return block

    def _mix(self, deal: _Deal, number: int) -> _Samples:
        """A block: hand 0 of the piece that is new, hand 1 of the one before it, and so on."""
        num_pooled, num_tables = self._layout[1], self._num_tables
        pieces = deal.pieces[(number - np.arange(num_pooled)) % len(deal.pieces)].tolist()
        self._fill_pool(pieces, deal.epoch)
        size = deal.first_samples[number + 1] - deal.first_samples[number]
        places = _permutation(size, self._key(deal.epoch, _BLOCK, number))
        dense, labels = np.empty((size, self._source.num_dense), np.float32), np.empty(size, np.float32)
        hands, end = [], 0
        for hand, piece in enumerate(pieces):
            content, samples = self._pool[piece], _hand(self._orders[piece], hand, num_pooled)
            end += len(samples)
            at = places[end - len(samples) : end]
            hands.append((content, samples, at))
            _put(content.dense, samples, at, dense)
            _put(content.labels[:, None], samples, at, labels[:, None])
        if all(content.offsets is None for content, _, _ in hands):
            rows = np.empty((size, num_tables), np.int32)
            for content, samples, at in hands:
                _put(content.rows.reshape(-1, num_tables), samples, at, rows)
            return _Samples(dense, rows.ravel(), None, labels)
        sizes = np.zeros(size * num_tables + 1, np.int32)
        for content, samples, at in hands:
            _put_sizes(content.bag_offsets(num_tables), samples, at, num_tables, sizes)
        offsets = np.cumsum(sizes, dtype=np.int32)
        bags = np.empty(offsets[-1], np.int32)
        for content, samples, at in hands:
            _put_bags(content.rows, content.bag_offsets(num_tables), samples, at, num_tables, offsets, bags)
        return _Samples(dense, bags, offsets, labels)

    def _fill_pool(self, pieces: list[int], epoch: int) -> None:
        """Reads those that are missing, after all others have left."""
        num_pooled = self._layout[1]
        for piece in self._pool.keys() - set(pieces):
            del self._pool[piece]
            self._orders.pop(piece, None)
        for piece in pieces:
            if piece not in self._pool:
                self._pool[piece] = self._read_piece(piece)
            if piece not in self._orders:
                order = _permutation(len(self._pool[piece]), self._key(epoch, _PIECE, piece))
                for hand in range(num_pooled):  # the block is permuted; in memory the way is shorter in order
                    _hand(order, hand, num_pooled).sort()
                self._orders[piece] = order

    def _read_piece(self, number: int) -> _Samples:
        """A piece, of which the processor's caches hold what is read at a time."""
        start, stop = self._layout[0][number : number + 2]
        dense, labels = np.empty((stop - start, self._source.num_dense), np.float32), np.empty(stop - start, np.float32)
        rows, sizes = [], []
        for first in range(start, stop, _READ_SAMPLES):
            batch = self._source.read(first, min(first + _READ_SAMPLES, stop))
            part = slice(first - start, first - start + batch.num_samples)
            dense[part], labels[part] = batch.dense, batch.labels
            rows.append(batch.rows.astype(np.int32))
            sizes.append(np.diff(batch.offsets))
        offsets = None
        if any((part != 1).any() for part in sizes):
            offsets = np.cumsum(np.concatenate([[0], *sizes]), dtype=np.int32)
        return _Samples(dense, np.concatenate(rows), offsets, labels)


def _hand(order: Int32s, hand: int, num_hands: int) -> Int32s:
    """A view of one of the equal parts of a piece's samples in their order."""
    return order[len(order) * hand // num_hands : len(order) * (hand + 1) // num_hands]


def _merged(first_samples: tuple[int, ...], least: int) -> tuple[int, ...]:
    """Neighbouring pieces put together until they hold ``least`` samples; those of the last one may be fewer."""
    kept = [0]
    for place in first_samples[1:-1]:
        if place - kept[-1] >= least:
            kept.append(place)
    return (*kept, first_samples[-1])


def _in_turn(num_pieces: int, num_stretches: int, key: np.uint64) -> Int64s:
    """Pieces from the stretches in turn, [num_pieces]; those of each stretch in random order."""
    bounds = [num_pieces * stretch // num_stretches for stretch in range(num_stretches + 1)]
    order = np.concatenate([np.arange(stop - start) for start, stop in pairwise(bounds)])  # of a piece in its stretch
    pieces = np.empty(num_pieces, np.int64)
    for stretch, (start, stop) in enumerate(pairwise(bounds)):
        own_key = np.uint64(mix(np.uint64((int(key) + stretch * GAMMA) & _MASK)))
        pieces[start:stop] = start + _permutation(stop - start, own_key)
    return pieces[np.argsort(order, kind="stable")]


@numba.njit(cache=True, nogil=True)
def _permutation(size: int, key: np.uint64) -> Int32s:
    """Of 0 to ``size - 1``, below 2^31: the shuffle of Fisher and Yates (Knuth, TAOCP 2, 3.4.2, algorithm P).

    Its random numbers are those of SplitMix64 (`cachedlrm.base.kernels`) after the state ``key``.
    """
    order = np.arange(size).astype(np.int32)
    for last in range(size - 1, 0, -1):
        half = mix(np.uint64(key) + np.uint64(last) * np.uint64(GAMMA)) >> np.uint64(32)
        other = np.int64((half * np.uint64(last + 1)) >> np.uint64(32))
        order[last], order[other] = order[other], order[last]
    return order


@numba.njit(cache=True, nogil=True)
def _block_sizes(piece_sizes: Int64s, num_hands: int) -> Int64s:
    """Samples of each block, [C], from those of the pieces in their order, [C]."""
    num_pieces = len(piece_sizes)
    sizes = np.zeros(num_pieces, np.int64)
    for piece in range(num_pieces):
        size = piece_sizes[piece]
        for hand in range(num_hands):
            sizes[(piece + hand) % num_pieces] += size * (hand + 1) // num_hands - size * hand // num_hands
    return sizes


@numba.njit(cache=True, nogil=True)
def _put(values: NDArray[Any], samples: Int32s, places: Int32s, out: NDArray[Any]) -> None:
    """Copies what ``values`` [n, columns] have of ``samples`` [k] to ``places`` [k] of ``out``."""
    for index in range(len(samples)):
        source, target = samples[index], places[index]
        for column in range(values.shape[1]):
            out[target, column] = values[source, column]


@numba.njit(cache=True, nogil=True)
def _put_sizes(piece_offsets: Int32s, samples: Int32s, places: Int32s, num_tables: int, sizes: Int32s) -> None:
    """Stores the lookups of each bag of ``samples``, one place further on than the bags at ``places``."""
    for index in range(len(samples)):
        source, target = np.int64(samples[index]) * num_tables, np.int64(places[index]) * num_tables
        for table in range(num_tables):
            sizes[target + table + 1] = piece_offsets[source + table + 1] - piece_offsets[source + table]


@numba.njit(cache=True, nogil=True)
def _put_bags(
    piece_rows: Int32s,
    piece_offsets: Int32s,
    samples: Int32s,
    places: Int32s,
    num_tables: int,
    offsets: Int32s,
    rows: Int32s,
) -> None:
    """Copies the rows of ``samples`` to where the bags at ``places`` begin."""
    for index in range(len(samples)):
        source = np.int64(samples[index]) * num_tables
        first, end = piece_offsets[source], piece_offsets[source + num_tables]
        target = offsets[np.int64(places[index]) * num_tables]
        for lookup in range(end - first):
            rows[target + lookup] = piece_rows[first + lookup]


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    sizes = np.concatenate([[0], *(np.diff(part.offsets) for part in parts)])
    return Batch(
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.cumsum(sizes, dtype=np.int64),
        np.concatenate([part.labels for part in parts]),
    )
