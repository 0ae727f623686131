"""The forms in which a model's own batches hold their ids, and the one form that the cache takes.

`FeatureIds` may be a user's own memory; the lookups that the kernels at the end make of them never are.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError

Int64s = NDArray[np.int64]

Ids = Tensor | NDArray[Any] | Sequence[Any]
"""Ids of B samples in T tables; see `bag_ids`."""

_ARRAYS = (Tensor, np.ndarray)
_PAIRS = (tuple, list)
_INT64, _STRIDED = torch.int64, torch.strided


class FeatureIds(msgspec.Struct, frozen=True, eq=False):
    """Ids of B samples in F features on the host, local to their tables.

    Bags of a feature lie at equal distances in ``values`` and have one size (``spacing``, ``sizes``), or any ids
    (``offsets``).

    A Struct, as those of `cachedlrm.library.lookups`, which each step makes anew: a tuple takes four times as long.

    Attributes:
        values: [num_ids] int64.
        num_samples: B.
        spacing: [3, F] int64: of each feature where its first bag begins, from one bag to the next, and ids of a bag.
        sizes: of each feature, ids of a bag, again.
        offsets: [F * B + 1] int64: boundaries of bags, feature after feature and in one sample after sample.
    """

    values: Int64s
    num_samples: int
    spacing: Int64s | None = None
    sizes: tuple[int, ...] = ()
    offsets: Int64s | None = None

    def jagged(self) -> tuple[Int64s, Int64s]:
        """Values and offsets feature after feature."""
        if self.spacing is None:
            assert self.offsets is not None
            return self.values, self.offsets
        first, distance, sizes = self.spacing
        bounds = bag_ends(sizes.repeat(self.num_samples))
        if np.array_equal(distance, sizes):  # they are there feature after feature
            return self.values, bounds
        values = [
            np.lib.stride_tricks.as_strided(
                self.values[start:], (self.num_samples, size), (8 * step, 8), writeable=False
            ).reshape(-1)
            for start, step, size in zip(first, distance, sizes, strict=True)
        ]
        return np.concatenate(values), bounds


def bag_ends(sizes: Int64s) -> Int64s:
    """Boundaries [n + 1] of bags of ``sizes`` [n], one after the other."""
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def bag_ids(ids: Ids, offsets: Ids | None, num_tables: int) -> FeatureIds:
    """Ids from one of these:

    - ``ids`` [B, T], one id a bag, or [B, T, L], L ids a bag; no offsets;
    - T tensors ``ids`` [L_t] and T tensors ``offsets`` [B]: each as ``nn.EmbeddingBag`` takes them;
    - ``ids`` [L] and ``offsets`` [T * B + 1], table after table: ``values()`` and ``offsets()`` of a TorchRec
      ``KeyedJaggedTensor``.

    Args:
        ids: int32 or int64, local to their tables.
        offsets: int32 or int64.
        num_tables: T.

    Raises:
        UserError: another form.
    """
    if offsets is None:
        if not isinstance(ids, _ARRAYS):
            raise UserError("one tensor of ids for each table needs offsets beside it, or stack them to [B, T]")
        num_axes = 3 if ids.ndim == 3 else 2
        array = _array(ids, num_axes, "ids without offsets")
        if array.shape[1] != num_tables:
            raise UserError(f"ids are {list(array.shape)}; the second axis is for the {num_tables} tables")
        size = array.shape[2] if num_axes == 3 else 1
        return FeatureIds(array.reshape(-1), array.shape[0], *_sample_spacing(size, num_tables))
    if isinstance(ids, _ARRAYS) != isinstance(offsets, _ARRAYS):
        raise UserError("ids and offsets are both a tensor, or both one tensor for each table")
    if not isinstance(ids, _ARRAYS):
        return _of_tables(list(ids), list(offsets), num_tables)
    local, by_table = _array(ids, 1, "ids"), _array(offsets, 1, "offsets")
    if not len(by_table) or (len(by_table) - 1) % num_tables:
        raise UserError(f"{len(by_table)} offsets; for B samples in {num_tables} tables there are {num_tables} * B + 1")
    size = _bag_size(by_table, len(local), "offsets")
    return _feature_after_feature(local, by_table, size, num_tables)


def _of_tables(ids: list[Any], offsets: list[Any], num_tables: int) -> FeatureIds:
    """From ids and offsets of each table, as ``nn.EmbeddingBag`` takes them."""
    if len(ids) != num_tables or len(offsets) != num_tables:
        raise UserError(f"{len(ids)} tensors of ids and {len(offsets)} of offsets for {num_tables} tables")
    all_values: list[Tensor] = []
    parts: list[_Bags] = []
    for table, (table_ids, table_offsets) in enumerate(zip(ids, offsets, strict=True)):
        values = _tensor(table_ids, 1, "ids of table ", table)
        starts = _array(table_offsets, 1, "offsets of table ", table)
        if parts and len(starts) != parts[0].num_samples:
            raise UserError(
                f"table {table} has {len(starts)} bags and table 0 has {parts[0].num_samples}; a sample has "
                "one in each table, an empty one too"
            )
        bounds = np.append(starts, values.numel())
        size = _bag_size(bounds, values.numel(), "offsets of table ", table)
        all_values.append(values)
        parts.append(_Bags(values.numel(), len(starts), size, bounds))
    return _joined(all_values, parts)


def named_ids(features: Any, names: Sequence[str]) -> FeatureIds:
    """Ids of the features ``names`` from one of these, in which others may be, too:

    - a ``KeyedJaggedTensor`` of TorchRec, or what has its ``keys()``, ``values()`` and ``offsets()``;
    - a dictionary from names to ``(values [L], offsets [B + 1])``, to a ``JaggedTensor``, or to ids of one size a bag:
      [B] or [B, L].

    Args:
        features: int32 or int64, local to their tables.
        names: in order.

    Raises:
        UserError: another form, or a feature is missing.
    """
    if type(features) is dict or isinstance(features, Mapping):  # asking an abstract class takes longer
        values: list[Tensor] = []
        parts: list[_Bags] = []
        before: _Bags | None = None
        for name in names:
            of_feature, part = _of_feature(_entry(features, name), name, before)
            if before is not None and part.num_samples != before.num_samples:
                raise UserError(
                    f"feature {name} has {part.num_samples} bags and {names[0]} has {before.num_samples}; a sample has "
                    "one in each feature, an empty one too"
                )
            values.append(of_feature)
            parts.append(part)
            before = part
        return _joined(values, parts)
    if not all(callable(getattr(features, name, None)) for name in ("keys", "values", "offsets")):
        raise UserError(
            f"features are {type(features).__name__}; give a KeyedJaggedTensor, or a dictionary from feature "
            "names to (values, offsets)"
        )
    return _of_keyed(features, names)


def _of_keyed(features: Any, names: Sequence[str]) -> FeatureIds:
    """From a KeyedJaggedTensor."""
    for method, what in (
        ("weights_or_none", "weights"),
        ("inverse_indices_or_none", "inverse indices"),
    ):
        if _has(features, method):
            raise UserError(f"the KeyedJaggedTensor has {what}, which are not supported; give one without")
    if (varies := getattr(features, "variable_stride_per_key", None)) is not None and varies():
        raise UserError(
            "the keys of the KeyedJaggedTensor have batches of different sizes, which is not supported; give "
            "each key one bag for each sample"
        )
    keys = list(features.keys())
    values = _array(features.values(), 1, "values")
    offsets = _array(features.offsets(), 1, "offsets")
    if not keys or not len(offsets) or (len(offsets) - 1) % len(keys):
        raise UserError(f"{len(offsets)} offsets for {len(keys)} keys; each key has one bag for each sample")
    size = _bag_size(offsets, len(values), "offsets")
    num_samples = (len(offsets) - 1) // len(keys)
    if keys == list(names):
        return _feature_after_feature(values, offsets, size, len(keys))
    place = {key: number for number, key in enumerate(keys)}
    all_values, parts = [], []
    for name in names:
        first = _entry(place, name) * num_samples
        bounds = offsets[first : first + num_samples + 1]
        of_feature = values[bounds[0] : bounds[-1]]
        all_values.append(torch.from_numpy(of_feature))
        parts.append(_Bags(len(of_feature), num_samples, size, bounds - bounds[0]))
    return _joined(all_values, parts)


@lru_cache(maxsize=16)
def _sample_spacing(size: int, num_features: int) -> tuple[Int64s, tuple[int, ...]]:
    """The spacing and sizes of bags of one size that lie sample after sample. Nobody changes them."""
    first = np.arange(num_features) * size
    spacing = np.stack([first, np.full_like(first, num_features * size), np.full_like(first, size)])
    return spacing, (size,) * num_features


@lru_cache(maxsize=16)
def _feature_spacing(sizes: tuple[int, ...], num_samples: int) -> Int64s:
    """The spacing of bags of one size in each feature that lie feature after feature. Nobody changes it."""
    of_bags = np.array(sizes, np.int64)
    return np.stack([bag_ends(of_bags * num_samples)[:-1], of_bags, of_bags])


def _feature_after_feature(values: Int64s, offsets: Int64s, size: int, num_features: int) -> FeatureIds:
    """Of bags that are all of one ``size``, or else of any."""
    num_samples = (len(offsets) - 1) // num_features
    if size < 0:
        return FeatureIds(values, num_samples, offsets=offsets)
    sizes = (size,) * num_features
    return FeatureIds(values, num_samples, _feature_spacing(sizes, num_samples), sizes)


def _entry(features: Mapping[str, Any], name: str) -> Any:
    if name not in features:
        raise UserError(f"feature {name} is missing; there are {', '.join(map(str, list(features)[:20]))}")
    return features[name]


class _Bags(msgspec.Struct, frozen=True, eq=False):
    """Where the ids of a feature lie among its own, sample after sample.

    Attributes:
        num_ids: L.
        num_samples: B.
        size: ids of each bag; `_RAGGED`: as ``offsets`` say.
        offsets: [B + 1]; None: bags of one size.
        given_offsets: what the user gave for them.
    """

    num_ids: int
    num_samples: int
    size: int
    offsets: Int64s | None = None
    given_offsets: object = None


def _of_feature(entry: Any, name: str, before: _Bags | None) -> tuple[Tensor, _Bags]:
    """Ids [L] of feature ``name``, beside those of the feature ``before``, whose offsets it may share.

    They stay a tensor, as making arrays of all takes longer than joining them.
    """
    if not isinstance(entry, _PAIRS):
        if isinstance(entry, _ARRAYS):
            square = _tensor(entry, 2 if entry.ndim == 2 else 1, "feature ", name)
            num_ids, num_samples = square.numel(), square.shape[0]
            return square.reshape(-1), _Bags(num_ids, num_samples, square.shape[1] if square.ndim == 2 else 1)
        entry = _of_jagged(entry, name)
    if len(entry) != 2:
        raise UserError(f"feature {name} has {len(entry)} parts; give (values, offsets), or ids [B] or [B, L]")
    values, given_offsets = entry
    values = _tensor(values, 1, "feature ", name, ": values")
    num_ids = values.numel()
    if before is not None and before.given_offsets is given_offsets and before.num_ids == num_ids:
        return values, before
    offsets = _array(given_offsets, 1, "feature ", name, ": offsets")
    if not len(offsets):
        raise UserError(f"feature {name}: no offsets; for B samples there are B + 1")
    size = _bag_size(offsets, num_ids, "feature ", name, ": offsets")
    return values, _Bags(num_ids, len(offsets) - 1, size, offsets, given_offsets)


def _has(jagged: Any, method: str) -> bool:
    """Whether TorchRec's ``method``, as ``weights_or_none``, gives anything."""
    found = getattr(jagged, method, None)
    return found is not None and found() is not None


