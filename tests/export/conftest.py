"""A run that ended, for tests of its final state and of the export."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cachedlrm.export.__main__ import main
from support.runs import one_line, train


@pytest.fixture(scope="package")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert train(directory, "--steps=3") == 0
    return directory


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of its own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def refusal(capsys) -> Callable[[Path | str, Path | str], str]:
    """The one line of an export that is refused."""
    return lambda run, out: one_line(capsys, main([str(run), str(out)]))
