"""The cache's work table by table: which table hurts."""

from collections.abc import Sequence

from cachedlrm.architecture import Architecture
from cachedlrm.metrics import TableCounters


def by_table(architecture: Architecture, counts: Sequence[Sequence[int]]) -> tuple[TableCounters, ...]:
    """The tables of all features, in the order of the features.

    Args:
        architecture: of the model.
        counts: the `TABLE_COUNTS` of each table, group after group.
    """
    names = [table.name for group in architecture.groups for table in group]
    counts_of = dict(zip(names, counts, strict=True))
    return tuple(
        TableCounters(table.name.removesuffix(".weight"), table.num_rows, *counts_of[table.name])
        for embedding in architecture.embeddings
        for table in embedding.tables
    )


def most_missed(tables: Sequence[TableCounters]) -> list[TableCounters]:
    """The tables, those with the most missed lookups first; of equal ones, the earlier."""
    return sorted(tables, key=lambda table: -table.missed_lookups)
