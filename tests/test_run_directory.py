"""Whole files or none, one run at a time, and one line when the system refuses."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from safetensors import safe_open

from cachedlrm.errors import UserError
from cachedlrm.run_directory import RunDirectory
from cachedlrm.tensor_file import write_tensors


def test_files_appear_whole(tmp_path):
    with RunDirectory.create(tmp_path / "run") as run:
        run.write_text("config.toml", "a = 1\n")
        run.write_json("report.json", {"x": 1.5, "y": None})
        run.write_array("predictions.npy", np.arange(3, dtype=np.float32))
        run.append_metrics({"step": 1})
        run.append_metrics({"step": 2})
    assert (tmp_path / "run/config.toml").read_text() == "a = 1\n"
    assert json.loads((tmp_path / "run/report.json").read_text()) == {"x": 1.5, "y": None}
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
            run.write_json("report.json", {"x": float("nan")})
        with pytest.raises(ValueError, match="JSON"):
            run.append_metrics({"x": float("inf")})
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.lock"}


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl", "report.json"])
def test_a_directory_that_holds_a_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="already holds a run"):
        RunDirectory.create(tmp_path)


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--run-dir"):
        RunDirectory.create(tmp_path / "file")


HOLD = "import sys; from cachedlrm.run_directory import RunDirectory as R; from pathlib import Path\n"
HOLD += "run = R.create(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


def test_a_lock_dies_with_its_owner(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="in use by another process"):
            RunDirectory.create(tmp_path)
        owner.send_signal(signal.SIGKILL)
    RunDirectory.create(tmp_path).close()


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
        from cachedlrm.errors import UserError
        from cachedlrm.run_directory import RunDirectory
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


def test_tensors_read_back(tmp_path):
    path = tmp_path / "x.safetensors"
    table, rows = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([7, 9])
    specs = {
        "table": (np.dtype(np.float32), (4, 3)),
        "rows": (np.dtype(np.int64), (2,)),
        "none": (np.dtype("f4"), (0, 3)),
    }
    write_tensors(path, specs, [table[:1], table[1:], rows, table[:0]], {"format": "1"})
    with safe_open(str(path), "numpy") as file:
        assert (file.get_tensor("table") == table).all()
        assert (file.get_tensor("rows") == rows).all()
        assert file.get_tensor("none").shape == (0, 3)
        assert file.metadata() == {"format": "1"}
    with pytest.raises(ValueError, match="bytes of data"):
        write_tensors(tmp_path / "y", specs, [table])
    with pytest.raises(UserError, match="cannot write"):
        write_tensors(tmp_path / "missing" / "y", specs, [table])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
