"""The forms in which a model's own batches hold their ids, and the one form that the cache takes.

What comes out holds no reference to what went in: ids may be changed in place afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError

Int64s = NDArray[np.int64]

Ids = Tensor | NDArray[Any] | Sequence[Any]
"""Ids of B samples in T tables; see `bag_ids`."""


@dataclass(frozen=True)
class FeatureIds:
    """Ids of B samples in F features on the host, local to their tables.

    Attributes:
        values: [B, F, L] int64, L ids a bag; or [num_ids], feature after feature and in one sample after sample.
        offsets: for the second, [F * B + 1] int64: boundaries of bags.
        num_samples: B.
    """

    values: Int64s
    offsets: Int64s | None
    num_samples: int

    def jagged(self) -> tuple[Int64s, Int64s]:
        """Values and offsets feature after feature."""
        if self.offsets is not None:
            return self.values, self.offsets
        size, num_bags = self.values.shape[2], self.values.shape[0] * self.values.shape[1]
        values = np.ascontiguousarray(self.values.transpose(1, 0, 2)).reshape(-1)
        return values, np.arange(num_bags + 1, dtype=np.int64) * size


def bag_ids(ids: Ids, offsets: Ids | None, num_tables: int, where: str) -> FeatureIds:
    """Ids from one of these:

    - ``ids`` [B, T], one id a bag, or [B, T, L], L ids a bag; no offsets;
    - T tensors ``ids`` [L_t] and T tensors ``offsets`` [B]: each as ``nn.EmbeddingBag`` takes them;
    - ``ids`` [L] and ``offsets`` [T * B + 1], table after table: ``values()`` and ``offsets()`` of a TorchRec
      ``KeyedJaggedTensor``.

    Args:
        ids: int32 or int64, local to their tables.
        offsets: int32 or int64.
        num_tables: T.
        where: the batch's name in a message.

    Raises:
        UserError: another form.
    """
    if offsets is None:
        if not isinstance(ids, Tensor | np.ndarray):
            raise UserError(
                f"{where}: one tensor of ids for each table needs offsets beside it, or stack them to [B, T]"
            )
        num_axes = 3 if ids.ndim == 3 else 2
        array = _array(ids, num_axes, f"{where}: ids without offsets")
        if array.shape[1] != num_tables:
            raise UserError(f"{where}: ids are {list(array.shape)}; the second axis is for the {num_tables} tables")
        return FeatureIds(
            array.reshape(len(array), num_tables, array.shape[2] if num_axes == 3 else 1), None, len(array)
        )
    if isinstance(ids, Tensor | np.ndarray) != isinstance(offsets, Tensor | np.ndarray):
        raise UserError(f"{where}: ids and offsets are both a tensor, or both one tensor for each table")
    if not isinstance(ids, Tensor | np.ndarray):
        return _of_tables(list(ids), list(offsets), num_tables, where)
    local, by_table = _array(ids, 1, f"{where}: ids"), _array(offsets, 1, f"{where}: offsets")
    if not len(by_table) or (len(by_table) - 1) % num_tables:
        raise UserError(
            f"{where}: {len(by_table)} offsets; for B samples in {num_tables} tables there are {num_tables} * B + 1"
        )
    _check_offsets(by_table, len(local), f"{where}: offsets")
    return FeatureIds(local, by_table, (len(by_table) - 1) // num_tables)


def _of_tables(ids: list[Any], offsets: list[Any], num_tables: int, where: str) -> FeatureIds:
    """From ids and offsets of each table, as ``nn.EmbeddingBag`` takes them."""
    if len(ids) != num_tables or len(offsets) != num_tables:
        raise UserError(f"{where}: {len(ids)} tensors of ids and {len(offsets)} of offsets for {num_tables} tables")
    parts: list[tuple[Int64s, Int64s]] = []
    for table, (table_ids, table_offsets) in enumerate(zip(ids, offsets, strict=True)):
        values = _array(table_ids, 1, f"{where}: ids of table {table}")
        starts = _array(table_offsets, 1, f"{where}: offsets of table {table}")
        if parts and len(starts) != len(parts[0][1]) - 1:
            raise UserError(
                f"{where}: table {table} has {len(starts)} bags and table 0 has {len(parts[0][1]) - 1}; a sample has "
                "one in each table, an empty one too"
            )
        bounds = np.append(starts, len(values))
        _check_offsets(bounds, len(values), f"{where}: offsets of table {table}")
        parts.append((values, bounds))
    return _joined(parts)


def named_ids(features: Any, names: Sequence[str], where: str) -> FeatureIds:
    """Ids of the features ``names`` from one of these, in which others may be, too:

    - a ``KeyedJaggedTensor`` of TorchRec, or what has its ``keys()``, ``values()`` and ``offsets()``;
    - a dictionary from names to ``(values [L], offsets [B + 1])``, to a ``JaggedTensor``, or to ids of one size a bag:
      [B] or [B, L].

    Args:
        features: int32 or int64, local to their tables.
        names: in order.
        where: the batch's name in a message.

    Raises:
        UserError: another form, or a feature is missing.
    """
    if isinstance(features, Mapping):
        parts = [_of_feature(_entry(features, name, where), f"{where}: feature {name}") for name in names]
        sizes = [len(offsets) - 1 for _, offsets in parts]
        if len(set(sizes)) > 1:
            odd = next(n for n, size in enumerate(sizes) if size != sizes[0])
            raise UserError(
                f"{where}: feature {names[odd]} has {sizes[odd]} bags and {names[0]} has {sizes[0]}; a sample has one "
                "in each feature, an empty one too"
            )
        return _joined(parts)
    if not all(callable(getattr(features, name, None)) for name in ("keys", "values", "offsets")):
        raise UserError(
            f"{where}: features are {type(features).__name__}; give a KeyedJaggedTensor, or a dictionary from feature "
            "names to (values, offsets)"
        )
    return _of_keyed(features, names, where)


def _of_keyed(features: Any, names: Sequence[str], where: str) -> FeatureIds:
    """From a KeyedJaggedTensor."""
    for method, what in (
        ("weights_or_none", "has weights"),
        ("inverse_indices_or_none", "has inverse indices"),
    ):
        if (found := getattr(features, method, None)) is not None and found() is not None:
            raise UserError(f"{where}: the KeyedJaggedTensor {what}, which are not supported; give one without")
    keys = list(features.keys())
    values = _array(features.values(), 1, f"{where}: values")
    offsets = _array(features.offsets(), 1, f"{where}: offsets")
    if not keys or (len(offsets) - 1) % len(keys):
        raise UserError(f"{where}: {len(offsets)} offsets for {len(keys)} keys; each key has one bag for each sample")
    _check_offsets(offsets, len(values), f"{where}: offsets")
    num_samples = (len(offsets) - 1) // len(keys)
    if keys == list(names):
        return FeatureIds(values, offsets, num_samples)
    place = {key: number for number, key in enumerate(keys)}
    parts = []
    for name in names:
        first = _entry(place, name, where) * num_samples
        bounds = offsets[first : first + num_samples + 1]
        parts.append((values[bounds[0] : bounds[-1]], bounds - bounds[0]))
    return _joined(parts)


def _entry(features: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in features:
        raise UserError(f"{where}: feature {name} is missing; there are {', '.join(map(str, list(features)[:20]))}")
    return features[name]


def _of_feature(entry: Any, what: str) -> tuple[Int64s, Int64s]:
    """Values and offsets of one feature."""
    if isinstance(entry, Tensor | np.ndarray):
        array = _array(entry, 2 if entry.ndim == 2 else 1, what)
        size = array.shape[1] if array.ndim == 2 else 1
        return array.reshape(-1), np.arange(len(array) + 1, dtype=np.int64) * size
    if callable(getattr(entry, "values", None)) and callable(getattr(entry, "offsets", None)):
        entry = (entry.values(), entry.offsets())
    if not isinstance(entry, tuple | list) or len(entry) != 2:
        raise UserError(f"{what} is {type(entry).__name__}; give (values, offsets), or ids [B] or [B, L]")
    values, offsets = _array(entry[0], 1, f"{what}: values"), _array(entry[1], 1, f"{what}: offsets")
    if not len(offsets):
        raise UserError(f"{what}: no offsets; for B samples there are B + 1")
    if 0 < offsets[-1] < len(values) and offsets[0] == 0:  # as nn.EmbeddingBag takes them
        raise UserError(
            f"{what}: offsets end with {offsets[-1]} and there are {len(values)} values; for B samples give B + 1 "
            "offsets, the last of which is the number of values"
        )
    _check_offsets(offsets, len(values), f"{what}: offsets")
    return values, offsets


def _joined(parts: Sequence[tuple[Int64s, Int64s]]) -> FeatureIds:
    """Features side by side, of which each has values [L_f] and offsets [B + 1]."""
    ends = np.cumsum([0, *(len(values) for values, _ in parts)])
    offsets = [bounds[:-1] + end for (_, bounds), end in zip(parts, ends, strict=False)]
    values = np.concatenate([values for values, _ in parts])
    return FeatureIds(values, np.concatenate([*offsets, ends[-1:]]), len(parts[0][1]) - 1)


def _array(tensor: object, num_axes: int, what: str) -> Int64s:
    if isinstance(tensor, np.ndarray) and tensor.dtype.kind in "iu":
        tensor = torch.from_numpy(np.ascontiguousarray(tensor, np.int64))
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64) or tensor.ndim != num_axes:
        found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{what} are {found}; give an int64 or int32 tensor of {num_axes} axes")
    array: Int64s = tensor.detach().cpu().to(torch.int64).contiguous().numpy()
    return array


def _check_offsets(offsets: Int64s, num_ids: int, what: str) -> None:
    if (num_ids and offsets[0] != 0) or offsets[-1] != num_ids or (np.diff(offsets) < 0).any():
        raise UserError(f"{what} do not rise from 0 to the number of ids, {num_ids}; every id is in one bag")


# Kernels from `FeatureIds` to the lookups of a group of T features, rows [num_lookups] global over the group's tables.
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


@numba.njit(cache=True, nogil=True)
def fixed_bags(ids: Int64s, features: Int64s, first_rows: Int64s, num_rows: Int64s, rows: Int64s) -> int:
    """Of ids [B, F, L]; bags are sample after sample."""
    num_samples, num_features, size = ids.shape
    flat = ids.reshape(ids.size)
    place = 0
    for sample in range(num_samples):
        for column in range(len(features)):
            first = (sample * num_features + features[column]) * size
            place = _take(flat, first, first + size, first_rows[column], num_rows[column], rows, place)
            if place < 0:
                return int(sample * len(features) + column)
    return -1


@numba.njit(cache=True, nogil=True)
def jagged_bags(
    ids: Int64s,
    offsets: Int64s,
    num_samples: int,
    features: Int64s,
    first_rows: Int64s,
    num_rows: Int64s,
    rows: Int64s,
    new_offsets: Int64s,
) -> int:
    """Of ids [num_ids] feature after feature; bags are sample after sample, with ``new_offsets`` [B * T + 1]."""
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
def sequences(
    ids: Int64s,
    offsets: Int64s,
    num_samples: int,
    features: Int64s,
    first_rows: Int64s,
    num_rows: Int64s,
    rows: Int64s,
) -> int:
    """Of ids [num_ids] feature after feature, as they are; each lookup is a bag of its own."""
    place = 0
    for column in range(len(features)):
        for sample in range(num_samples):
            bag = features[column] * num_samples + sample
            place = _take(ids, offsets[bag], offsets[bag + 1], first_rows[column], num_rows[column], rows, place)
            if place < 0:
                return int(sample * len(features) + column)
    return -1
