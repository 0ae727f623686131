"""Faults under a running trainer: one line, the exit status of the contract, and a store that opens again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cachedlrm.store.environment import DATA_FILE, FORMAT
from cachedlrm.train import main
from support.documents import ROOT
from support.runs import SMALL, one_line, train

RUN = ["--print-freq=1", "--steps=300", "--test-freq=-1", "--optimizer=adam", "--checkpoint-every=3"]
LMDB = ["--store=lmdb", "--host-budget=1MiB", "--gpu-cache-ratio=0.1"]
ARGUMENTS = [*SMALL, *RUN, *LMDB, "--data=zipf:samples=40000", "--arch-embedding-size=9000-30-20000-5"]
ARGUMENTS = [a for a in ARGUMENTS if a not in ("--data=zipf:samples=2000", "--arch-embedding-size=400-30-900-5")]


def start(run: Path, *arguments: str, limit_kib: int | None = None) -> subprocess.Popen[str]:
    given = {argument.split("=")[0] for argument in arguments}
    rest = [argument for argument in ARGUMENTS if argument.split("=")[0] not in given]
    command = [sys.executable, "-m", "cachedlrm.train", *rest, f"--run-dir={run}", *arguments]
    if limit_kib is not None:
        command = ["bash", "-c", f'ulimit -f {limit_kib}; exec "$0" "$@"', *command]
    root = ROOT
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, error = process.communicate(timeout=120)
    assert out == ""
    assert error.count("\n") == 1, error
    return process.returncode, error


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def resumed(run: Path, *arguments: str) -> dict:
    """The report of a run that goes on to its end."""
    assert main([f"--resume={run}", *(arguments or ["--ui=off", "--steps=60"])]) == 0
    return json.loads((run / "report.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    rest = [a for a in ARGUMENTS if not a.startswith("--steps")]
    assert main([*rest, "--steps=60", f"--run-dir={run}"]) == 0
    return json.loads((run / "report.json").read_text())["losses"]


def test_a_limit_on_file_sizes_ends_the_run_and_loses_nothing(tmp_path, whole):
    run = tmp_path / "run"
    status, error = ended(start(run, limit_kib=600))
    assert status == 2
    assert error.startswith("error: cannot write")
    assert "store" in error
    assert resumed(run)["losses"] == whole


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, whole):
    disk, run = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        status, error = ended(start(run, f"--store-path={disk / 'store'}"))
        assert status == 2
        assert error.startswith(f"error: cannot write the store in {disk / 'store'}: ")
        assert "No space left" in error
        assert subprocess.run(["mount", "-o", "remount,size=100m", disk], check=False).returncode == 0
        assert resumed(run)["losses"] == whole
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_store_cut_short_under_a_running_trainer(tmp_path):
    """Pages that cannot be read are a signal, not an error; see cachedlrm/store/mapped_file.py."""
    run = tmp_path / "run"
    process = start(run, "--prefetch-depth=0")
    wait_for_steps(run, 10, process)
    os.truncate(run / "store" / DATA_FILE, 8192)
    status, error = ended(process)
    assert status in (1, 2)  # 2 if the writer notices first
    assert error.startswith("error: cannot ")
    assert str(run / "store") in error


def test_a_store_cut_short_is_not_opened(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, *RUN[:-1], *LMDB, "--checkpoint-every=50") == 0
    capsys.readouterr()
    data = run / "store" / DATA_FILE
    os.truncate(data, 12288)
    message = one_line(capsys, main([f"--resume={run}", "--ui=off"]))
    assert str(run / "store") in message


def test_a_flipped_byte_is_never_trained_on(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*ARGUMENTS[:-1], "--steps=20", f"--run-dir={run}", "--arch-embedding-size=900-30-2000-5"]) == 2
    capsys.readouterr()
    rest = [a for a in ARGUMENTS if not a.startswith("--steps")]
    assert main([*rest, "--steps=20", f"--run-dir={run}"]) == 0
    capsys.readouterr()
    data = run / "store" / DATA_FILE
    content = bytearray(data.read_bytes())
    place = content.rindex(b"CLSG")  # of some segment; its records are behind its rows
    count = int.from_bytes(content[place + 4 : place + 8], "little")
    for record in range(count):  # whichever of them are live
        content[place + 32 + 4 * count + record * (4 + 4 * 24) + 40] ^= 0x10
    data.write_bytes(content)
    message = one_line(capsys, main([f"--resume={run}", "--ui=off", "--steps=300", "--store=host"]))
    assert "is damaged: the record of row" in message


def test_a_second_trainer_on_the_same_store_is_refused_and_the_first_goes_on(tmp_path, capsys):
    run = tmp_path / "run"
    process = start(run, "--steps=1000000")
    wait_for_steps(run, 3, process)
    assert "in use by process" in one_line(capsys, main([f"--resume={run}", "--ui=off"]))
    message = one_line(capsys, main([*ARGUMENTS, f"--run-dir={tmp_path / 'other'}", f"--store-path={run / 'store'}"]))
    assert f"is in use by process {process.pid}" in message
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = (run / "metrics.jsonl").read_bytes().count(b"\n") + 5
    assert resumed(run, "--ui=off", f"--steps={steps}")["steps"] == steps  # the lock died with its owner


@pytest.mark.parametrize("entry", ["format", "byte-order"])
def test_a_store_of_another_format_is_refused_with_both_sides(tmp_path, capsys, monkeypatch, entry):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if entry == "format":
            patch.setattr("cachedlrm.store.environment.FORMAT", 7)
        else:
            patch.setattr("cachedlrm.store.environment.sys.byteorder", "big")
        assert train(run, "--steps=3", *LMDB) == 0
    capsys.readouterr()
    message = one_line(capsys, main([f"--resume={run}", "--ui=off"]))
    assert (entry + (" 7" if entry == "format" else " big")) in message
    assert (entry + (f" {FORMAT}" if entry == "format" else " little")) in message


def test_a_read_only_place(tmp_path, capsys):
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(0o555)
    try:
        if os.access(place, os.W_OK):  # root may write anywhere
            mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=False)
            if mounted.returncode:
                pytest.skip("everything is writable for this user")
        message = one_line(capsys, train(tmp_path / "run", *RUN, *LMDB, f"--store-path={place / 'store'}"))
        assert str(place / "store") in message
        assert "--store-path" in message
    finally:
        subprocess.run(["umount", "-q", place], check=False)
        place.chmod(0o755)
