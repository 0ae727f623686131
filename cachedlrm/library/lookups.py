"""From a user's ids to the lookups of each group of tables, and several of them as one batch."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import NO_DENSE, NO_LABELS
from cachedlrm.data.lookups import Lookups
from cachedlrm.library.ids import FeatureIds, Int64s, bag_ends, jagged_bags, sequences, spaced_bags
from cachedlrm.library.tables import TableSet


class Part(NamedTuple):
    """The lookups of one call of ``forward``.

    Attributes:
        lookups: of each group.
        num_samples: B.
    """

    lookups: tuple[Lookups, ...]
    num_samples: int

    def equals(self, other: "Part") -> bool:
        """Whether the same rows are looked up in the same bags."""
        return self.num_samples == other.num_samples and all(
            (ours.offsets is theirs.offsets or np.array_equal(ours.offsets, theirs.offsets))
            and np.array_equal(ours.rows, theirs.rows)
            for ours, theirs in zip(self.lookups, other.lookups, strict=True)
        )


class JoinedBatch(NamedTuple):
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
        self._groups = []
        for group in tables.groups:
            of = [tables.features[feature].table for feature in group.features]
            self._groups.append(
                np.array(
                    [
                        group.features,
                        [tables.first_rows[table] for table in of],
                        [tables.tables[table].num_embeddings for table in of],
                    ]
                )
            )

    def __call__(self, ids: FeatureIds, where: str) -> Part:
        """The lookups of ``ids``.

        Args:
            ids: of the features of all tables, table after table.
            where: the batch's name in a message.

        Raises:
            UserError: an id outside its table; names sample and feature.
        """
        return Part(tuple([self._lookups(ids, group, where) for group in self._groups]), ids.num_samples)

    def _lookups(self, ids: FeatureIds, columns: Int64s, where: str) -> Lookups:
        features, num_samples = columns[0], ids.num_samples
        if not self._pools:
            values, offsets = ids.jagged()
            rows = np.empty(_num_ids(offsets, features, num_samples), np.int64)
            bad = sequences(values, offsets, num_samples, columns, rows)
            bags = np.arange(len(rows) + 1)
        elif ids.offsets is None:
            assert ids.spacing is not None
            bags = _alike_bags(num_samples, ids.spacing[2][features].tobytes())
            rows = np.empty(bags[-1], np.int64)
            bad = spaced_bags(ids.values, ids.spacing, num_samples, columns, rows)
        else:
            rows = np.empty(_num_ids(ids.offsets, features, num_samples), np.int64)
            bags = np.zeros(num_samples * len(features) + 1, np.int64)
            bad = jagged_bags(ids.values, ids.offsets, num_samples, columns, rows, bags)
        if bad >= 0:
            sample, column = divmod(bad, len(features))
            advice = "ids count from 0; correct the data" if rows[0] < 0 else self._beyond
            raise UserError(
                f"{where}: sample {sample}, {self._labels[features[column]]}: id {rows[0]} is outside "
                f"0..{columns[2, column] - 1}; {advice}"
            )
        return Lookups(rows, bags)


@lru_cache(maxsize=16)
def _alike_bags(num_samples: int, sizes: bytes) -> Int64s:
    """Boundaries of the bags of samples that all have bags of these ``sizes``, int64. Nobody changes them."""
    return bag_ends(np.tile(np.frombuffer(sizes, np.int64), num_samples))


def _num_ids(offsets: Int64s, features: Int64s, num_samples: int) -> int:
    return int((offsets[(features + 1) * num_samples] - offsets[features * num_samples]).sum())
