"""The tables of a model's own: what a user says of them, and how they make groups."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.base.kernels import table_offsets
from cachedlrm.base.machine import without_cuda
from cachedlrm.data.batch import MOST_ROWS

_MOST_FLOAT32 = float(np.finfo(np.float32).max)
POOLINGS = ("sum", "mean", "none")


@dataclass(frozen=True)
class EmbeddingTable:
    """One table. Where a collection takes it, TorchRec's ``EmbeddingBagConfig`` or ``EmbeddingConfig`` is taken, too.

    Attributes:
        name: of the table.
        num_embeddings: rows.
        embedding_dim: columns.
        feature_names: features that are looked up in it; none: one of the table's name. A feature may be looked up in
            several tables.
        pooling: ``sum`` or ``mean`` of a bag's rows, where rows are pooled.
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: Sequence[str] = ()
    pooling: str = "sum"


@dataclass(frozen=True)
class Feature:
    """A feature in one of its tables.

    Attributes:
        name: in the batches.
        output: in the results: its name, or ``name@table`` if it is looked up in several tables, as TorchRec has it.
        table: number of the table.
    """

    name: str
    output: str
    table: int


@dataclass(frozen=True)
class Group:
    """Tables of one dimension, whose rows share slots.

    Attributes:
        dim: columns of a weight.
        tables: their numbers.
        features: numbers of the features that are looked up in them.
    """

    dim: int
    tables: tuple[int, ...]
    features: tuple[int, ...]


class TableSet:
    """Tables, their features, and their groups.

    Args:
        tables: by name, each with its own.
        pools: whether rows are pooled; else tables have pooling ``none``.

    Raises:
        UserError: they contradict each other; names the table.
    """

    def __init__(self, tables: Sequence[EmbeddingTable], pools: bool) -> None:
        if not tables:
            raise UserError("tables is empty; give at least one")
        self.pools = pools
        self.tables = tuple(tables)
        names = [table.name for table in tables]
        for number, table in enumerate(tables):
            if table.name in names[:number]:
                raise UserError(f"two tables are called {table.name}; give each a name of its own")
            if len(set(table.feature_names)) < len(table.feature_names):
                raise UserError(f"table {table.name}: a feature is named twice in feature_names")
        uses = [name for table in tables for name in table.feature_names]
        self.features = tuple(
            Feature(name, f"{name}@{table.name}" if uses.count(name) > 1 else name, number)
            for number, table in enumerate(tables)
            for name in table.feature_names
        )
        dims = dict.fromkeys(table.embedding_dim for table in tables)
        self.groups = tuple(
            Group(
                dim,
                tuple(number for number, table in enumerate(tables) if table.embedding_dim == dim),
                tuple(n for n, feature in enumerate(self.features) if tables[feature.table].embedding_dim == dim),
            )
            for dim in dims
        )
        for group in self.groups:
            rows = sum(self.table_rows(group))
            if rows > MOST_ROWS:
                raise UserError(f"tables of {group.dim} columns have {rows:,} rows together; the most is {MOST_ROWS:,}")

    def table_rows(self, group: Group) -> tuple[int, ...]:
        """Rows of each table of a group."""
        return tuple(self.tables[number].num_embeddings for number in group.tables)

    @cached_property
    def num_rows(self) -> int:
        """Rows of all tables."""
        return sum(table.num_embeddings for table in self.tables)

    @cached_property
    def first_rows(self) -> tuple[int, ...]:
        """The first row of each table, among those of its group."""
        first_row = [0] * len(self.tables)
        for group in self.groups:
            for number, row in zip(group.tables, table_offsets(self.table_rows(group)), strict=False):
                first_row[number] = int(row)
        return tuple(first_row)

    def group_of(self, table: int) -> int:
        """Number of a table's group."""
        return next(number for number, group in enumerate(self.groups) if table in group.tables)

    def number(self, name: str) -> int:
        """Number of the table of a name.

        Raises:
            UserError: there is none.
        """
        names = [table.name for table in self.tables]
        if name not in names:
            raise UserError(f"there is no table {name}; there are {', '.join(names[:20])}")
        return names.index(name)

    def identity(self) -> list[dict[str, Any]]:
        """The names and sizes that a saved state must agree with."""
        return [
            {"name": table.name, "num_embeddings": table.num_embeddings, "embedding_dim": table.embedding_dim}
            for table in self.tables
        ]


