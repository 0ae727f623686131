"""Whole files or none, one run at a time, and one line when the system refuses."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options.run_files import RUN_FILES
from cachedlrm.run import directory as run_directory
from cachedlrm.run.directory import RunDirectory


def test_files_appear_whole(tmp_path):
    with RunDirectory.create(tmp_path / "run") as run:
        run.write_text("config.toml", "a = 1\n")
        run.write_text("report.json", "{}\n")
        run.write_array("predictions.npy", np.arange(3, dtype=np.float32))
        run.append_metrics({"step": 1})
        run.append_metrics({"step": 2})
    assert (tmp_path / "run/config.toml").read_text() == "a = 1\n"
    assert (tmp_path / "run/report.json").read_text() == "{}\n"
    assert np.load(tmp_path / "run/predictions.npy").tolist() == [0, 1, 2]
    assert [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()] == [1, 2]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.toml", "report.json", "predictions.npy", "metrics.jsonl", "run.lock"}


def test_files_have_the_users_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with RunDirectory.create(tmp_path / "run") as run:
            run.write_text("config.toml", "")
            run.append_metrics({})
    finally:
        os.umask(before)
    for name in ("config.toml", "metrics.jsonl"):
        assert (tmp_path / "run" / name).stat().st_mode & 0o777 == 0o640


def test_the_default_directory_is_fresh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with RunDirectory.create(None) as first, RunDirectory.create(None) as second:
        assert first.path("x").parent != second.path("x").parent
        assert first.path("x").parent.parent.name == "runs"


def test_a_failed_write_leaves_nothing(tmp_path):
    with RunDirectory.create(tmp_path / "run") as run:
        with pytest.raises(ValueError, match="JSON"):
            run.append_metrics({"x": float("inf")})
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.lock"}


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_directory_that_holds_a_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=re.escape(f"already holds a run ({name})")):
        RunDirectory.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no lock is left behind


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a directory; choose another --run-dir"):
        RunDirectory.create(tmp_path / "file")
    with pytest.raises(UserError, match="choose another --run-dir"):
        RunDirectory.create(tmp_path / "file" / "run")


HOLD = "import sys; from cachedlrm.run.directory import RunDirectory as R; from pathlib import Path\n"
HOLD += "run = R.create(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_a_lock_dies_with_its_owner(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout.readline() == "held\n"
        for _ in range(2):  # the refused one leaves the owner's number in its place
            with pytest.raises(UserError, match=f"in use by process {owner.pid};"):
                RunDirectory.create(tmp_path)
        owner.send_signal(signal.SIGKILL)
    RunDirectory.create(tmp_path).close()


def test_an_owner_that_has_not_written_its_number_is_someone(tmp_path):
    with RunDirectory.create(tmp_path) as run:
        run.path("run.lock").write_text("")
        with pytest.raises(UserError, match="in use by another process"):
            RunDirectory.create(tmp_path)


def test_a_refused_directory_is_not_kept_locked(tmp_path):
    (tmp_path / "report.json").write_text("")
    with pytest.raises(UserError, match="already holds a run"):
        RunDirectory.create(tmp_path)
    (tmp_path / "report.json").unlink()
    RunDirectory.create(tmp_path).close()


CREATE_DEFAULT = "from cachedlrm.run.directory import RunDirectory as R\nwith R.create(None) as r: input(r.path('.'))"


def test_runs_started_in_the_same_second_get_directories_of_their_own(tmp_path):
    command = [sys.executable, "-c", CREATE_DEFAULT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": tmp_path, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(6)]
    for process in processes:
        with process:
            process.communicate("\n")
    assert [process.returncode for process in processes] == [0] * 6
    assert len(list((tmp_path / "runs").iterdir())) == 6


def test_the_second_run_of_a_second_has_a_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frozen = type("Frozen", (datetime,), {"now": classmethod(lambda cls: datetime(2026, 11, 24, 15, 0, 59))})
    monkeypatch.setattr(run_directory, "datetime", frozen)
    for _ in range(3):
        RunDirectory.create(None).close()
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["2026-11-24_15-00-59", "2026-11-24_15-00-59-2", "2026-11-24_15-00-59-3"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_an_unwritable_place_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="choose another --run-dir"):
        RunDirectory.create(tmp_path / "run")


class Halting(io.FileIO):
    """A file that takes ten bytes, and at the next write an interrupt comes."""

    writes = 0

    def write(self, data):
        Halting.writes += 1
        if Halting.writes == 2:
            raise KeyboardInterrupt
        return super().write(bytes(data)[:10])


def test_an_interrupt_within_a_line_takes_the_line_back(tmp_path, monkeypatch):
    with RunDirectory.create(tmp_path) as run:
        run.append_metrics({"step": 1})
        monkeypatch.setattr(Path, "open", lambda self, mode, buffering: Halting(self, mode))
        with pytest.raises(KeyboardInterrupt):
            run.append_metrics({"step": 2, "loss": 0.5})
        monkeypatch.undo()
        run.append_metrics({"step": 3})
        lines = run.path("metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 3]


def fail(directory: Path | None, *, metrics: tuple[dict[str, object], ...] = (), report: bool = False) -> None:
    """A run that writes everything else and then finds a mistake."""
    with RunDirectory.create(directory) as run:
        for name in RUN_FILES:
            if name not in ("metrics.jsonl", "report.md"):
                run.write_text(name, "x")
        for row in metrics:
            run.append_metrics(row)
        if report:
            run.write_text("report.md", "x")
        raise UserError("wrong")


def test_a_run_that_measured_nothing_takes_back_what_it_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for directory in (Path("run"), Path("a/b/c"), Path("mine/b/c"), Path("mine"), None):
        with pytest.raises(UserError, match="wrong"):
            fail(directory)
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine"], directory


def test_a_run_that_measured_nothing_keeps_the_users_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="wrong"):
        fail(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_metrics_file_measures_nothing(tmp_path):
    def start() -> None:
        with RunDirectory.create(tmp_path / "run") as run:
            run.path("metrics.jsonl").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("results", [{"metrics": ({"step": 1},)}, {"report": True}])
def test_a_run_that_measured_something_stays(tmp_path, results):
    with pytest.raises(UserError, match="wrong"):
        fail(tmp_path / "run", **results)
    assert (tmp_path / "run" / "config.toml").exists()


def with_small_disk(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs code where no file may grow beyond 4 KiB, as on a disk that fills up."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # noqa: E731
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        preexec_fn=limit, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_full_disk_leaves_whole_lines_and_no_partial_files(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from cachedlrm.base.errors import UserError
        from cachedlrm.run.directory import RunDirectory
        with RunDirectory.create(Path(sys.argv[1])) as run:
            text, line = "x" * 5000, {"x": "y" * 100}
            for write in (lambda: run.write_text("report.md", text), lambda: run.append_metrics(line)):
                try:
                    for _ in range(100):
                        write()
                except UserError as error:
                    print(error)
    """
    result = with_small_disk(code, str(tmp_path))
    messages = result.stdout.splitlines()
    assert len(messages) == 2, result.stderr
    assert all("cannot write" in message and "--run-dir" in message for message in messages)
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "run.lock"}
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_a_full_disk_ends_a_run_with_one_line(tmp_path):
    code = """
        import sys
        from cachedlrm.train import main
        sys.exit(main(["--data=zipf:samples=400", "--arch-embedding-size=400-300", "--arch-mlp-bot=3-8-8", "--ui=off",
                       "--mini-batch-size=100", "--run-dir", sys.argv[1]]))
    """
    result = with_small_disk(code, str(tmp_path))
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "cannot write" in result.stderr
    assert not any("partial" in path.name for path in tmp_path.iterdir())
