"""Where a run ran, and what it takes to repeat it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cachedlrm.report import environment as environment_module
from cachedlrm.report.environment import commit, environment

KEYS = {"command", "date", "commit", "torch", "numpy", "python", "device", "cpu", "cores", "threads"}


def test_the_command_can_be_pasted_into_a_shell():
    found = environment("cpu", ["--data", "npy:/my data/a|b", "--steps=1"])
    assert found.keys() >= KEYS
    assert found["command"] == "python -m cachedlrm.train --data 'npy:/my data/a|b' --steps=1"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_package_and_of_no_project_around_it(tmp_path, monkeypatch):
    package = tmp_path / "environment.py"
    package.write_text("1")
    monkeypatch.setattr(environment_module, "__file__", str(package))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None  # no checkout
    git(tmp_path, "init")
    (tmp_path / "project.txt").write_text("1")
    git(tmp_path, "add", "project.txt")
    git(tmp_path, "commit", "-m", "a project with the package installed in it")
    assert commit() is None
    git(tmp_path, "add", "environment.py")
    git(tmp_path, "commit", "-m", "the package's own checkout")
    found = commit()
    assert len(found) == 12
    package.write_text("2")
    assert commit() == f"{found}-dirty"


def test_a_machine_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment("cpu", [])["commit"] is None
