"""Who may know whom: the store sees no slot, the model no row, the planner no tensor."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cachedlrm"
HOST_ONLY = [
    "cache/working_set.py", "cache/policies.py", "cache/victims.py", "cache/planner.py", "cache/minimum.py",
    "cache/next_use.py",
]  # fmt: skip


def imported(path: Path) -> set[str]:
    """Modules a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def files(folder: str) -> list[Path]:
    return sorted((PACKAGE / folder).glob("*.py"))


RULES = [
    *((path, ("cachedlrm.cache", "cachedlrm.model")) for path in files("store")),
    *((path, ("cachedlrm.cache", "cachedlrm.data")) for path in files("model")),
    *((path, ("cachedlrm.cache", "cachedlrm.store", "cachedlrm.model", "torch")) for path in files("data")),
    *((PACKAGE / name, ("torch", "cachedlrm.store", "cachedlrm.model", "cachedlrm.data")) for name in HOST_ONLY),
    *((path, ("cachedlrm.model",)) for path in files("cache")),
]


@pytest.mark.parametrize(("path", "forbidden"), RULES, ids=lambda value: getattr(value, "name", None))
def test_imports_flow_one_way(path, forbidden):
    assert path.exists()
    for name in imported(path):
        assert not name.startswith(forbidden), f"{path} imports {name}"
