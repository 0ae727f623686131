"""Every module has a test file of its name, and every test file a module: cachedlrm/ROOM/x.py, tests/ROOM/test_x.py.

``__main__.py`` is tested by test_main.py. ``__init__.py`` only imports. tests/promises and tests/gpu have what holds
across rooms.
"""

from pathlib import PurePosixPath

import pytest

from support.documents import ROOT, TESTS

ACROSS_ROOMS = ("promises", "gpu", "simcuda", "support")
MODULES = sorted(
    path.relative_to(ROOT / "cachedlrm").as_posix()
    for path in (ROOT / "cachedlrm").rglob("*.py")
    if path.name != "__init__.py"
)


def expected_file(module: str) -> str:
    path = PurePosixPath(module)
    return str(path.with_name(f"test_{path.stem.strip('_')}.py"))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test_file(module):
    assert (TESTS / expected_file(module)).is_file(), f"write tests/{expected_file(module)}"


def test_every_test_file_has_a_module():
    files = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    inside = {file for file in files if not file.startswith(ACROSS_ROOMS)}
    assert inside <= {expected_file(module) for module in MODULES}