def table_of(config: Any, pools: bool, row_dtype: str = "fp32") -> EmbeddingTable:
    """A table from what a user gives: an `EmbeddingTable`, or TorchRec's.

    Raises:
        UserError: it has no meaning here; names the table and the field.
    """
    name = getattr(config, "name", "")
    if not isinstance(name, str) or not name:
        raise UserError(f"a table has no name: {config!r:.200}")
    where = f"table {name}"
    if getattr(config, "use_virtual_table", False):
        raise UserError(f"{where}: use_virtual_table is not supported; give num_embeddings rows")
    data_type = str(getattr(getattr(config, "data_type", None), "value", "FP32"))
    if data_type not in ("FP32", str(row_dtype).upper()):  # FP32 is what a config says that says nothing
        raise UserError(f"{where}: data_type is {data_type}; give row_dtype={data_type.lower()!r}, or make it FP32")
    pooling = getattr(config, "pooling", "sum")
    pooling = str(getattr(pooling, "value", pooling)).lower() if pools else "none"
    if pooling not in POOLINGS or (pools and pooling == "none"):
        raise UserError(f"{where}: pooling is {pooling}; choose sum or mean, or CachedEmbeddingCollection for none")
    return EmbeddingTable(
        name,
        whole(config.num_embeddings, f"{where}: num_embeddings", 1),
        whole(config.embedding_dim, f"{where}: embedding_dim", 1),
        tuple(getattr(config, "feature_names", None) or (name,)),
        pooling,
    )


def with_features(config: Any) -> Any:
    """A user's table with the feature of its name, if it names none: models read the names of features there."""
    if getattr(config, "feature_names", None) or not getattr(config, "name", ""):
        return config
    if isinstance(config, EmbeddingTable):
        return replace(config, feature_names=(config.name,))
    config.feature_names = [config.name]  # as TorchRec's collections do
    return config


def own_init(config: Any) -> Tensor | None:
    """Weights that a TorchRec config draws by an ``init_fn`` or in bounds of its own; None: it has neither.

    TorchRec's own ``init_fn`` is uniform in ±sqrt(1 / rows), which is ours.
    """
    init = getattr(config, "init_fn", None)
    has_bounds = any(getattr(config, name, None) is not None for name in ("weight_init_min", "weight_init_max"))
    is_default = isinstance(init, partial) and init.func is torch.nn.init.uniform_
    if init is None or (is_default and not has_bounds):
        return None
    weight = torch.empty(config.num_embeddings, config.embedding_dim, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        drawn = init(weight)
    return weight if drawn is None else drawn.detach()


def whole(value: Any, name: str, least: int) -> int:
    """A whole number.

    Raises:
        UserError: it is not one, or below ``least``; says ``name``.
    """
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} is {value!r}; give a whole number") from error
    if number < least:
        raise UserError(f"{name} is {number}; the least is {least}")
    return number


def real(value: Any, name: str, least: float) -> float:
    """A number that float32 holds.

    Raises:
        UserError: it is not one, is infinite or NaN, or below ``least``; says ``name``.
    """
    if type(value) is float and least <= value <= _MOST_FLOAT32:  # every step asks
        return value
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of several elements
        number = math.nan
    if not abs(number) <= _MOST_FLOAT32:
        shown = " ".join(repr(value).split())[:60]  # a tensor has several lines
        raise UserError(f"{name} is {shown}; give a finite number, {least:g} or more")
    if number < least:
        raise UserError(f"{name} is {number}; the least is {least:g}")
    return number


def device_of(value: Any) -> torch.device:
    """A device of this machine, with its number.

    Raises:
        UserError: there is none of that name.
    """
    advice = "give 'cpu', 'cuda' or 'cuda:N', a device of this machine"
    try:
        device = torch.device(value)
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"device is {value!r}; {advice}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device is {device}: {without_cuda()}, or use device='cpu'")
        return torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device is {value!r}; {advice}") from error


def policy_of(name: str, choices: Sequence[str]) -> str:
    """A policy that a module over a user's batches can have.

    Raises:
        UserError: it is none of the ``choices``.
    """
    if name == "oracle":
        raise UserError(
            "policy is 'oracle', which reads the ids of the whole run before it, and a user's batches are known only "
            "as they are read; choose 'lookahead' with prefetch: with lookahead=N, N the batches of the loop, it moves "
            "no more rows"
        )
    return one_of(name, "policy", choices)


def one_of(value: str, name: str, choices: Sequence[str]) -> str:
    """A choice.

    Raises:
        UserError: it is none of the ``choices``; says ``name``.
    """
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose {', '.join(choices)}")
    return value