def _of_jagged(entry: Any, name: str) -> tuple[Any, Any]:
    """Values and offsets of a JaggedTensor."""
    if not (callable(getattr(entry, "values", None)) and callable(getattr(entry, "offsets", None))):
        raise UserError(f"feature {name} is {type(entry).__name__}; give (values, offsets), or ids [B] or [B, L]")
    if _has(entry, "weights_or_none"):
        raise UserError(f"feature {name} has weights, which are not supported; give it without")
    return entry.values(), entry.offsets()


def _joined(all_values: list[Tensor], parts: Sequence[_Bags]) -> FeatureIds:
    """Features side by side."""
    num_samples = parts[0].num_samples
    values: Int64s = torch.cat(all_values).numpy()
    sizes = tuple([part.size for part in parts])
    if _RAGGED not in sizes:
        return FeatureIds(values, num_samples, _feature_spacing(sizes, num_samples), sizes)
    offsets, end = [], 0
    for part in parts:
        of_part = part.offsets if part.offsets is not None else np.arange(num_samples + 1) * part.size
        offsets.append(of_part[:-1] + end)
        end += part.num_ids
    return FeatureIds(values, num_samples, offsets=np.concatenate([*offsets, np.array([end])]))


def _array(given: object, num_axes: int, *what: object) -> Int64s:
    """As `_tensor`, as an array."""
    array: Int64s = _tensor(given, num_axes, *what).numpy()
    return array


