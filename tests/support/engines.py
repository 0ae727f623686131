"""A small engine of the library."""

from cachedlrm.library.engine import Choices, Engine, Weights
from cachedlrm.library.lookups import Routes
from cachedlrm.library.tables import EmbeddingTable, TableSet


def choices_of(**changes) -> Choices:
    """Arguments of a collection, all of them."""
    arguments = {
        "optimizer": "adagrad", "eps": None, "weight_decay": 0.0, "cache_rows": 10, "cache_budget": None,
        "policy": "lru", "lookahead": 2, "prefetch_depth": 0, "seed": 3, "device": "cpu", "store": "host",
        "store_path": None, "host_budget": None, "row_counts": None, "report_min": False,
    }  # fmt: skip
    return Choices(**{**arguments, **changes})


def engine_of(
    table_rows: tuple[int, ...] = (6, 4), dim: int = 2, weights: Weights | None = None, **changes
) -> tuple[Engine, Routes]:
    """Of tables ``0``, ``1``, ..., each with a feature of its name."""
    tables = TableSet([EmbeddingTable(str(n), rows, dim, (str(n),)) for n, rows in enumerate(table_rows)], pools=True)
    engine = Engine(tables, choices_of(**changes), weights or {})
    return engine, Routes(tables, [f"table {number}" for number in range(len(table_rows))], "correct the data")
