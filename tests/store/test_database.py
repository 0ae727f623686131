"""A store that is written by a thread of its own: in order, and wholly or not at all."""

import os
import threading
from contextlib import closing

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.store import database as database_module
from cachedlrm.store.database import Delete, Meta, Put, copy_store, open_database
from support.logs import SHAPES, opened
from support.stores import make_store, read_segments


def put(sequence: int, num_words: int = 1024) -> Put:
    return Put(0, sequence, np.full(num_words, sequence, np.uint32))


class Log:
    """Keeps what it is told: the first word of each segment."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def stored(self, sequence: int, address: int) -> None:
        self.words[sequence] = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint32 * 1).from_address(address))[0]

    def sequences(self) -> list[int]:
        return list(self.words)


def test_what_is_written_is_there_when_it_was_waited_for(tmp_path):
    with closing(opened(tmp_path)) as database:
        for sequence in (1, 2, 256):
            database.write(put(sequence))
        database.write(Delete(0, 2))
        database.write(Meta(b"key", b"value"))
        database.write(Meta(b"key", b"other"))
        database.wait()
        assert [(number, np.frombuffer(value, np.uint32)[0]) for number, value in database.segments(0)] == [
            (1, 1),
            (256, 256),
        ]
        assert database.read_meta(b"key") == b"other"
        assert database.read_meta(b"none") is None


def test_closing_writes_what_is_queued(tmp_path):
    database = opened(tmp_path)
    database.write(put(1))
    database.close()
    assert read_segments(tmp_path).keys() == {1}


def test_a_log_is_told_where_its_segments_lie_when_they_are_written_and_when_the_map_grows(tmp_path):
    log = Log()
    with closing(opened(tmp_path, map_bytes=64 << 10)) as database:
        database.attach(0, log)
        database.write(put(7))
        database.wait()
        assert log.words == {7: 7}
        log.words[7] = 0
        database.write(put(8, 1 << 15))  # more than the map holds
        database.wait()
        assert log.words == {7: 7, 8: 8}


def test_the_writer_does_not_wait_for_more_while_a_large_segment_waits_for_room(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "_GATHERED_BYTES", 4 << 20)
    database = open_database(tmp_path, {"model": "a"}, SHAPES, 64 << 10, resumes=False, map_bytes=1 << 20)
    thread = threading.Thread(
        target=lambda: [
            database.write(Put(0, sequence, np.zeros(words, np.uint32)))
            for sequence, words in enumerate([1_024, 1 << 16, 1_024, 1 << 16])
        ],
        daemon=True,
    )
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    database.wait()
    assert [sequence for sequence, _ in database.segments(0)] == [0, 1, 2, 3]
    database.close()


def test_a_writer_without_memory_is_one_line(tmp_path, monkeypatch):
    database = opened(tmp_path)

    def commit(operations):
        raise MemoryError

    monkeypatch.setattr(database, "_commit", commit)
    database.write(Delete(0, 1))
    with pytest.raises(UserError, match=r"cannot write the store in .*: out of memory; .* is kept$"):
        database.wait()
    database.close()


def test_a_copy_holds_the_same_segments_and_is_no_larger(tmp_path):
    make_store(tmp_path / "a")
    copy_store(tmp_path / "a", tmp_path / "b")
    assert read_segments(tmp_path / "a") == read_segments(tmp_path / "b")
    assert (tmp_path / "b" / "data.mdb").stat().st_size <= (tmp_path / "a" / "data.mdb").stat().st_size
    with pytest.raises(UserError, match="already holds a store"):
        copy_store(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match="c holds no store"):
        copy_store(tmp_path / "c", tmp_path / "d")


def test_one_trainer_at_a_time(tmp_path):
    database = opened(tmp_path)
    with pytest.raises(UserError, match=rf"in use by process {os.getpid()}"):
        opened(tmp_path)
    database.close()
    opened(tmp_path).close()
