"""The cache's work table by table: which table hurts."""

from collections.abc import Sequence

from cachedlrm.cache.counters import TableCounters


def most_missed(tables: Sequence[TableCounters]) -> list[TableCounters]:
    """The tables, those with the most missed lookups first; of equal ones, the earlier."""
    return sorted(tables, key=lambda table: -table.missed_lookups)
