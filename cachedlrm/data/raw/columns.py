"""Samples from columns that the user names: one label, dense features, and categories, in Arrow's arrays."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.keys import is_text, unusable_as_ids, value_keys
from cachedlrm.data.raw.samples import KeyLists, Samples, log_transform

KEY_DTYPE = np.dtype(np.uint64)
_LABELS = {b"0": 0.0, b"1": 1.0, b"0.0": 0.0, b"1.0": 1.0, b"false": 0.0, b"true": 1.0}


@dataclass(frozen=True)
class Schema:
    """Which columns are what.

    Attributes:
        label: column of 0 and 1: integers, floats, booleans, or texts of these; empty: there are no labels.
        dense: columns of numbers; a missing one is 0.
        sparse: columns of categories; see `cachedlrm.data.raw.keys`.
        log_dense: whether dense features are transformed as Criteo's are.
        lists: those of ``sparse`` that hold lists of categories; a missing list is empty.
    """

    label: str
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    log_dense: bool = False
    lists: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns, each once."""
        return tuple(dict.fromkeys(name for _, name in self.roles))

    @property
    def roles(self) -> list[tuple[str, str]]:
        """The option that names a column, and the column."""
        dense, sparse = [("--dense", name) for name in self.dense], [("--sparse", name) for name in self.sparse]
        return [*([("--label", self.label)] if self.label else []), *dense, *sparse]

    def samples(self, columns: Mapping[str, pa.Array], count: int) -> tuple[Samples, dict[int, str]]:
        """All ``count`` rows of the columns, and what is wrong with some of them, by index."""
        labels = _labels(columns[self.label]) if self.label else np.zeros(count)
        wrong = (labels != 0) & (labels != 1)
        reasons = dict.fromkeys(np.flatnonzero(wrong).tolist(), f"the label, {self.label}, is neither 0 nor 1")
        dense = np.empty((count, len(self.dense)), np.float32)
        for number, name in enumerate(self.dense):
            with np.errstate(over="ignore"):
                dense[:, number] = _floats(columns[name], 0.0)
            for index in np.flatnonzero(~np.isfinite(dense[:, number])).tolist():
                reasons.setdefault(index, f"{name} is NaN, infinite, or more than a float32 holds")
        keys, lists = np.zeros((len(self.sparse), count), KEY_DTYPE), {}
        for number, name in enumerate(self.sparse):
            if name in self.lists:
                lists[number], bad = _list_keys(columns[name])
            else:
                bad = value_keys(columns[name], keys[number])
            for index in [] if bad is None else np.flatnonzero(bad).tolist():
                reasons.setdefault(index, f"{name} is no whole number of at most 2^53; categories are these, or texts")
        if self.log_dense:
            dense = log_transform(dense)
        labels[wrong] = 0
        return Samples(dense, labels.astype(np.int32), keys, lists), reasons


def split_columns(option: str, text: str) -> tuple[str, ...]:
    """Names between commas.

    Raises:
        UserError: an empty one, or one that is there twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{option} {text}: names of different columns, joined by commas, are needed")
    return names


def missing_column(option: str, name: str, where: str, known: list[str]) -> UserError:
    """Refuses a file without a column, or with several of its name.

    Args:
        option: that names it.
        name: of the column.
        where: the file.
        known: names of the columns there.
    """
    count = known.count(name)
    if count:
        return UserError(
            f"{option} {shown(name)}: {where} has {count} columns of that name; write it with different names"
        )
    there = f"there are {shown(', '.join(known[:40]))}" if known else "it has no columns at all"
    return UserError(f"{option} {shown(name)}: {where} has no such column; {there}")


def check_type(option: str, name: str, where: str, kind: pa.DataType) -> None:
    """Refuses a column whose type says that it cannot be what it is named for.

    Raises:
        UserError: it cannot; says what to do.
    """
    types, values = pa.types, plain_type(kind)
    numbers = is_integer(values) or is_floating(values) or types.is_decimal(values)
    if option == "--sparse":
        why = unusable_as_ids(kind)
    elif option == "--label":
        why = None if numbers or is_text(values) else "where 0 and 1 are needed; name another column or convert it"
    else:
        fits = numbers or types.is_null(values)
        why = None if fits else "where numbers are needed; name another column or convert it"
    if why is not None:
        raise UserError(f"{option} {shown(name)}: {where} has {shown(kind)} there, {why}")


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds a list in each row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _list_keys(column: pa.Array) -> tuple[KeyLists, NDArray[np.bool_] | None]:
    """Keys of a column of n lists; and those of the lists that hold a value that is no category [n], if any does."""
    sizes = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int32)
    flat = column.flatten()
    keys = np.empty(len(flat), KEY_DTYPE)
    bad = value_keys(flat, keys)
    if bad is not None:
        lists = np.repeat(np.arange(len(sizes)), sizes)
        bad = np.isin(np.arange(len(sizes)), lists[bad])
    return KeyLists(keys, sizes), bad


def is_integer(kind: pa.DataType) -> bool:
    """Whether a column holds integers, or booleans."""
    return bool(pa.types.is_integer(plain_type(kind)) or pa.types.is_boolean(plain_type(kind)))


def is_floating(kind: pa.DataType) -> bool:
    """Whether a column holds floats."""
    return bool(pa.types.is_floating(plain_type(kind)))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Of the values, where it is one of a dictionary or of an extension."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    return plain_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def plain(column: pa.Array) -> pa.Array:
    """Values instead of a dictionary and indices into it."""
    if isinstance(column.type, pa.BaseExtensionType):
        return plain(column.storage)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _floats(column: pa.Array, missing: float) -> NDArray[np.float64]:
    floats: NDArray[np.float64] = plain(column).cast(pa.float64(), safe=False).fill_null(missing).to_numpy()
    return floats


def _labels(column: pa.Array) -> NDArray[np.float64]:
    """Labels [n]; NaN where a text is none."""
    column = plain(column)
    if not is_text(column.type):
        return _floats(column, np.nan).copy()
    texts = column.cast(pa.large_binary()).dictionary_encode()
    values = np.array([_LABELS.get(text.lower(), np.nan) for text in texts.dictionary.to_pylist()] + [np.nan])
    labels: NDArray[np.float64] = values[texts.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)]
    return labels
