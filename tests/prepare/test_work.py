"""A preparation may be killed at any time; the same command goes on and leaves the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock

from cachedlrm.prepare import formats, pipeline, reading, spool, tables, vocabulary, work
from cachedlrm.prepare.__main__ import main
from support.documents import TESTS
from support.raw_criteo import contents, lines, prepare, write
from support.runs import one_line

LINES = lines(300)
EVENTS = [(os, "fsync"), (os, "replace"), (shutil, "rmtree"), (Path, "rename"), (Path, "unlink"), (Path, "replace")]
CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from prepare.test_work import EVENTS, make_small, main
owner, name = EVENTS[int(sys.argv[2])]
function, calls = getattr(owner, name), 0
def deadly(*arguments, **options):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*arguments, **options)
make_small(setattr)
setattr(owner, name, deadly)
sys.exit(main(sys.argv[4:]))
"""


class KilledError(BaseException):
    """Stands for SIGKILL where a process of its own would take too long: nothing here catches it."""


def make_small(set_attribute) -> None:
    """Blocks of a few lines, each on record at once; hash tables that need several ranges."""
    set_attribute(formats, "_LARGEST_BLOCK", 3000)
    set_attribute(formats, "_LEAST_BLOCK", 1000)
    set_attribute(reading, "_COMMIT_S", 0.0)
    set_attribute(pipeline, "SLOT_BYTES", 1 << 23)
    set_attribute(pipeline, "_resident_bytes", lambda: 400 << 20)  # whatever other tests have left in memory
    set_attribute(vocabulary, "_FIRST_SLOTS", 4)


@pytest.fixture
def days(tmp_path, monkeypatch):
    """Two files, one with bad lines, and the options of a command for them."""
    make_small(monkeypatch.setattr)
    write(tmp_path / "days" / "day_0", [*LINES[:100], "bad", *LINES[100:200]])
    write(tmp_path / "days" / "day_1", LINES[200:])
    return [tmp_path / "days", "--skip-bad-lines", "--min-count=2"]


def uninterrupted(tmp_path: Path, days: list) -> dict[str, bytes]:
    assert prepare("criteo", *days, "--out", tmp_path / "whole") == 0
    return contents(tmp_path / "whole")


@pytest.mark.parametrize("every", [101, 401])
def test_killed_again_and_again_and_resumed(tmp_path, days, monkeypatch, every):
    wanted = uninterrupted(tmp_path, days)
    events = 0

    def deadly(function):
        def call(*arguments, **options):
            nonlocal events
            events += 1
            if events % every == 0:  # what one record takes is less, so that every process gets a bit further
                raise KilledError
            return function(*arguments, **options)

        return call

    for owner, name in EVENTS:
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))
    kills = 0
    while True:
        try:
            assert prepare("criteo", *days, "--out", tmp_path / "out", "--threads=1") == 0
            break
        except KilledError:
            kills += 1
            assert kills < 200
    assert kills
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize(
    ("event", "number"),
    [
        (0, 200),  # files are read
        (3, 7),  # a table is complete
        (1, 3),  # outputs get their names
        (2, 27),  # the working folder goes
    ],
)
def test_sigkill_and_resumed(tmp_path, days, event, number):
    wanted = uninterrupted(tmp_path, days)
    arguments = ["criteo", *map(str, days), "--out", str(tmp_path / "out"), "--ui=off"]
    child = [sys.executable, "-c", CHILD, str(TESTS), str(event), str(number), *arguments]
    assert subprocess.run(child, check=False).returncode == -signal.SIGKILL
    assert main(arguments) == 0
    assert contents(tmp_path / "out") == wanted


