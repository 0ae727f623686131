"""The generated data of facebookresearch/dlrm: the same numbers from the same seed.

The reference draws batch after batch from one MT19937 stream, which it seeds anew at the first batch of every epoch:

1. dense features, sample after sample;
2. for each table, for each sample: how many lookups, unless their number is fixed; then as many draws, sorted and
   without repetition. Draws are uniform over the table, or normal (Marsaglia's polar method, whose second value waits
   for the next draw, in a later batch too), or ids at a stack distance of a trace file's distribution;
3. one target a sample.

So a batch depends on all before it. The stream's state is kept at some batches, and reading goes on from the nearest.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, IdAdvice, make_batch
from cachedlrm.data.mersenne import Generator, draw, seeded
from cachedlrm.data.spec import DataRequest, ReferenceStream, SourceSpec
from cachedlrm.data.traces import Traces, draw_trace, read_traces

_TABLE_ROWS, _NUM_DENSE = (4, 3, 2), 4
_UNIFORM, _GAUSSIAN, _SYNTHETIC = range(3)
_MOST_STATES = 1024  # of 5 kB each
_BAGS_PER_STATE = 16384  # of 0.1 us each
_HUGE_ID = 2.0**62  # beyond every table and within int64


class _Rule(NamedTuple):
    """The options as the kernel needs them."""

    kind: int
    num_lookups: int
    fixed: bool
    mean: float
    deviation: float
    low: float
    high: float
    padding: bool
    round_targets: bool


class _Drawn(NamedTuple):
    """A batch as drawn: as `Batch`, but ids are local to their tables."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.float32]