def _tensor(given: object, num_axes: int, *what: object) -> Tensor:
    """An int64 tensor on the host, the user's own where it is one; ``what`` is its name in messages, in pieces.

    Every tensor of a batch comes by here, so that what is nearly always given is looked for first.
    """
    if (
        type(given) is Tensor
        and given.dtype is _INT64
        and given.ndim == num_axes
        and given.is_cpu
        and given.layout is _STRIDED
        and given.is_contiguous()
    ):
        return given
    if isinstance(given, np.ndarray) and given.dtype.kind in "iu":
        array = np.ascontiguousarray(given, np.int64)
        # torch warns of read-only memory, and takes no negative stride, which an array of one element may have
        is_plain = array.flags.writeable and min(array.strides, default=0) >= 0
        given = torch.from_numpy(array if is_plain else array.copy())
    if not isinstance(given, Tensor) or given.dtype not in (torch.int32, _INT64) or given.ndim != num_axes:
        found = f"{given.dtype} {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise UserError(f"{''.join(map(str, what))} are {found}; give an int64 or int32 tensor of {num_axes} axes")
    try:
        return torch.from_numpy(given.cpu().to(_INT64).contiguous().numpy())
    except (RuntimeError, TypeError) as error:  # of a layout or a device without numbers that lie side by side
        raise UserError(f"{''.join(map(str, what))} cannot be read: {error}; give an int64 or int32 tensor") from error


