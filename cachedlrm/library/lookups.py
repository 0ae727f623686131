"""From a user's ids to the lookups of each group of tables, and several of them as one batch."""

from collections.abc import Sequence
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import NO_DENSE, NO_LABELS
from cachedlrm.data.lookups import Lookups
from cachedlrm.library.ids import FeatureIds, Int64s, bag_ends, jagged_bags, sequences, spaced_bags
from cachedlrm.library.tables import TableSet


class Part(msgspec.Struct, frozen=True, eq=False):
    """The lookups of one call of ``forward``.

    Attributes:
        lookups: of each group.
        num_samples: B.
        bounds: [F * B + 1] int64, boundaries of bags, feature after feature, where rows are not pooled.
    """

    lookups: tuple[Lookups, ...]
    num_samples: int
    bounds: Int64s | None = None

    def equals(self, other: "Part") -> bool:
        """Whether the same rows are looked up in the same bags."""
        return self.num_samples == other.num_samples and all(
            (ours.offsets is theirs.offsets or np.array_equal(ours.offsets, theirs.offsets))
            and np.array_equal(ours.rows, theirs.rows)
            for ours, theirs in zip(self.lookups, other.lookups, strict=True)
        )


class JoinedBatch(msgspec.Struct, frozen=True, eq=False):
    """Parts that make one step, as the cache prepares them; dense features and labels stay with the user.

    Attributes:
        parts: in order.
        lookups: of each group, all parts together.
    """

    parts: tuple[Part, ...]
    lookups: tuple[Lookups, ...]

    @property
    def dense(self) -> NDArray[np.float32]:
        """None."""
        return NO_DENSE

    @property
    def labels(self) -> NDArray[np.float32]:
        """None."""
        return NO_LABELS


def join(parts: Sequence[Part]) -> JoinedBatch:
    """One batch of several parts, bags after bags."""
    if len(parts) == 1:
        return JoinedBatch(tuple(parts), parts[0].lookups)
    joined = []
    for of_group in zip(*(part.lookups for part in parts), strict=True):
        ends = np.cumsum([0, *(len(lookups.rows) for lookups in of_group)])
        offsets = [lookups.offsets[:-1] + end for lookups, end in zip(of_group, ends, strict=False)]
        rows = np.concatenate([lookups.rows for lookups in of_group])
        joined.append(Lookups(rows, np.concatenate([*offsets, ends[-1:]])))
    return JoinedBatch(tuple(parts), tuple(joined))


class Routes:
    """Finds the lookups of each group in a batch's ids.

    Args:
        tables: of the model.
        labels: of each feature, as messages call it.
        beyond: what to do about an id beyond the end of a table, as messages say it.
    """

    def __init__(self, tables: TableSet, labels: Sequence[str], beyond: str) -> None:
        self._pools = tables.pools
        self._labels = labels
        self._beyond = beyond
        self._groups = []  # of each: its features, and with them what the kernels take
        for group in tables.groups:
            of = [tables.features[feature].table for feature in group.features]
            rows = [tables.first_rows[table] for table in of], [tables.tables[table].num_embeddings for table in of]
            self._groups.append((tuple(group.features), np.array([group.features, *rows])))

    def __call__(self, ids: FeatureIds) -> Part:
        """The lookups of ``ids``.

        Args:
            ids: of the features of all tables, table after table.

        Raises:
            UserError: an id outside its table; names sample and feature.
        """
        if self._pools:
            pooled = [self._pooled(ids, features, columns) for features, columns in self._groups]
            return Part(tuple(pooled), ids.num_samples)
        values, bounds = ids.jagged()
        single = [self._single(values, bounds, ids.num_samples, columns) for _, columns in self._groups]
        return Part(tuple(single), ids.num_samples, bounds)

    def _pooled(self, ids: FeatureIds, features: tuple[int, ...], columns: Int64s) -> Lookups:
        num_samples = ids.num_samples
        if ids.offsets is None:
            assert ids.spacing is not None
            bags = _alike_bags(num_samples, ids.sizes, features)
            rows = np.empty(bags[-1], np.int64)
            bad = spaced_bags(ids.values, ids.spacing, num_samples, columns, rows)
        else:
            rows = np.empty(_num_ids(ids.offsets, columns[0], num_samples), np.int64)
            bags = np.zeros(num_samples * len(features) + 1, np.int64)
            bad = jagged_bags(ids.values, ids.offsets, num_samples, columns, rows, bags)
        if bad >= 0:
            raise self._beyond_table(bad, rows[0], columns)
        return Lookups(rows, bags)

    def _single(self, values: Int64s, bounds: Int64s, num_samples: int, columns: Int64s) -> Lookups:
        """Each row a bag of its own."""
        rows = np.empty(_num_ids(bounds, columns[0], num_samples), np.int64)
        bad = sequences(values, bounds, num_samples, columns, rows)
        if bad >= 0:
            raise self._beyond_table(bad, rows[0], columns)
        return Lookups(rows, np.arange(len(rows) + 1))

    def _beyond_table(self, bad: int, found: int, columns: Int64s) -> UserError:
        """The error of id ``found`` of a sample and a feature, of which ``bad`` is made as kernels do it."""
        sample, column = divmod(bad, columns.shape[1])
        advice = "ids count from 0; correct the data" if found < 0 else self._beyond
        return UserError(
            f"sample {sample}, {self._labels[columns[0, column]]}: id {found} is outside 0..{columns[2, column] - 1}; "
            f"{advice}"
        )


@lru_cache(maxsize=16)
def _alike_bags(num_samples: int, sizes: tuple[int, ...], features: tuple[int, ...]) -> Int64s:
    """Boundaries of the bags of ``features`` where all bags of a feature have one of ``sizes``. Nobody changes them."""
    of_sample = np.array([sizes[feature] for feature in features], np.int64)
    return bag_ends(np.tile(of_sample, num_samples))


def _num_ids(offsets: Int64s, features: Int64s, num_samples: int) -> int:
    return int((offsets[(features + 1) * num_samples] - offsets[features * num_samples]).sum())
