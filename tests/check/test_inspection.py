"""The check finds what was changed in a store, changes nothing itself, and stands beside a trainer."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import lmdb
import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.check.__main__ import main
from cachedlrm.check.inspection import _held, inspect_store
from cachedlrm.store.database import Delete, Put, open_database
from cachedlrm.store.environment import CHECKPOINT, META, group_name
from cachedlrm.store.segment import HEADER_BYTES, SegmentBuilder
from support.runs import SMALL, one_line, train
from support.stores import (
    CAPACITY,
    IDENTITY,
    ROWS,
    TOUCHED,
    WIDTH,
    changing,
    flip,
    make_store,
    read_segments,
    write_segment,
)

SHAPES = [(ROWS, WIDTH)]
SPILLING = [
    "--arch-embedding-size=4000-300-9000-50",
    "--store=lmdb",
    "--host-budget=150000",
    "--gpu-cache-ratio=0.02",
]
CHECK = [sys.executable, "-m", "cachedlrm.check"]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    path = tmp_path_factory.mktemp("healthy") / "store"
    make_store(path, later=3)
    return path


@pytest.fixture
def store(healthy, tmp_path):
    return Path(shutil.copytree(healthy, tmp_path / "store"))


def problems(path: Path) -> list[str]:
    findings = inspect_store(path)
    assert findings.num_problems >= len(findings.problems)
    assert all(problem.isprintable() for problem in findings.problems)
    return findings.problems


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "lock.mdb"}


# --- what is in order


def test_counts_of_a_healthy_store(store, capsys):
    before = files(store)
    segments = read_segments(store)
    findings = inspect_store(store)
    assert findings.problems == []
    (group,) = findings.groups
    assert (group.num_rows, group.record_bytes, group.live) == (ROWS, 4 * WIDTH, TOUCHED)
    assert group.segments + group.later_segments == len(segments)
    held = [int.from_bytes(value[4:8], "little") for value in segments.values()]
    assert group.records + group.later_records == sum(held)
    assert (group.later_segments, group.later_records) == (3, 3 * CAPACITY)
    assert findings.num_pages * findings.page_bytes == (store / "data.mdb").stat().st_size
    assert 0 < findings.free_pages < findings.num_pages
    assert main([str(store)]) == 0
    out = capsys.readouterr().out
    assert "after batch 7, with 2 dense tensors" in out
    assert "group 0: 3 more segments with 300 records are not committed by a checkpoint" in out
    assert out.endswith("no problem found\n")
    assert files(store) == before


def test_free_pages_are_those_that_nothing_needs(store, tmp_path):
    findings = inspect_store(store)
    (tmp_path / "copy").mkdir()
    with lmdb.open(str(store), max_dbs=9) as environment:
        environment.copy(str(tmp_path / "copy"), compact=True)
    copy = inspect_store(tmp_path / "copy")
    assert copy.free_pages == 0
    assert copy.num_pages == findings.num_pages - findings.free_pages


def test_a_run_that_evicts_and_goes_on(tmp_path, capsys):
    options = [*SPILLING, "--checkpoint-every=1"]
    assert train(tmp_path / "run", "--steps=20", *options) == 0
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 0
    assert "after batch 20" in capsys.readouterr().out
    assert main([str(tmp_path / "run" / "store")]) == 0
    findings = inspect_store(tmp_path / "run" / "store")
    assert findings.groups[0].records > findings.groups[0].live > 1267  # more than device and host hold
    assert train(tmp_path / "other", *options, f"--store-path={tmp_path / 'elsewhere'}", "--steps=2") == 0
    capsys.readouterr()
    assert main([str(tmp_path / "other")]) == 0
    assert str(tmp_path / "elsewhere") in capsys.readouterr().out


def test_a_store_without_a_checkpoint(tmp_path, capsys):
    make_store(tmp_path, has_checkpoint=False)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "none yet" in out
    assert "not committed by a checkpoint" in out


def test_a_segment_that_comes_and_goes_leaves_no_hole_at_the_end(tmp_path):
    """LMDB took pages for it and never wrote them, so that the file looked cut short."""
    builder = SegmentBuilder(4000, 64)
    builder.append(np.arange(4000), np.zeros((4000, 64), np.float32))
    database = open_database(tmp_path, IDENTITY, SHAPES, 256 << 20, resumes=False)
    operations = [Put(0, number, builder.finish(number).copy()) for number in range(3)]
    for operation in [*operations, Delete(0, 0), Delete(0, 1), Delete(0, 2)]:
        database._queue.put(operation)  # `write` might commit between them
    database.wait()
    database.close()
    assert problems(tmp_path) == []


# --- what is not


@pytest.mark.parametrize("place", [0, 1])
def test_a_flipped_byte_in_a_record(store, place, capsys):
    sequence, value = list(read_segments(store).items())[2]
    count = int.from_bytes(value[4:8], "little")
    rows = np.frombuffer(value, "<u4")[8 : 8 + count]
    start = HEADER_BYTES + 4 * count
    for change in (start + 3, start + 4, start + (4 + 4 * WIDTH) * count - 1):  # a checksum, the first byte, the last
        write_segment(store, sequence, flip(value, change))
        row = rows[(change - start) // (4 + 4 * WIDTH)]
        wanted = f"group 0, segment {sequence}: the record of row {row} is not what was written"
        assert problems(store) == [wanted]
    assert main([str(store)]) == 1
    assert f"\nwrong: {wanted}\n1 problems\n" in capsys.readouterr().out


def test_every_damaged_record_counts_and_few_are_printed(store, capsys):
    sequence, value = next(iter(read_segments(store).items()))
    count = int.from_bytes(value[4:8], "little")
    start = HEADER_BYTES + 4 * count
    for place in range(start, start + (4 + 4 * WIDTH) * count, 4 + 4 * WIDTH):
        value = flip(value, place)
    write_segment(store, sequence, value)
    assert main([str(store)]) == 1
    out = capsys.readouterr().out
    assert out.count("wrong: ") == 20
    assert f"\nand {count - 20} more\n{count} problems\n" in out


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (0, "does not begin as a segment"),
        (4, "records"),
        (8, "columns, not 16"),
        (12, "checksum of its rows"),
        (16, "checksum of its rows"),
        (31, "checksum of its rows"),
        (HEADER_BYTES, "checksum of its rows"),
        (HEADER_BYTES + 4 * CAPACITY - 1, "checksum of its rows"),
    ],
)
def test_a_flipped_byte_in_header_or_rows(store, place, words):
    sequence, value = next(item for item in read_segments(store).items() if item[1][4] == CAPACITY)
    write_segment(store, sequence, flip(value, place))
    (problem,) = problems(store)
    assert f"group 0, segment {sequence}: " in problem
    assert words in problem


def test_a_segment_under_another_number(store):
    values = read_segments(store)
    sequence, value = next(iter(values.items()))
    write_segment(store, max(values) + 9, value)
    assert problems(store) == [f"group 0, segment {max(values) + 9}: it says it is segment {sequence}"]


@pytest.mark.parametrize("key", [b"\0", b"\0" * 9, b"\xff" * 8, b"\xff" * 511])
def test_a_key_that_is_no_number(store, key):
    with changing(store, group_name(0)) as (transaction, handle):
        transaction.put(key, b"x" * 4080, db=handle)
    (problem,) = problems(store)
    assert f"group 0: {key[:20].hex()} is no segment's key" in problem
    refused = pytest.raises(UserError, match=f"damaged: group 0: {key[:20].hex()}")
    with closing(open_database(store, IDENTITY, SHAPES, 1 << 20, resumes=True)) as database, refused:
        list(database.segments(0))


@pytest.mark.parametrize("place", [0, 4, 11, 12, 60, -1])
def test_a_flipped_byte_in_the_checkpoint(store, place):
    with changing(store, META) as (transaction, handle):
        value = transaction.get(CHECKPOINT, db=handle)
        transaction.put(CHECKPOINT, flip(value, place % len(value)), db=handle)
    findings = inspect_store(store)
    assert findings.problems == ["the checksum of the checkpoint is wrong"]
    assert findings.checkpoint is None
    assert findings.groups[0].later_segments == 0  # there is no telling


@pytest.mark.parametrize(
    ("name", "theirs", "words"),
    [
        ("format", "3", "of format 3, and this release reads format 2 on this machine"),
        ("byte-order", "odd", f"of byte-order odd, and this release reads byte-order {sys.byteorder}"),
    ],
)
def test_a_store_of_another_kind_is_named(store, name, theirs, words, capsys):
    set_meta(store, b"identity", {"format": "2", "byte-order": sys.byteorder, **IDENTITY, name: theirs})
    (problem,) = problems(store)
    assert words in problem
    assert main([str(store)]) == 1


def set_meta(path: Path, key: bytes, value: object) -> None:
    with changing(path, META) as (transaction, handle):
        transaction.put(key, json.dumps(value).encode(), db=handle)


def test_a_store_of_the_release_before_says_its_shape_once_it_is_opened(store, capsys):
    with changing(store, META) as (transaction, handle):
        transaction.delete(b"shapes", db=handle)
    before = files(store)
    message = one_line(capsys, main([str(store)]))
    assert "does not say the shape of its groups; go on with it once (train --resume RUN_DIR" in message
    assert files(store) == before
    open_database(store, IDENTITY, SHAPES, 1 << 20, resumes=True).close()
    assert problems(store) == []


def test_another_shape_than_that_of_the_segments(store):
    set_meta(store, b"shapes", [[ROWS, 8]])
    assert "records of 16 columns, not 8" in problems(store)[0]
    set_meta(store, b"shapes", [[8, WIDTH]])
    assert re.search(r"it holds row \d+ of 8$", problems(store)[0])
    for shapes in ([[9 << 60, 16]], [[-1, 16]], [["8", 16]], [8], {"a": 1}, None):
        set_meta(store, b"shapes", shapes)
        assert problems(store) == ["it does not say the shape of its groups"]
    set_meta(store, b"identity", ["format"])
    assert "does not say what it is of" in problems(store)[0]


def test_what_is_missing_or_too_much(store):
    with changing(store, b"segments.1"):
        pass
    assert problems(store) == ["b'segments.1' does not belong there"]
    with changing(store, group_name(0)) as (transaction, handle):
        transaction.drop(handle)
    assert problems(store)[1:] == ["group 0 is missing"]
    with changing(store, META) as (transaction, handle):
        transaction.delete(b"identity", db=handle)
    assert problems(store) == ["it does not say what it is of"]


def run_check(path: Path) -> tuple[int, list[str]]:
    """Exit status and lines, where a signal may end the check."""
    done = subprocess.run([*CHECK, str(path)], capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("keep", [0.6, 0.1])
def test_a_file_that_was_cut_short(store, keep):
    """LMDB reads through a map: where the check does not see beforehand what is missing, a signal says it."""
    with changing(store, META) as (transaction, handle):
        transaction.put(b"large", bytes(1 << 20), db=handle)
    size = (store / "data.mdb").stat().st_size
    os.truncate(store / "data.mdb", int(size * keep))
    (problem,) = problems(store)
    assert re.search(rf"cut short: {int(size * keep):,} bytes of {size:,}", problem)


def test_a_small_file_that_was_cut_short(store):
    os.truncate(store / "data.mdb", 100_000)
    status, lines = run_check(store)
    assert status == 1
    assert lines == [
        f"error: cannot read {store / 'data.mdb'}: the disk failed, or the file was cut short or is damaged; "
        "put back a copy"
    ]


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_that_is_hardly_there(store, size, capsys):
    os.truncate(store / "data.mdb", size)
    assert main([str(store)]) == 1
    assert capsys.readouterr().out.count("wrong: ") == 1


def test_damage_to_lmdbs_own_pages(store):
    whole = (store / "data.mdb").read_bytes()
    for start in (16, 20, 40, 88, 92, 96, 128, 136):  # fields of LMDB's meta pages
        damaged = bytearray(whole)
        for page in (0, 1):  # one of the two is used, by turns
            damaged[4096 * page + start : 4096 * page + start + 4] = b"\xa5" * 4
        (store / "data.mdb").write_bytes(damaged)
        assert len(problems(store)) == 1, start


def test_a_segment_that_is_missing(tmp_path):
    make_store(tmp_path)
    assert problems(tmp_path) == []
    with changing(tmp_path, group_name(0)) as (transaction, handle):
        cursor = transaction.cursor(handle)
        assert cursor.last()  # the newest, so its records are live, and older copies take their place
        cursor.delete()
    assert problems(tmp_path) == ["group 0 lacks a segment that the checkpoint needs"]


def test_a_segment_that_lmdb_lost(store):
    """LMDB counts the entries of a database, where it notes its root."""
    count = len(read_segments(store))
    content = bytearray((store / "data.mdb").read_bytes())
    name = content.find(group_name(0))
    while name >= 0:
        place = name + len(group_name(0)) + 32
        content[place : place + 8] = (count + 1).to_bytes(8, sys.byteorder)
        name = content.find(group_name(0), name + 1)
    (store / "data.mdb").write_bytes(content)
    assert problems(store) == [f"group 0 has {count} segments of {count + 1}"]


# --- where it may be used


def test_beside_a_trainer(tmp_path):
    run = tmp_path / "run"
    options = [*SPILLING, "--data=zipf:samples=20000", "--checkpoint-every=1", "--steps=1000000", f"--run-dir={run}"]
    given = {option.split("=")[0] for option in options}
    small = [option for option in SMALL if option.split("=")[0] not in given]
    command = [sys.executable, "-m", "cachedlrm.train", *small, *options]
    trainer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        seen = set()
        while len(seen) < 5:  # of its states
            assert trainer.poll() is None, trainer.stderr.read()
            if not (run / "store" / "data.mdb").exists():
                time.sleep(0.05)
                continue
            findings = inspect_store(run / "store")
            assert findings.problems == []
            if findings.checkpoint is not None:
                seen.add(findings.checkpoint.batches)
        trainer.send_signal(signal.SIGINT)
        error = trainer.communicate()[1]
        assert trainer.returncode == 130, error
        step = int(re.search(r"interrupted after step (\d+)", error)[1])
        last = inspect_store(run / "store")
        assert last.problems == []
        assert last.checkpoint.batches == step
    finally:
        trainer.kill()
        trainer.wait()
        trainer.stderr.close()


def test_a_read_only_file_system(store, tmp_path):
    script = f'mount --bind {store} {store} && mount -o remount,ro,bind {store} && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", script, "-"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    (store / "lock.mdb").unlink()
    done = subprocess.run([*inside, *CHECK, str(store)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no problem found" in done.stdout
    assert not (store / "lock.mdb").exists()


def test_where_locks_cannot_be_written_trainers_are_kept_out(store, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (store / "lock.mdb").unlink()
    assert main([str(store)]) == 0
    assert not (store / "lock.mdb").exists()
    capsys.readouterr()
    with (store / "store.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "a trainer uses it; check it as a user who may write" in one_line(capsys, main([str(store)]))


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "store.lock"])
def test_nothing_outside_is_written_through_a_link(store, tmp_path, name, capsys):
    """A store that somebody sent could otherwise have LMDB write into any file of the user's."""
    victim = tmp_path / "victim"
    victim.write_bytes((store / name).read_bytes() if name == "data.mdb" else b"precious")
    (store / name).unlink()
    (store / name).symlink_to(victim)
    before = victim.read_bytes()
    assert main([str(store)]) == (0 if name == "store.lock" else 1)  # the check leaves that lock alone
    with pytest.raises(UserError, match="symbolic links" if name == "store.lock" else f"{name} is not a regular file"):
        open_database(store, IDENTITY, SHAPES, 1 << 20, resumes=True)
    assert victim.read_bytes() == before


def test_a_store_that_cannot_be_locked_is_refused_on_windows(tmp_path, monkeypatch):
    (tmp_path / "store.lock").touch()
    monkeypatch.setattr("cachedlrm.check.inspection.os.access", lambda *_: False)
    monkeypatch.setattr("cachedlrm.check.inspection.sys.platform", "win32")
    with (
        pytest.raises(UserError, match=r"without writing to .*lock\.mdb; check it as a user who may write there"),
        _held(tmp_path),
    ):
        pass