def flat_ids(ids: Tensor, what: str) -> Int64s:
    """Ids of any shape, [n]; ``what`` is their name in a message.

    Raises:
        UserError: they are no whole numbers.
    """
    return _array(ids.reshape(-1) if isinstance(ids, _ARRAYS) else ids, 1, what)


_RAGGED, _NOT_RISING = -1, -2


def _bag_size(offsets: Int64s, num_ids: int, *what: object) -> int:
    """The ids of each bag; `_RAGGED`: bags differ.

    Raises:
        UserError: these are no boundaries of bags.
    """
    size = int(_common_size(offsets, num_ids))
    if size != _NOT_RISING:
        return size
    name = "".join(map(str, what))
    if 0 < offsets[-1] < num_ids and offsets[0] == 0:  # as nn.EmbeddingBag takes them
        raise UserError(
            f"{name} end with {offsets[-1]} and there are {num_ids} values; give one more than there are bags, the "
            "last of which is the number of values"
        )
    raise UserError(f"{name} do not rise from 0 to the number of ids, {num_ids}; every id is in one bag")


@numba.njit(cache=True, nogil=True)
def _common_size(offsets: Int64s, num_ids: int) -> int:
    num_bags = len(offsets) - 1
    if offsets[0] != 0 or offsets[num_bags] != num_ids:
        return _NOT_RISING
    size = offsets[1] - offsets[0] if num_bags else 0
    falls, differs = False, False
    for bag in range(num_bags):
        falls |= offsets[bag + 1] < offsets[bag]  # compared, as a difference may overflow
        differs |= offsets[bag + 1] - offsets[bag] != size
    if falls:
        return _NOT_RISING
    return _RAGGED if differs else size


