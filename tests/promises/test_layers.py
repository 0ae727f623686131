"""The house: which room may import which. No import goes up, and inside a room and between rooms nothing goes round.

A room is a folder of the package, or a program beside them. Each imports only from those named here, all of which stand
above it in the table. A name with a dot is a module: only that one may be imported.
"""

import ast
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cachedlrm"

ROOMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "data": ("base",),
    "store": ("base",),
    "model": ("base", "store.records"),
    "cache": ("base", "data.batch", "data.lookups", "store", "model.bags", "model.quantized", "model.row_update"),
    "options": ("base", "data", "store.records", "model"),
    "plan": ("base", "data", "store", "model", "cache", "options"),
    "export": ("base", "data.vocabulary", "store", "model", "cache", "options"),
    "library": ("base", "data", "store", "model", "cache", "export.formats", "export.full_tables"),
    "prepare": ("base", "data", "options"),
    "report": ("base", "cache.counters", "options", "plan"),
    "run": ("base", "data", "store", "model", "cache", "options", "plan", "export", "report"),
    "check": ("base", "store", "options.parsing", "options.run_files", "options.types"),
    "simulate": ("base", "data", "cache", "options", "plan"),
    "predict": (
        "base",
        "data",
        "store",
        "model",
        "cache",
        "options",
        "export",
        "prepare.progress",
        "report",
        "run",
    ),
    "train": ("base", "data", "store", "model", "cache", "options", "plan", "export", "report", "run"),
}

WITHOUT_TORCH = [
    *(f"data/{path.name}" for path in sorted((PACKAGE / "data").glob("*.py"))),
    "cache/working_set.py", "cache/policies.py", "cache/victims.py", "cache/planner.py", "cache/minimum.py",
    "cache/next_use.py", "cache/counters.py",
]  # fmt: skip
"""They see ids alone: the planner never asks the device."""


def imported(path: Path) -> set[str]:
    """Modules a file imports, with the names taken from each: ``cachedlrm.base.errors.UserError``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module_of(path: Path) -> str:
    return ".".join(("cachedlrm", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_every_room_is_in_the_table_and_imports_from_those_above_it():
    names = {path.stem for path in PACKAGE.iterdir() if path.name != "py.typed" and not path.stem.startswith("__")}
    assert names == set(ROOMS)
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(name.split(".")[0]) < order.index(room) for name in below), room


def test_a_stranger_sees_at_most_sixteen_names():
    assert len([path for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.name != "py.typed"]) <= 16


def test_every_folder_is_installed():
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py")}
    assert sorted(listed) == sorted([*(".".join(folder.parts) for folder in folders), "cachedlrm.profiles"])


@pytest.mark.parametrize("path", files(), ids=module_of)
def test_a_room_imports_only_from_its_rooms(path):
    room = room_of(path)
    for name in imported(path):
        if not name.startswith("cachedlrm.") or name == "cachedlrm.__version__":
            continue
        target = name.removeprefix("cachedlrm.")
        allowed = target.split(".")[0] == room or any(target.startswith(f"{one}.") for one in ROOMS[room])
        assert allowed, f"{module_of(path)} imports {name}; see the table above"


def test_no_module_imports_in_a_circle():
    modules = {module_of(path): imported(path) for path in files()}

    def targets(module: str) -> set[str]:
        return {other for name in modules[module] for other in modules if name == other or name.startswith(f"{other}.")}

    arrows = {module: {other for other in targets(module) if other != module} for module in modules}
    while leaves := [module for module, others in arrows.items() if not others & arrows.keys()]:
        for leaf in leaves:
            del arrows[leaf]
    assert not arrows, f"a circle among {sorted(arrows)}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_sees_ids_alone_knows_no_tensor(name):
    assert not any(module.split(".")[0] == "torch" for module in imported(PACKAGE / name))
