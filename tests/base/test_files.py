"""One writer of whole files, one maker of folders, one lock."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import lock, make_folders, remove_folders, replacing, whole_file, writable_file


def test_a_file_takes_its_place_when_it_is_complete(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"before")
    with whole_file(path) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_within_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(b"before")

    def write() -> None:
        with whole_file(path) as file:
            file.write(b"after")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_name_do_not_mix(tmp_path):
    other = (
        "import sys; from pathlib import Path; from cachedlrm.base.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file: file.write(b'theirs')"
    )
    with whole_file(tmp_path / "x") as file:
        file.write(b"our")
        subprocess.run([sys.executable, "-c", other, str(tmp_path / "x")], check=True)
        file.write(b"s")
    assert (tmp_path / "x").read_bytes() == b"ours"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    killed = (
        "import os, signal, sys; from pathlib import Path; from cachedlrm.base.files import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file: os.kill(os.getpid(), signal.SIGTERM)"
    )
    for name in ("x[1]", "other"):
        subprocess.run([sys.executable, "-c", killed, str(tmp_path / name)], check=False)
    of_living = tmp_path / f".x[1].{os.getppid()}.partial"
    of_living.touch()
    left = list(tmp_path.glob(".other.*.partial"))
    assert len(list(tmp_path.iterdir())) == 3
    assert len(left) == 1
    with whole_file(tmp_path / "x[1]") as file:
        file.write(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "x[1]", of_living, *left])


def test_a_writer_that_wrote_no_file_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*x: No such file"), replacing(tmp_path / "x"):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "free space there"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "choose another"),
        (errno.EROFS, "choose another"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_advice(tmp_path, monkeypatch, number, words):
    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    with (
        pytest.raises(UserError, match=re.escape(words)) as caught,
        whole_file(tmp_path / "x", "choose another") as file,
    ):
        file.write(b"x")
    message = str(caught.value)
    assert "\n" not in message
    assert os.strerror(number) in message
    assert str(tmp_path / "x") in message
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_all_or_none(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: object) -> None:
        if path.name == "c":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        mkdir(path, *arguments)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="free space there or choose another place"):
        make_folders(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_made_are_told_and_removed_again(tmp_path):
    (tmp_path / "a").mkdir()
    made = make_folders(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a" / "b" / "c", tmp_path / "a" / "b"]
    assert make_folders(tmp_path / "a" / "b" / "c") == []
    (tmp_path / "a" / "b" / "theirs").touch()
    remove_folders(made)
    assert sorted(path.name for path in (tmp_path / "a").rglob("*")) == ["b", "theirs"]


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="a is a file, not a directory; take another"):
        make_folders(tmp_path / "a", "take another")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory; take another"):
        make_folders(tmp_path / "a" / "b", "take another")


def test_a_lock_names_its_owner_and_is_taken_when_it_is_free(tmp_path):
    held = lock(tmp_path / "lock", "the place", "wait")
    for _ in range(2):  # the refused one leaves the owner's number in its place
        with pytest.raises(UserError, match=f"^the place is in use by process {os.getpid()}; wait$"):
            lock(tmp_path / "lock", "the place", "wait")
    (tmp_path / "lock").write_text("")  # as before the owner has written its number
    with pytest.raises(UserError, match="by another process; wait"):
        lock(tmp_path / "lock", "the place", "wait")
    held.release()
    lock(tmp_path / "lock", "the place", "wait").release()


def test_no_lock_is_written_through_a_link(tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="symbolic links"):
        lock(tmp_path / "lock", "the place", "wait")
    assert (tmp_path / "theirs").read_text() == "precious"


def test_where_a_file_may_be_written(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.json").write_text("{}")
    (tmp_path / "link").symlink_to(run / "report.json")
    os.mkfifo(tmp_path / "pipe")

    def asked(path: Path) -> Path:
        return writable_file(path, "--out", [run], ["report.json"])

    assert asked(tmp_path / "new.json") == tmp_path / "new.json"
    assert asked(run / "other.json") == run / "other.json"
    for path, why in {
        run: "is a directory; name a file",
        tmp_path / "pipe": "is not a regular file; name another one",
        tmp_path / "link": "is report.json of the run itself; name another file",
        tmp_path / "none" / "f": f"{tmp_path / 'none'} is not a folder; make it or name another file",
    }.items():
        with pytest.raises(UserError) as refused:
            asked(path)
        assert str(refused.value).startswith(f"--out {path}")
        assert str(refused.value).endswith(why)