# Kernels from `FeatureIds` to the lookups of a group, rows [num_lookups] global over the group's tables. ``columns``
# [3, T] int64 has the group's features, and of each the first row of its table in the group and how many rows it has.
# They return -1, or the sample times T plus the place of the feature whose id, written to ``rows[0]``, is out of range.


@numba.njit(cache=True, nogil=True, inline="always")
def _take(ids: Int64s, first: int, last: int, first_row: int, num_rows: int, rows: Int64s, place: int) -> int:
    """Puts the rows of ids ``first`` to ``last - 1`` at ``place`` and on; the place after them, -1: one is no row."""
    for number in range(first, last):
        value = ids[number]
        if value < 0 or value >= num_rows:
            rows[0] = value
            return -1
        rows[place] = value + first_row
        place += 1
    return place


_SAMPLES_TOGETHER = 32  # whose rows stay in the processor's nearest cache, wherever their ids lie


@numba.njit(cache=True, nogil=True)
def _single_ids(ids: Int64s, spacing: Int64s, num_samples: int, columns: Int64s, rows: Int64s) -> bool:
    """`spaced_bags` of bags of one id, the usual case; whether all are in range.

    One check for all ids, so that the loop has no way out: an id or its distance to the last row is below 0 then.
    """
    num_features, signs = columns.shape[1], np.int64(0)
    for first in range(0, num_samples, _SAMPLES_TOGETHER):
        count = min(_SAMPLES_TOGETHER, num_samples - first)
        for column in range(num_features):
            feature, first_row, last = columns[0, column], columns[1, column], columns[2, column] - 1
            distance = spacing[1, feature]
            source, place = spacing[0, feature] + first * distance, first * num_features + column
            for _ in range(count):
                value = ids[np.uint64(source)]  # unsigned: numba looks at the sign of other indices
                signs |= value | (last - value)
                rows[np.uint64(place)] = value + first_row
                source += distance
                place += num_features
    return bool(signs >= 0)


@numba.njit(cache=True, nogil=True)
def spaced_bags(ids: Int64s, spacing: Int64s, num_samples: int, columns: Int64s, rows: Int64s) -> int:
    """Of bags at equal distances; they come out sample after sample."""
    num_features, is_single = columns.shape[1], True
    for column in range(num_features):
        is_single &= spacing[2, columns[0, column]] == 1
    if is_single and _single_ids(ids, spacing, num_samples, columns, rows):
        return -1
    place = 0
    for sample in range(num_samples):
        for column in range(num_features):
            feature = columns[0, column]
            first = spacing[0, feature] + sample * spacing[1, feature]
            last = first + spacing[2, feature]
            place = _take(ids, first, last, columns[1, column], columns[2, column], rows, place)
            if place < 0:
                return int(sample * num_features + column)
    return -1


@numba.njit(cache=True, nogil=True)
def jagged_bags(
    ids: Int64s, offsets: Int64s, num_samples: int, columns: Int64s, rows: Int64s, new_offsets: Int64s
) -> int:
    """Of ids feature after feature; bags come out sample after sample, with ``new_offsets`` [B * T + 1]."""
    features, first_rows, num_rows = columns[0], columns[1], columns[2]
    place = 0
    for sample in range(num_samples):
        for column in range(len(features)):
            bag = features[column] * num_samples + sample
            place = _take(ids, offsets[bag], offsets[bag + 1], first_rows[column], num_rows[column], rows, place)
            if place < 0:
                return int(sample * len(features) + column)
            new_offsets[sample * len(features) + column + 1] = place
    return -1


@numba.njit(cache=True, nogil=True)
def sequences(ids: Int64s, offsets: Int64s, num_samples: int, columns: Int64s, rows: Int64s) -> int:
    """Of ids feature after feature, as they are; each lookup is a bag of its own."""
    features, first_rows, num_rows = columns[0], columns[1], columns[2]
    place = 0
    for column in range(len(features)):
        for sample in range(num_samples):
            bag = features[column] * num_samples + sample
            place = _take(ids, offsets[bag], offsets[bag + 1], first_rows[column], num_rows[column], rows, place)
            if place < 0:
                return int(sample * len(features) + column)
    return -1
