"""Orders of epochs: every sample once, the same from any place on, read in pieces that a pool of known size holds."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, SourceWrapper
from cachedlrm.data.shuffle import ORDER, POOL_BYTES, ShuffledEpochs

TABLES = 3
ONE_HOT_BYTES = 4 * (1 + 2 + TABLES)  # of a sample in the pool


class Numbered:
    """Samples whose dense feature is their number; bags of it and the numbers after it, none to ``most``."""

    table_rows, num_dense, has_labels = (10**6,) * TABLES, 1, True

    def __init__(self, num_samples: int, most: int = 1, pieces: tuple[int, ...] | None = None) -> None:
        self.num_samples = num_samples
        self.most, self.max_lookups_per_bag = most, (most,) * TABLES
        self.pieces = pieces
        self.first_positive = num_samples // 2
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> Batch:
        self.reads.append((start, stop))
        numbers = np.arange(start, stop)
        bags = np.repeat(numbers, TABLES) * TABLES + np.tile(np.arange(TABLES), stop - start)
        sizes = np.ones(len(bags), np.int64) if self.most == 1 else bags % (self.most + 1)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = np.arange(len(numbers) and offsets[-1]) + np.repeat(bags - offsets[:-1], sizes)
        labels = (numbers >= self.first_positive).astype(np.float32)
        return Batch(numbers[:, None].astype(np.float32), rows, offsets, labels)


SOURCES = {
    "one piece": (7, 1, None, 1 << 20),
    "all in the pool": (1000, 3, None, 1 << 20),
    "many pieces": (5000, 1, None, 20 * 16 * ONE_HOT_BYTES),
    "bags": (3000, 4, None, 20_000),
    "row groups": (2600, 3, (0, 1, 400, 410, 900, 1000, 1300, 1400, 1700, 1701, 2100, 2200, 2599, 2600), 150_000),
    "tiny row groups": (1000, 1, tuple(range(0, 1001, 2)), 16 * 20 * ONE_HOT_BYTES),
}


@pytest.fixture(params=SOURCES)
def made(request) -> tuple[Numbered, ShuffledEpochs]:
    num_samples, most, pieces, pool_bytes = SOURCES[request.param]
    source = Numbered(num_samples, most, pieces)
    return source, ShuffledEpochs(source, 5, pool_bytes)


def numbers(batch: Batch) -> list[int]:
    return batch.dense[:, 0].astype(int).tolist()


def all_numbers(batches: list[Batch]) -> list[int]:
    return [number for batch in batches for number in numbers(batch)]


def epoch_of(epochs: ShuffledEpochs, epoch: int, size: int, num_samples: int) -> list[Batch]:
    return [epochs.read(epoch, start, min(start + size, num_samples)) for start in range(0, num_samples, size)]


def test_every_epoch_has_every_sample_once_and_whole(made):
    source, epochs = made
    orders = []
    for epoch in range(3):
        order = []
        for batch in epoch_of(epochs, epoch, 64, source.num_samples):
            for index, number in enumerate(numbers(batch)):
                alone = source.read(number, number + 1)
                bags = slice(index * TABLES, (index + 1) * TABLES + 1)
                offsets = batch.offsets[bags]
                assert batch.rows[offsets[0] : offsets[-1]].tolist() == alone.rows.tolist()
                assert (offsets - offsets[0]).tolist() == alone.offsets.tolist()
                assert batch.labels[index] == alone.labels[0]
                order.append(number)
            assert batch.offsets[0] == 0
            assert batch.offsets[-1] == len(batch.rows)
        assert sorted(order) == list(range(source.num_samples))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


def test_a_place_has_the_same_sample_whatever_was_read_before(made):
    source, epochs = made
    random, size = np.random.default_rng(3), source.num_samples
    whole = {epoch: all_numbers(epoch_of(epochs, epoch, 100, size)) for epoch in (0, 4)}
    backwards = [epochs.read(4, start, min(start + 31, size)) for start in reversed(range(0, size, 31))]
    assert all_numbers(backwards[::-1]) == whole[4]
    again = ShuffledEpochs(Numbered(size, source.most, source.pieces), 5, epochs._pool_bytes)
    places = [(int(random.integers(2)) * 4, int(random.integers(size))) for _ in range(20)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda place: numbers(again.read(*place, min(place[1] + 40, size))), places))
    assert found == [whole[epoch][start : start + 40] for epoch, start in places]


def test_seeds_have_their_own_orders():
    orders = [numbers(ShuffledEpochs(Numbered(500), seed).read(0, 0, 500)) for seed in (0, 1, 2**63 - 1)]
    assert len(set(map(tuple, orders))) == 3


def test_orders_are_the_same_for_ever():
    """A run that goes on with a later version has the order that it began with, or `ORDER` counts on."""
    assert ORDER == 3
    epochs = ShuffledEpochs(Numbered(5000), 123, 20 * 16 * ONE_HOT_BYTES)
    assert numbers(epochs.read(0, 0, 8)) == [360, 1987, 4160, 3654, 3270, 3348, 3723, 2109]
    assert numbers(epochs.read(2, 4990, 5000)) == [1758, 3375, 4053, 78, 3114, 3443, 3157, 1800, 232, 4081]


@pytest.mark.parametrize("backwards", [False, True], ids=["on", "backwards"])
def test_the_disk_is_read_in_pieces_and_each_of_them_once(backwards):
    source = Numbered(12_800)
    epochs = ShuffledEpochs(source, 5, 64 * 100 * ONE_HOT_BYTES)  # 64 of 128 pieces of 100 samples
    batches = range(0, 12_800, 40)
    pooled = []
    for start in reversed(batches) if backwards else batches:
        epochs.read(0, start, start + 40)
        pooled.append(len(epochs._pool))
    assert set(source.reads) == set(pairwise(range(0, 12_801, 100)))
    assert len(source.reads) == 128 + 63, "what the first blocks have of the last pieces is read twice"
    assert set(pooled) == {64}
    assert len(epochs._blocks) == 2


def test_what_fits_the_pool_is_read_once_for_all_epochs():
    source = Numbered(1000)
    epochs = ShuffledEpochs(source, 5)
    for epoch in range(3):
        epoch_of(epochs, epoch, 64, 1000)
    assert source.reads == [(0, 1000)]


def test_a_sorted_file_is_mixed_as_well_as_by_a_permutation():
    size, batch = 64_000, 250
    epochs = ShuffledEpochs(Numbered(size), 5, 64 * 125 * ONE_HOT_BYTES)  # 64 of 512 pieces
    batches = epoch_of(epochs, 0, batch, size)
    shares = [read.labels.mean() for read in batches]
    permuted = np.random.default_rng(1).permutation(size).reshape(-1, batch) >= size // 2
    assert abs(np.mean(shares) - 0.5) < 1e-6
    assert np.std(shares) < 1.2 * permuted.mean(axis=1).std()
    places = np.array(all_numbers(batches))
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(places, np.arange(size))[0, 1]) < 0.02
    assert len(np.unique(places[:batch] // 1000)) > 60, "one batch has samples from all over the file"


def test_labels_that_end_within_a_stretch_are_mixed_too():
    """Of 64 pieces in the pool one has both labels, or now the one and then the other: a share of 1/64, for a while."""
    size, share = 64_000, 0.2556
    source = Numbered(size)
    source.first_positive = int(size * (1 - share))
    batches = epoch_of(ShuffledEpochs(source, 5, 64 * 125 * ONE_HOT_BYTES), 0, 8000, size)  # a full pool's blocks
    shares = np.array([read.labels.mean() for read in batches])
    assert abs(shares - share).max() < 1.1 / 64


def test_the_pool_keeps_to_its_bytes():
    for most in (1, 5):
        source = Numbered(1 << 20, most)
        epochs = ShuffledEpochs(source, 1, 1 << 22)
        epochs.read(0, 0, 1000)
        held = sum(array.nbytes for piece in epochs._pool.values() for array in (piece.dense, piece.rows, piece.labels))
        held += sum(order.nbytes for order in epochs._orders.values())
        held += sum(piece.offsets.nbytes for piece in epochs._pool.values() if piece.offsets is not None)
        assert 0.5 * 2**22 < held < 1.01 * 2**22
        assert epochs.most_bytes < 1.4 * 2**22


def test_every_column_of_criteos_shape_is_read_in_quarters_of_a_mebibyte():
    source = Numbered(50_000_000)
    source.num_dense, source.table_rows = 13, (1000,) * 26
    first_samples, pooled = ShuffledEpochs(source, 1)._layout
    sizes = np.diff(first_samples)
    assert 4 * sizes.min() > 255 << 10  # labels: the narrowest column of an npy triple, of 4 bytes
    assert pooled >= 64
    assert sizes.max() * pooled * 4 * (13 + 2 + 26) <= POOL_BYTES


def test_pieces_too_large_to_mix_are_refused_unless_all_fit():
    groups = tuple(range(0, 5001, 500))
    small = 4 * 500 * ONE_HOT_BYTES
    with pytest.raises(UserError, match=r"pieces of up to 500 samples .* of which 4 can be in memory; .* up to 250,"):
        ShuffledEpochs(Numbered(5000, pieces=groups), 1, small).read(0, 0, 1)
    assert sorted(numbers(ShuffledEpochs(Numbered(2000, pieces=groups[:5]), 1, small).read(0, 0, 2000))) == list(
        range(2000)
    )


def test_a_wrapped_source_keeps_its_pieces():
    assert SourceWrapper(Numbered(4, pieces=(0, 3, 4))).pieces == (0, 3, 4)
