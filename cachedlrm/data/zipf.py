"""Generated click logs: ids that are reused as real ones are, and labels from a hidden teacher.

Each sample is a pure function of (seed, sample number), drawn from the SplitMix64 sequence (Steele, Lea and Flood,
OOPSLA 2014), so a stream of any length takes no memory and can be read from any place on.

- *Popularity.* A lookup draws a rank from a power law, p(rank) ~ (rank + 1.5)^-s, by inverting its continuous form.
  The exponent s differs by table, around 1.15.
- *Identity.* An affine permutation scatters ranks over the table's rows. After `LIFETIME_SAMPLES` samples a rank's row
  changes, each rank at its own moment: popularity drifts slowly, and new rows keep coming.
- *Labels.* The logit is linear in the dense features, plus an effect of each row, plus products of hidden factors of
  some pairs of tables. About a quarter of the labels is 1.

Parameters are set to published statistics of Criteo's Kaggle set; ``benchmarks/zipf_calibration.py`` prints both.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Self

import numba
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.kernels import GAMMA, mix, table_offsets
from cachedlrm.base.text import shown
from cachedlrm.data.batch import Batch
from cachedlrm.data.spec import DataRequest, SourceSpec
from cachedlrm.data.vocabulary import IDS_AS_THEY_ARE, Vocabulary

# Criteo Kaggle's cardinalities without a frequency threshold: 33,762,577 rows.
CRITEO_KAGGLE_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
_NUM_DENSE = 13
_NUM_TRAIN_SAMPLES, _MOST_TEST_SAMPLES = 2_048_000, 131_072
_LIMITS = {
    "samples": (2**63 - 1, "samples are numbered in 64 bits"),
    "hot": (10_000, "a batch with more lookups in each bag fits into no memory"),
}
_BETWEEN_ITEMS = re.compile(r",(?!\d)")  # commas before digits are between sizes
LIFETIME_SAMPLES = 20_000_000

_EXPONENT, _EXPONENT_SPREAD, _RANK_SHIFT = 1.15, 0.06, 1.5
_ROW_EFFECT, _PAIR_EFFECT, _DENSE_EFFECT, _BIAS = 0.26, 0.35, 0.7, -1.35

_GAMMA = np.uint64(GAMMA)
_UNIT = 2.0**-53


@numba.njit(cache=True, nogil=True, inline="always")
def _uniform(value: np.uint64) -> float:
    """In (0, 1)."""
    return (float(value >> np.uint64(11)) + 0.5) * _UNIT


@numba.njit(cache=True, nogil=True, inline="always")
def _effect(row: int, salt: int) -> float:
    """A fixed number of a row, uniform with mean 0 and variance 1."""
    return (_uniform(mix(np.uint64(row) * _GAMMA + np.uint64(salt))) - 0.5) * math.sqrt(12.0)


@numba.njit(cache=True, nogil=True)
def _draw_ids(
    key: np.uint64,
    start: int,
    clock_start: int,
    table_rows: NDArray[np.int64],
    multipliers: NDArray[np.int64],
    exponents: NDArray[np.float64],
    offsets: NDArray[np.int64],
    ids: NDArray[np.int64],
) -> None:
    """Ids local to their table for the samples from ``start`` on."""
    num_tables = len(table_rows)
    powers = 1.0 - exponents
    tops, bottoms = _RANK_SHIFT**powers, (table_rows + _RANK_SHIFT) ** powers
    for sample in range((len(offsets) - 1) // num_tables):
        state = mix(key + np.uint64(start + sample) * _GAMMA)
        draw = np.uint64(0)
        clock = clock_start + start + sample
        for table in range(num_tables):
            rows, top, bottom = table_rows[table], tops[table], bottoms[table]
            bag = sample * num_tables + table
            for lookup in range(offsets[bag], offsets[bag + 1]):
                draw += np.uint64(1)
                u = _uniform(mix(state + draw * _GAMMA))
                rank = min(int((top - u * (top - bottom)) ** (1.0 / powers[table]) - _RANK_SHIFT), rows - 1)
                phase = int(mix(np.uint64(rank) * _GAMMA + np.uint64(table)) % np.uint64(LIFETIME_SAMPLES))
                version = (clock + phase) // LIFETIME_SAMPLES
                shift = int(mix(np.uint64(version) * _GAMMA + np.uint64(1)) % np.uint64(rows)) if version else 0
                ids[lookup] = (rank * multipliers[table] + shift) % rows


@numba.njit(cache=True, nogil=True)
def _draw_sizes(key: np.uint64, start: int, num_tables: int, most: int, offsets: NDArray[np.int64]) -> None:
    """Bag boundaries with 0 to ``most`` lookups in a bag."""
    for bag in range(len(offsets) - 1):
        counter = np.uint64(start * num_tables + bag)
        offsets[bag + 1] = offsets[bag] + int(mix(key + counter * _GAMMA) % np.uint64(most + 1))


@numba.njit(cache=True, nogil=True)
def _draw_dense(key: np.uint64, start: int, dense: NDArray[np.float32]) -> None:
    """Standard normal features (Box and Muller, Annals of Mathematical Statistics 29(2), 1958)."""
    for sample in range(len(dense)):
        state = mix(key + np.uint64(start + sample) * _GAMMA)
        for column in range(0, dense.shape[1], 2):
            radius = math.sqrt(-2.0 * math.log(_uniform(mix(state + np.uint64(column + 1) * _GAMMA))))
            angle = 2.0 * math.pi * _uniform(mix(state + np.uint64(column + 2) * _GAMMA))
            dense[sample, column] = radius * math.cos(angle)
            if column + 1 < dense.shape[1]:
                dense[sample, column + 1] = radius * math.sin(angle)


@numba.njit(cache=True, nogil=True)
def _draw_labels(
    key: np.uint64,
    start: int,
    num_tables: int,
    dense: NDArray[np.float32],
    rows: NDArray[np.int64],
    offsets: NDArray[np.int64],
    labels: NDArray[np.float32],
) -> None:
    """The teacher. Pairs are neighbouring tables (0, 1), (4, 5), ...; a bag's factor is its first row's."""
    dense_scale = _DENSE_EFFECT / math.sqrt(max(1, dense.shape[1]))
    for sample in range(len(labels)):
        logit = _BIAS
        for column in range(dense.shape[1]):
            logit += dense_scale * (1.0 if column % 3 else -1.0) * dense[sample, column]
        first = sample * num_tables
        for bag in range(first, first + num_tables):
            for lookup in range(offsets[bag], offsets[bag + 1]):
                logit += _ROW_EFFECT * _effect(rows[lookup], 7) / (offsets[bag + 1] - offsets[bag])
        for bag in range(first, first + num_tables - 1, 4):
            if offsets[bag] < offsets[bag + 1] < offsets[bag + 2]:
                left, right = rows[offsets[bag]], rows[offsets[bag + 1]]
                logit += _PAIR_EFFECT * _effect(left, 11) * _effect(right, 11)
        u = _uniform(mix(key + np.uint64(start + sample) * _GAMMA))
        labels[sample] = 1.0 if u < 1.0 / (1.0 + math.exp(-logit)) else 0.0


@dataclass(frozen=True)
class ZipfSpec(SourceSpec):
    """``zipf`` or ``zipf:samples=N,hot=H``; attributes as the arguments of `ZipfSource`.

    ``hot=3-2-1`` (or with commas) is a size for each table, that of all its bags.
    """

    words: str
    seed: int
    num_samples: int
    hot: int | tuple[int, ...]
    held_out: bool = False
    clock_start: int = 0
    is_generated = True
    columns = len(CRITEO_KAGGLE_ROWS), _NUM_DENSE

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """See `SourceSpec`."""
        given: dict[str, list[int]] = {}
        for item in filter(None, _BETWEEN_ITEMS.split(argument)):
            key, _, value = item.partition("=")
            numbers = re.split("[-,]", value) if key == "hot" else [value]
            if key not in _LIMITS or not all(map(_is_whole, numbers)):
                raise UserError(
                    f"{words}: {shown(item)!r} is not samples=N, hot=H or hot=H-H-H with whole numbers from 1 on"
                )
            if key in given:
                raise UserError(f"{words}: {key} is given more than once; drop one of them")
            most, why = _LIMITS[key]
            if any(len(number) > 4000 or int(number) > most for number in numbers):  # int() itself refuses so many
                raise UserError(f"{words}: {key} can be {most} at most, as {why}; lower it")
            given[key] = list(map(int, numbers))
        (samples,), hot = given.get("samples", [_NUM_TRAIN_SAMPLES]), given.get("hot", [1])
        return cls(words, request.seed, samples, hot[0] if len(hot) == 1 else tuple(hot))

    @property
    def vocabulary(self) -> Vocabulary:
        """None but the ids, which stand for nothing that was prepared."""
        return Vocabulary(IDS_AS_THEY_ARE)

    def table_rows(self) -> tuple[int, ...]:
        """Those of Criteo's Kaggle set."""
        return CRITEO_KAGGLE_ROWS

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "ZipfSource":
        """See `SourceSpec`."""
        if isinstance(self.hot, tuple) and len(self.hot) != len(table_rows):
            raise UserError(
                f"{self.words}: hot has {len(self.hot)} sizes and there are {len(table_rows)} tables; give one for "
                "each table, or set the tables by --arch-embedding-size"
            )
        return ZipfSource(
            table_rows,
            num_dense,
            self.seed,
            self.num_samples,
            self.hot,
            held_out=self.held_out,
            clock_start=self.clock_start,
        )

    def held_out_part(self) -> Self:
        """An eighth as many samples, of the time after these."""
        num_samples = min(_MOST_TEST_SAMPLES, max(1, self.num_samples // 8))
        return replace(self, num_samples=num_samples, held_out=True, clock_start=self.num_samples)


class ZipfSource:
    """A `Source` of generated samples.

    Args:
        table_rows: rows of each table.
        num_dense: dense features.
        seed: of everything.
        num_samples: samples of an epoch.
        hot: 1 for one-hot, else bags hold 0 to this many lookups; or for each table the lookups of all its bags.
        held_out: draw other samples of the same world.
        clock_start: moment of the first sample on the clock of drift, in samples.
    """

    has_labels = True
    pieces: tuple[int, ...] | None = None

    def __init__(
        self,
        table_rows: tuple[int, ...],
        num_dense: int,
        seed: int,
        num_samples: int,
        hot: int | tuple[int, ...] = 1,
        *,
        held_out: bool = False,
        clock_start: int = 0,
    ) -> None:
        self.table_rows = table_rows
        self.num_dense = num_dense
        self.num_samples = num_samples
        self._hot = hot
        self.max_lookups_per_bag = (hot,) * len(table_rows) if isinstance(hot, int) else hot
        self._clock_start = clock_start
        words = np.random.SeedSequence([abs(seed), int(seed < 0), int(held_out)]).generate_state(4, np.uint64)
        self._id_key, self._size_key, self._dense_key, self._label_key = words
        self._first_rows = table_offsets(table_rows)
        self._rows = np.array(table_rows, np.int64)
        self._multipliers = np.array([_scattering_multiplier(rows) for rows in table_rows], np.int64)
        tables = np.arange(len(table_rows))
        self._exponents = (_EXPONENT + _EXPONENT_SPREAD * ((7 * tables) % 5 - 2)).astype(np.float64)

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        num_samples, num_tables = stop - start, len(self.table_rows)
        offsets = np.zeros(num_samples * num_tables + 1, np.int64)
        if self._hot == 1:
            offsets[:] = np.arange(len(offsets))
        elif isinstance(self._hot, int):
            _draw_sizes(self._size_key, start, num_tables, self._hot, offsets)
        else:
            offsets[1:] = np.cumsum(np.tile(self._hot, num_samples))
        rows = np.empty(offsets[-1], np.int64)
        _draw_ids(self._id_key, start, self._clock_start, self._rows, self._multipliers, self._exponents, offsets, rows)
        rows += np.repeat(np.tile(self._first_rows[:-1], num_samples), np.diff(offsets))
        dense = np.empty((num_samples, self.num_dense), np.float32)
        _draw_dense(self._dense_key, start, dense)
        labels = np.empty(num_samples, np.float32)
        _draw_labels(self._label_key, start, num_tables, dense, rows, offsets, labels)
        return Batch(dense, rows, offsets, labels)


def _is_whole(number: str) -> bool:
    """Whether a text is a whole number from 1 on."""
    return number.isascii() and number.isdigit() and bool(number.strip("0"))


def _scattering_multiplier(rows: int) -> int:
    """A number coprime to ``rows`` near its golden section, so that neighbouring ranks are far apart."""
    multiplier = max(1, int(rows * 0.6180339887))
    while math.gcd(multiplier, rows) != 1:
        multiplier += 1
    return multiplier
