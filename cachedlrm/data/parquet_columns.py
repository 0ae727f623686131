"""Which columns of Parquet files are what: ``parquet:PATH:label=L:dense=A,B:sparse=C,D``.

Columns that are not named follow from their types: the label is the column ``label``, all other floats are dense
features, and all other integers and booleans are ids.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.raw.columns import is_floating, is_integer, is_list, split_columns

_KEY = re.compile(r":(label|dense|sparse)=")
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
_MOST_SHOWN = 40


@dataclass(frozen=True)
class Columns:
    """Names of columns.

    Attributes:
        label: from 0 to 1; None: there is none.
        dense: numbers, one feature each; perhaps none.
        sparse: ids, one table each.
        lists: those of ``sparse`` that hold a list of ids in each row.
    """

    label: str | None
    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    lists: frozenset[str] = frozenset()

    @property
    def all(self) -> tuple[str, ...]:
        """All of them."""
        return (*(() if self.label is None else (self.label,)), *self.dense, *self.sparse)


@dataclass(frozen=True)
class NamedColumns:
    """Columns that the user named; None: chosen by type."""

    label: str | None = None
    dense: tuple[str, ...] | None = None
    sparse: tuple[str, ...] | None = None


def read_columns(words: str, text: str) -> tuple[Path, NamedColumns]:
    """The path and the columns of ``PATH:label=L:dense=A,B:sparse=C,D``, of which all but the path may be missing.

    Args:
        words: option and value, for messages.
        text: what stands after ``parquet:``.

    Raises:
        UserError: a key is given twice, or a name is empty or repeated.
    """
    path, *pairs = _KEY.split(text)
    named: dict[str, tuple[str, ...]] = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if key in named:
            raise UserError(f"{words}: {key} is given more than once; drop one of them")
        named[key] = split_columns(f"{words}: {key}", value)
    label = named.pop("label", None)
    if label is not None and len(label) > 1:
        raise UserError(f"{words}: label names {len(label)} columns; name one")
    return Path(path), NamedColumns(label[0] if label else None, **named)


def choose_columns(words: str, schema: pa.Schema, named: NamedColumns, needs_label: bool = True) -> Columns:
    """The columns to read.

    Args:
        words: option and value, for messages.
        schema: of the first file.
        named: by the user.
        needs_label: whether files without a column ``label`` are refused.

    Raises:
        UserError: there is no label or no id, or a column's type says neither dense feature nor id.
    """
    label: str | None = named.label or "label"
    if label not in schema.names and named.label is None and not needs_label:
        label = None
    elif label not in schema.names:
        known = shown(", ".join(schema.names[:_MOST_SHOWN]))
        what = "no such label" if named.label else "no column label"
        raise UserError(
            f"{words}: {what} in it; there are {known}: name one, as in parquet:PATH:label={known.split(',')[0]}"
        )
    taken = {*(() if label is None else (label,)), *(named.dense or ()), *(named.sparse or ())}
    if len(taken) < (label is not None) + len(named.dense or ()) + len(named.sparse or ()):
        raise UserError(f"{words}: a column is named twice among label, dense and sparse; name each once")
    others = [field for field in schema if field.name not in taken and not _PANDAS_INDEX.fullmatch(field.name)]
    dense, sparse = named.dense, named.sparse
    if dense is None:
        dense = tuple(field.name for field in others if is_floating(field.type))
    if sparse is None:
        sparse = tuple(field.name for field in others if _is_ids(field.type))
        odd = [field for field in others if not is_floating(field.type) and not _is_ids(field.type)]
        if odd:
            raise UserError(
                f"{words}: {shown(odd[0].name)} holds {shown(odd[0].type)}, not numbers; convert it, leave it out "
                "by naming the ids, parquet:PATH:sparse=NAME,NAME, or let cachedlrm.prepare parquet number texts"
            )
    if not sparse:
        raise UserError(f"{words}: no column of ids (integers) in it; name some, as in parquet:PATH:sparse=NAME,NAME")
    lists = {field.name for field in schema if is_list(field.type)} & set(sparse)
    return Columns(label, dense, sparse, frozenset(lists))


def check_columns(path: Path, schema: pa.Schema, columns: Columns) -> None:
    """Checks that a file has the columns, in usable types.

    Raises:
        UserError: it does not.
    """
    for name in columns.all:
        count = schema.names.count(name)
        if count != 1:
            known = shown(", ".join(schema.names[:_MOST_SHOWN]))
            what = "no column" if not count else f"{count} columns called"
            raise UserError(
                f"{shown(path)} has {what} {shown(name)}; there are {known}: name others, or leave the file out"
            )
        kind = schema.field(name).type
        if name in columns.sparse and _is_ids(kind) and is_list(kind) == (name in columns.lists):
            continue
        if name not in columns.sparse and (is_integer(kind) or is_floating(kind)):
            continue
        if name in columns.sparse:
            wanted = "lists of ids" if name in columns.lists else "ids, integers from 0 on,"
            raise UserError(
                f"{shown(path)}: {shown(name)} holds {shown(kind)} where {wanted} are needed; "
                "convert it, or let python -m cachedlrm.prepare parquet number texts"
            )
        raise UserError(f"{shown(path)}: {shown(name)} holds {shown(kind)} where numbers are needed; convert it")


def _is_ids(kind: pa.DataType) -> bool:
    """Whether a column holds integers or booleans, or lists of them."""
    return is_integer(kind.value_type if is_list(kind) else kind)