def _join(parts: Sequence[_Drawn]) -> _Drawn:
    """Samples of several batches, one after the other."""
    sizes = np.concatenate([np.diff(part.offsets) for part in parts])
    return _Drawn(
        np.concatenate([part.dense for part in parts]),
        np.concatenate([part.ids for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([part.labels for part in parts]),
    )


@numba.njit(cache=True, nogil=True)
def _sort_unique(values: NDArray[Any]) -> int:
    """Sorts ``values`` and moves the distinct ones to its front; how many there are."""
    if len(values) > 32:
        values.sort()
    else:
        for index in range(1, len(values)):
            value, place = values[index], index
            while place > 0 and values[place - 1] > value:
                values[place] = values[place - 1]
                place -= 1
            values[place] = value
    count = min(1, len(values))
    for index in range(1, len(values)):
        if values[index] != values[count - 1]:
            values[count] = values[index]
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def _normal(generator: Generator, spare: NDArray[np.float64]) -> float:
    """A standard normal value; ``spare`` is (whether a second value waits, that value)."""
    if spare[0] != 0.0:
        spare[0] = 0.0
        waiting: float = spare[1]
        return waiting
    while True:
        x = 2.0 * draw(generator) - 1.0
        y = 2.0 * draw(generator) - 1.0
        square = x * x + y * y
        if 0.0 < square < 1.0:
            break
    factor = math.sqrt(-2.0 * math.log(square) / square)
    spare[0], spare[1] = 1.0, factor * x
    return factor * y


@numba.njit(cache=True, nogil=True)
def _draw_ids(
    generator: Generator,
    spare: NDArray[np.float64],
    table_rows: NDArray[np.int64],
    rule: _Rule,
    traces: Traces,
    offsets: NDArray[np.int64],
    ids: NDArray[np.int64],
) -> None:
    """Draws ids table after table, and into ``offsets[bag + 1]`` how many a bag has. Bags are sample-major."""
    num_tables, place = len(table_rows), 0
    normals, accesses = np.empty(rule.num_lookups, np.float64), np.empty(rule.num_lookups, np.uint64)
    for table in range(num_tables):
        num_rows = table_rows[table]
        for bag in range(table, len(offsets) - 1, num_tables):
            count = rule.num_lookups
            if not rule.fixed:
                count = int(np.rint(max(1.0, draw(generator) * min(num_rows, rule.num_lookups))))
            if rule.kind == _UNIFORM:
                for index in range(place, place + count):
                    ids[index] = np.int64(np.rint(draw(generator) * (num_rows - 1)))
                count = _sort_unique(ids[place : place + count])
            elif rule.kind == _GAUSSIAN:
                for index in range(count):
                    value = rule.mean + rule.deviation * _normal(generator, spare)
                    normals[index] = min(max(value, rule.low), rule.high)
                # Distinct before they are truncated, so an id may repeat.
                count = _sort_unique(normals[:count])
                for index in range(count):
                    ids[place + index] = np.int64(normals[index])
            else:
                draw_trace(generator, traces, table, rule.padding, accesses[:count])
                count = _sort_unique(accesses[:count])
                for index in range(count):
                    ids[place + index] = np.int64(accesses[index]) % num_rows
            offsets[bag + 1] = count
            place += count


@numba.njit(cache=True, nogil=True)
def _draw_batch(
    generator: Generator,
    spare: NDArray[np.float64],
    table_rows: NDArray[np.int64],
    rule: _Rule,
    traces: Traces,
    dense: NDArray[np.float32],
    offsets: NDArray[np.int64],
    drawn: NDArray[np.int64],
    ids: NDArray[np.int64],
    labels: NDArray[np.float32],
) -> None:
    """One batch; ``drawn`` is room for ids in the order in which they are drawn, table after table."""
    for sample in range(len(dense)):
        for column in range(dense.shape[1]):
            dense[sample, column] = np.float32(draw(generator))
    _draw_ids(generator, spare, table_rows, rule, traces, offsets, drawn)
    for sample in range(len(labels)):
        label = np.float32(draw(generator))
        labels[sample] = np.rint(label) if rule.round_targets else label
    offsets[0] = 0
    for bag in range(len(offsets) - 1):
        offsets[bag + 1] += offsets[bag]
    num_tables, place = len(table_rows), 0
    for table in range(num_tables):
        for bag in range(table, len(offsets) - 1, num_tables):
            for index in range(offsets[bag], offsets[bag + 1]):
                ids[index] = drawn[place]
                place += 1


def _make_rule(stream: ReferenceStream) -> _Rule:
    """Checks options that depend on each other."""
    if stream.generation not in ("random", "synthetic"):
        raise UserError(f"--data-generation {stream.generation}: there are random and synthetic")
    if stream.rand_data_dist not in ("uniform", "gaussian"):
        raise UserError(f"--rand-data-dist {stream.rand_data_dist}: there are uniform and gaussian")
    if stream.num_indices_per_lookup < 1:
        raise UserError(f"--num-indices-per-lookup is {stream.num_indices_per_lookup}; it must be 1 or more")
    low, high, deviation = stream.rand_data_min, stream.rand_data_max, stream.rand_data_sigma
    mean = (high + low) / 2.0 if stream.rand_data_mu == -1 else stream.rand_data_mu
    kind = _UNIFORM if stream.rand_data_dist == "uniform" else _GAUSSIAN
    if stream.generation == "synthetic":
        kind = _SYNTHETIC
    elif kind == _GAUSSIAN and (
        not math.isfinite(mean + deviation) or deviation < 0 or any(map(math.isnan, (low, high)))
    ):
        raise UserError(
            f"--rand-data-dist gaussian: --rand-data-min {low:g}, --rand-data-max {high:g}, --rand-data-mu "
            f"{stream.rand_data_mu:g} and --rand-data-sigma {deviation:g} must be finite and sigma not negative"
        )
    return _Rule(
        kind=kind,
        num_lookups=stream.num_indices_per_lookup,
        fixed=stream.num_indices_per_lookup_fixed,
        mean=mean,
        deviation=deviation,
        low=max(low, -_HUGE_ID),
        high=min(high, _HUGE_ID),
        padding=stream.data_trace_enable_padding,
        round_targets=stream.round_targets,
    )


@dataclass(frozen=True)
class ReferenceSpec(SourceSpec):
    """``reference``: samples drawn by the reference's options."""

    words: str
    stream: ReferenceStream
    is_generated = True
    columns = len(_TABLE_ROWS), _NUM_DENSE

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """See `SourceSpec`."""
        if request.reference is None:
            raise UserError(f"{words}: facebookresearch/dlrm's generators need --data reference; name another source")
        return cls(words, request.reference)

    def table_rows(self) -> tuple[int, ...]:
        """The reference's defaults."""
        return _TABLE_ROWS

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "ReferenceSource":
        """See `SourceSpec`."""
        return ReferenceSource(table_rows, num_dense, self.stream)

    def held_out_part(self) -> Self:
        """The reference tests on the samples that it trains on."""
        return self


class ReferenceSource:
    """A `Source` of the reference's samples.

    Reading on is fast. Reading elsewhere draws all batches since a known state again, of which there are up to 1024.

    Args:
        table_rows: rows of each table.
        num_dense: dense features.
        stream: the reference's options.

    Raises:
        UserError: options or a trace file that give no samples.
    """

    has_labels = True
    pieces: tuple[int, ...] | None = None

    def __init__(self, table_rows: tuple[int, ...], num_dense: int, stream: ReferenceStream) -> None:
        self.table_rows = table_rows
        self.num_dense = num_dense
        self.num_samples = stream.num_batches * stream.mini_batch_size or stream.data_size
        self._batch_size = stream.mini_batch_size
        self._rows = np.array(table_rows, np.int64)
        self._rule = _make_rule(stream)
        most, synthetic = stream.num_indices_per_lookup, self._rule.kind == _SYNTHETIC
        self._traces = read_traces(stream.data_trace_file, len(table_rows) if synthetic else 0, most)
        draws = np.full(len(table_rows), most) if self._rule.fixed else np.minimum(self._rows, most)
        self._draws_per_sample = int(draws.sum())
        # Gaussian draws are distinct numbers, but not distinct ids.
        distinct = {_UNIFORM: self._rows, _GAUSSIAN: draws, _SYNTHETIC: self._traces.places[:, 1]}[self._rule.kind]
        self.max_lookups_per_bag = tuple(np.minimum(draws, distinct).tolist())
        self._where = f"--data reference, seed {stream.seed}"
        self._advice = IdAdvice(
            negative="let --rand-data-min and --rand-data-max be 0 or more",
            beyond="raise that entry of --arch-embedding-size, or lower --rand-data-max to "
            f"{min(table_rows) - 1} (that of the smallest table)",
        )
        self._lock = threading.Lock()
        self._spare = np.zeros(2)
        try:
            self._generator = seeded(stream.seed)
        except ValueError:
            raise UserError(f"--numpy-rand-seed is {stream.seed}; the reference's is 0 to {2**32 - 1}") from None
        # At the start of a batch: the generator and the normal value that waits.
        self._states = {0: (self._generator.copy(), self._spare.copy())}
        self._period = self._stride = max(1, _BAGS_PER_STATE // (self._batch_size * len(self.table_rows)))
        self._number = -1  # of the batch in self._drawn
        self._room = np.empty((2, 0), np.int64)  # of a batch's ids, drawn and in order

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``.

        Raises:
            UserError: a gaussian id outside its table.
        """
        with self._lock:
            numbers = range(start // self._batch_size, max(start, stop - 1) // self._batch_size + 1)
            parts = [self._part(number, start, stop) for number in numbers]
        drawn = parts[0] if len(parts) == 1 else _join(parts)
        return make_batch(*drawn, self.table_rows, where=self._where, first_sample=start, advice=self._advice)

    def _part(self, number: int, start: int, stop: int) -> _Drawn:
        """Those of batch ``number`` among samples ``start`` to ``stop - 1``."""
        drawn = self._batch(number)
        first = max(start - number * self._batch_size, 0)
        last = min(stop - number * self._batch_size, len(drawn.labels))
        num_tables = len(self.table_rows)
        offsets = drawn.offsets[first * num_tables : last * num_tables + 1]
        return _Drawn(
            drawn.dense[first:last].copy(),
            drawn.ids[offsets[0] : offsets[-1]],  # `make_batch` copies them
            offsets - offsets[0],
            drawn.labels[first:last].copy(),
        )

    def _batch(self, number: int) -> _Drawn:
        """Batch ``number``, after drawing those between it and the nearest known state before it."""
        if number not in (self._number, self._number + 1):
            nearest = max(known for known in self._states if known <= number)
            if number < self._number or nearest > self._number:
                self._number = nearest - 1
                self._generator[:], self._spare[:] = self._states[nearest]
        while self._number < number:
            self._drawn = self._draw(self._number + 1)
            self._number += 1
            self._remember()
        return self._drawn

    def _remember(self) -> None:
        """Keeps the state before the next batch, unless batches are small; of many, keeps some."""
        if (self._number + 1) % self._period != 0:
            return
        if len(self._states) >= _MOST_STATES:
            while len(self._states) > _MOST_STATES // 2:
                self._stride *= 2
                self._states = {batch: state for batch, state in self._states.items() if batch % self._stride == 0}
        self._states[self._number + 1] = (self._generator.copy(), self._spare.copy())

    def _draw(self, number: int) -> _Drawn:
        """Draws batch ``number`` from the generator, which is at its start."""
        num_samples = min(self._batch_size, self.num_samples - number * self._batch_size)
        dense = np.empty((num_samples, self.num_dense), np.float32)
        labels = np.empty(num_samples, np.float32)
        offsets = np.empty(num_samples * len(self.table_rows) + 1, np.int64)
        if self._room.shape[1] < num_samples * self._draws_per_sample:
            self._room = np.empty((2, num_samples * self._draws_per_sample), np.int64)
        drawn, ids = self._room
        _draw_batch(
            self._generator, self._spare, self._rows, self._rule, self._traces, dense, offsets, drawn, ids, labels
        )
        return _Drawn(dense, ids[: offsets[-1]].copy(), offsets, labels)