def test_what_was_parsed_is_not_parsed_again(tmp_path, days, monkeypatch, capsys):
    wanted = uninterrupted(tmp_path, days)
    append, samples = spool.SampleSpool.append, []

    def fail_late(self, parsed):
        samples.append(len(parsed))
        if sum(samples) > 250:
            raise KilledError
        append(self, parsed)

    monkeypatch.setattr(spool.SampleSpool, "append", fail_late)
    with pytest.raises(KilledError):
        prepare("criteo", *days, "--out", tmp_path / "out")
    before, samples = sum(samples[:-1]), []

    def note(self, parsed):
        samples.append(len(parsed))
        append(self, parsed)

    monkeypatch.setattr(spool.SampleSpool, "append", note)
    assert main(["criteo", *map(str, days), "--out", str(tmp_path / "out"), "--ui=plain"]) == 0
    assert "resuming where it was interrupted" in capsys.readouterr().out
    assert before + sum(samples) == 300
    assert contents(tmp_path / "out") == wanted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "place", [(spool.SampleSpool, "commit"), (tables.TableBuilder, "_map"), (work.Work, "publish")]
)
def test_a_signal_says_that_the_command_resumes(tmp_path, days, monkeypatch, capsys, number, place):
    wanted = uninterrupted(tmp_path, days)
    function, calls = getattr(*place), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), number)
            if threading.current_thread() is not threading.main_thread():
                arguments[0]._stop.wait(60)  # the main thread has it
        return function(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(*place, interrupted)
        assert prepare("criteo", *days, "--out", tmp_path / "out") == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes\n"
    assert prepare("criteo", *days, "--out", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == wanted


# --- one folder, one command


@pytest.fixture
def interrupted(tmp_path, days, monkeypatch):
    """An output that is half done."""
    with monkeypatch.context() as patch:
        patch.setattr(tables.TableBuilder, "_map", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("criteo", *days, "--out", tmp_path / "out")
    assert (tmp_path / "out" / ".prepare").is_dir()
    return tmp_path / "out"


def test_a_half_done_output_is_no_data(interrupted, capsys):
    assert sorted(path.name for path in interrupted.iterdir()) == [".prepare", "prepare.lock"]


def test_another_command_is_refused(interrupted, days, capsys):
    for option, words in (("--min-count=3", "its min_count was 2"), ("--test-files=1", "its test_files was None")):
        arguments = [*days[:2], option] if "min" in option else [*days, option]
        message = one_line(capsys, prepare("criteo", *arguments, "--out", interrupted))
        assert f"of another command ({words}); repeat that one, remove " in message


def test_memory_threads_and_display_may_differ(interrupted, days, tmp_path):
    assert prepare("criteo", *days, "--out", interrupted, "--memory=1GiB", "--threads=3") == 0
    assert contents(interrupted) == uninterrupted(tmp_path, days)


def test_what_was_made_of_a_file_that_has_changed_is_made_anew(interrupted, tmp_path, days, capsys):
    write(days[0] / "day_1", LINES[150:200])
    assert main(["criteo", *map(str, days), "--out", str(interrupted)]) == 0
    assert "files have changed since it was interrupted; starting over\n" in capsys.readouterr().out
    assert contents(interrupted) == uninterrupted(tmp_path, days)


def test_other_files_are_another_command(interrupted, days, capsys):
    (days[0] / "day_1").rename(days[0] / "day_2")
    message = one_line(capsys, prepare("criteo", *days, "--out", interrupted))
    assert "of another command (its files were different or have changed); " in message


def test_a_bad_line_may_be_left_out_or_corrected_afterwards(tmp_path, days, capsys):
    wanted = uninterrupted(tmp_path, days)
    for out in ("a", "b"):
        message = one_line(capsys, prepare("criteo", days[0], "--min-count=2", "--out", tmp_path / out))
        assert "day_0: line 101: " in message
    assert prepare("criteo", *days, "--out", tmp_path / "a") == 0
    assert contents(tmp_path / "a") == wanted
    write(days[0] / "day_0", LINES[:200])
    assert prepare("criteo", days[0], "--min-count=2", "--out", tmp_path / "b") == 0
    made = contents(tmp_path / "b")
    assert {name for name in wanted if made[name] != wanted[name]} == {"prepared.json"}  # sizes and skipped lines


def test_lines_that_are_left_out_stay_so(interrupted, days, capsys):
    message = one_line(capsys, prepare("criteo", days[0], "--min-count=2", "--out", interrupted))
    assert "1 lines are left out already; add --skip-bad-lines, or remove " in message


def test_a_damaged_working_folder_is_refused(tmp_path, days, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        append, calls = spool.SampleSpool.append, []
        patch.setattr(spool.SampleSpool, "append", lambda *a: calls.append(append(*a)) if len(calls) < 5 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("criteo", *days, "--out", tmp_path / "out")
    (tmp_path / "out" / ".prepare" / "labels.bin").write_bytes(b"")
    message = one_line(capsys, prepare("criteo", *days, "--out", tmp_path / "out"))
    assert f"{tmp_path / 'out' / '.prepare'} is damaged; remove it to begin anew" in message


def test_a_complete_output_is_kept(tmp_path, days, capsys):
    before = uninterrupted(tmp_path, days)
    assert main(["criteo", *map(str, days), "--out", str(tmp_path / "whole")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'whole'} is complete\n"
    message = one_line(capsys, prepare("criteo", *days[:2], "--min-count=3", "--out", tmp_path / "whole"))
    assert "already holds data prepared by another command" in message
    assert contents(tmp_path / "whole") == before


@pytest.mark.parametrize("name", ["day_0_dense.npy", "test"])
def test_other_peoples_files_are_kept(tmp_path, days, capsys, name):
    write(tmp_path / "out" / name, ["theirs"])
    assert f"already holds {name}" in one_line(capsys, prepare("criteo", *days, "--out", tmp_path / "out"))
    assert (tmp_path / "out" / name).read_text() == "theirs\n"


def test_two_preparations_exclude_each_other(tmp_path, days, capsys):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / work.LOCK_FILE):
        message = one_line(capsys, prepare("criteo", *days, "--out", tmp_path / "out"))
    assert f"{tmp_path / 'out'} is in use by another process; wait for it, or choose another --out" in message
    assert prepare("criteo", *days, "--out", tmp_path / "out") == 0


def test_a_full_disk_is_the_users_one_line(tmp_path, days, monkeypatch, capsys):
    def full(self, samples):
        raise OSError(28, "No space left on device", str(tmp_path / "out" / ".prepare"))

    with monkeypatch.context() as patch:
        patch.setattr(spool.SampleSpool, "append", full)
        message = one_line(capsys, prepare("criteo", *days, "--out", tmp_path / "out"))
    assert "No space left on device; free space there or choose another --out; then repeat the command" in message
    assert prepare("criteo", *days, "--out", tmp_path / "out") == 0


def test_a_command_that_is_refused_leaves_nothing(tmp_path, days, capsys):
    write(tmp_path / "bad", [*LINES[:5], "nonsense"])
    assert "line 6: 1 fields" in one_line(capsys, prepare("criteo", tmp_path / "bad", "--out", tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    one_line(capsys, prepare("criteo", tmp_path / "bad", "--out", tmp_path / "mine"))
    assert list((tmp_path / "mine").iterdir()) == []
    assert prepare("criteo", *days, "--out", tmp_path / "mine") == 0


def test_what_another_process_left_is_kept(tmp_path, days, capsys):
    folder = tmp_path / "out" / ".prepare"
    write(folder / "state.json", ["{"])
    assert "state.json is garbled" in one_line(capsys, prepare("criteo", *days, "--out", tmp_path / "out"))
    assert (folder / "state.json").exists()


def test_a_command_takes_the_place_of_one_that_recorded_nothing(tmp_path, days, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(spool.SampleSpool, "append", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare("criteo", *days, "--out", tmp_path / "out")
    assert prepare("criteo", *days[:2], "--out", tmp_path / "out", "--min-count=3") == 0
