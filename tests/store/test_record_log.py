"""The log and the store above it against dictionaries: what is read, what a checkpoint keeps, what is reclaimed."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.store import database as database_module
from cachedlrm.store import record_log as record_log_module
from cachedlrm.store.database import Database, Delete, Meta, Put, open_database
from cachedlrm.store.environment import CHECKPOINT, DATA_FILE
from cachedlrm.store.lmdb_store import LmdbStore, frames_for
from cachedlrm.store.record_log import RecordLog
from cachedlrm.store.segment import SegmentBuilder, parse_segment, segment_capacity, xxh32

WIDTH, NUM_ROWS, CAPACITY = 3, 500, 16
SHAPES = [(NUM_ROWS, WIDTH)]


@pytest.fixture(autouse=True)
def small_transactions(monkeypatch):
    """So that segments are written, and moved, all the time."""
    monkeypatch.setattr(database_module, "_GATHERED_BYTES", 1)
    monkeypatch.setattr(record_log_module, "SPARE_SEGMENTS", 1)


def opened(path: Path, resumes: bool = False, map_bytes: int = 1 << 20, **identity: str) -> Database:
    return open_database(path, identity or {"model": "a"}, SHAPES, 1 << 20, resumes=resumes, map_bytes=map_bytes)


def new_log(database: Database, book: AddressBook) -> RecordLog:
    return RecordLog(database, 0, WIDTH, book, NUM_ROWS, capacity=CAPACITY)


def checkpoint(database: Database, log: RecordLog) -> tuple[int, int]:
    """The end of the log: what `RecordLog.load` takes."""
    end = log.begin_checkpoint(), log.fingerprint()
    database.write(Meta(CHECKPOINT, json.dumps(end).encode()))
    log.end_checkpoint()
    return end


def records(addresses: np.ndarray, version: int) -> np.ndarray:
    values = np.full((len(addresses), WIDTH), version, np.float32)
    values[:, 0] = addresses
    return values


def contents(log: RecordLog, addresses: list[int]) -> dict[int, float]:
    out = np.empty((len(addresses), WIDTH), np.float32)
    log.read(np.array(addresses, np.int64), out)
    assert out[:, 0].tolist() == addresses
    return dict(zip(addresses, out[:, 1].tolist(), strict=True))


def scanned(source: RecordLog | LmdbStore) -> dict[int, float]:
    found = [(addresses, values) for addresses, values in source.scan() if len(addresses)]
    for addresses, values in found:
        assert values[:, 0].tolist() == addresses.tolist()
    pairs = [
        pair for addresses, values in found for pair in zip(addresses.tolist(), values[:, 1].tolist(), strict=True)
    ]
    assert len(dict(pairs)) == len(pairs)  # each once
    return dict(pairs)


APPEND = st.sets(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=60)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.one_of(APPEND, st.just("checkpoint"), st.just("crash")), max_size=30))
def test_a_log_is_a_dictionary_that_a_crash_sets_back_to_its_checkpoint(tmp_path_factory, operations):
    path = tmp_path_factory.mktemp("log")
    database = opened(path)
    book = AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))  # address = row, whatever a crash makes of the order of touches
    log = new_log(database, book)
    model: dict[int, float] = {}
    kept: dict[int, float] = {}
    is_kept = False
    for version, operation in enumerate(operations):
        if operation == "checkpoint":
            checkpoint(database, log)
            is_kept, kept = True, dict(model)
        elif operation == "crash" and is_kept:
            database.wait()  # all that the log has is on the disk, and more than the checkpoint knows
            database.close()
            database = opened(path, resumes=True)
            log = new_log(database, book)
            log.load(*json.loads(database.read_meta(CHECKPOINT)))
            model = dict(kept)
        elif isinstance(operation, set):
            addresses = np.array(sorted(operation), np.int64)
            log.append(addresses, records(addresses, version))
            model |= dict.fromkeys(addresses.tolist(), version)
        assert contents(log, sorted(model)) == model
        assert log.num_live == len(model)
        assert scanned(log) == model
    database.close()


def test_no_segment_takes_the_number_of_one_that_a_crash_made_worthless(tmp_path):
    # The writer leaves out a segment that comes and goes in one transaction: it would be taken for that one.
    book, first, second, third = AddressBook(NUM_ROWS), *np.arange(3 * CAPACITY).reshape(3, CAPACITY)
    book.register(np.arange(NUM_ROWS))
    database = opened(tmp_path)
    log = new_log(database, book)
    log.append(first, records(first, 1))
    end = checkpoint(database, log)
    log.append(second, records(second, 2))  # a whole segment after the checkpoint
    for addresses in (third, None):
        database.wait()
        database.close()
        database = opened(tmp_path, resumes=True)
        log = new_log(database, book)
        log.load(*end)
        if addresses is not None:
            log.append(addresses, records(addresses, 3))
            end = checkpoint(database, log)
    assert scanned(log) == dict.fromkeys(first.tolist(), 1) | dict.fromkeys(third.tolist(), 3)
    database.close()


def test_a_segment_of_the_checkpoint_outlives_its_reclaiming(tmp_path):
    book, every = AddressBook(NUM_ROWS), np.arange(10 * CAPACITY)
    book.register(np.arange(NUM_ROWS))
    database = opened(tmp_path)
    log = new_log(database, book)
    log.append(every, records(every, 1))
    end = checkpoint(database, log)
    most = every[every % CAPACITY > 1]  # each segment keeps two live records
    for version in (2, 3):
        log.append(most, records(most, version))
    assert log.reclaimed_records > 0
    database.wait()
    database.close()  # without a further checkpoint
    database = opened(tmp_path, resumes=True)
    log = new_log(database, book)
    log.load(*end)
    assert scanned(log) == dict.fromkeys(every.tolist(), 1)
    database.close()


def test_dead_records_are_reclaimed_and_the_file_stays_small(tmp_path):
    database, book = opened(tmp_path), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    log, rng = new_log(database, book), np.random.default_rng(0)
    model = {}
    for version in range(400):
        addresses = rng.choice(NUM_ROWS, 40, replace=False)
        log.append(addresses, records(addresses, version))
        model |= dict.fromkeys(addresses.tolist(), float(version))
        if version % 100 == 50:
            checkpoint(database, log)
    assert contents(log, sorted(model)) == {key: model[key] for key in sorted(model)}
    database.wait()
    assert log.reclaimed_records > 1000
    assert log.appended_records < 3 * 400 * 40
    # A segment of 16 records takes a page here; 17,000 records were written, which would be 1,000 pages.
    assert database.file_bytes < 300 * 4096
    database.close()


def test_a_log_reclaims_again_after_it_failed_to(tmp_path, monkeypatch):
    database, book = opened(tmp_path), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    log, rng = new_log(database, book), np.random.default_rng(0)

    def append(times: int) -> None:
        for version in range(times):
            some = rng.choice(NUM_ROWS, 40, replace=False)
            log.append(some, records(some, version))

    def fails(slot):
        raise UserError("cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(log, "_live_records", fails)
        with pytest.raises(UserError, match="cannot be read"):
            append(1000)
    before = log.reclaimed_records
    append(100)
    assert log.reclaimed_records > before
    database.close()


def test_a_map_that_is_full_grows_and_moves_nothing_that_is_read(tmp_path):
    database, book = opened(tmp_path, map_bytes=64 << 10), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    log = new_log(database, book)
    for version in range(20):
        addresses = np.arange(NUM_ROWS)
        log.append(addresses, records(addresses, version))
        assert set(contents(log, addresses.tolist()).values()) == {float(version)}
        if version % 5 == 0:
            checkpoint(database, log)
    database.wait()
    assert database.file_bytes > 64 << 10
    database.close()


def test_a_flipped_bit_is_found_and_named(tmp_path):
    database, book = opened(tmp_path), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    log = new_log(database, book)
    addresses = np.arange(100)
    log.append(addresses, records(addresses, 7))
    end = checkpoint(database, log)
    database.wait()
    database.close()
    data = bytearray((tmp_path / DATA_FILE).read_bytes())
    pattern = records(np.array([42]), 7).tobytes()
    place = data.index(pattern)
    data[place + 5] ^= 1
    (tmp_path / DATA_FILE).write_bytes(data)
    database = opened(tmp_path, resumes=True)
    log = new_log(database, book)
    log.load(*end)
    out = np.empty((1, WIDTH), np.float32)
    log.read(np.array([41]), out)
    with pytest.raises(UserError, match=r"damaged: the record of row 42 of group 0, in segment \d+") as refused:
        log.read(np.array([41, 42, 43]), np.empty((3, WIDTH), np.float32))
    assert "\n" not in str(refused.value)
    database.close()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "read", "save"]), st.sets(st.integers(0, 199), min_size=1, max_size=80)),
        max_size=40,
    )
)
def test_the_lmdb_store_is_a_dictionary_whatever_fits_in_memory(tmp_path_factory, operations):
    database, book = opened(tmp_path_factory.mktemp("store")), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    store = LmdbStore(NUM_ROWS, 20, WIDTH, new_log(database, book))
    model: dict[int, float] = {}
    for version, (kind, chosen) in enumerate(operations):
        addresses = np.array(sorted(chosen if kind == "write" else chosen & model.keys()), np.int64)
        out = np.empty((len(addresses), WIDTH), np.float32)
        if kind == "save":
            store.save_changed()
        elif kind == "write":
            store.write(addresses, records(addresses, version))
            model |= dict.fromkeys(addresses.tolist(), float(version))
        else:
            store.read(addresses, out)
            assert out.tolist() == [[a, model[a], model[a]] for a in addresses.tolist()]
            store.write(addresses, out)  # what goes up comes down
        everything = np.array(sorted(model), np.int64)
        out = np.empty((len(everything), WIDTH), np.float32)
        store.peek(everything, out)
        assert out[:, 1].tolist() == [model[a] for a in everything.tolist()]
        assert store.used_rows <= 20
        assert scanned(store) == model
    addresses = np.arange(NUM_ROWS)
    store.write(addresses, records(addresses, 99))
    order = np.random.default_rng(len(operations)).permutation(NUM_ROWS).astype(np.int32)
    between = store.arranged(order)
    found = np.concatenate([between(0, 1), between(1, 150), between(150, NUM_ROWS)])
    assert found[:, 0].tolist() == order.tolist()
    assert between(3, 5)[:, 0].tolist() == order[3:5].tolist()  # and back
    database.close()


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


def test_a_missing_segment_is_found(tmp_path):
    database, book = opened(tmp_path), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    log = new_log(database, book)
    for version in range(2):  # the lost records have older copies
        for first in range(0, 96, 16):  # a segment each
            log.append(np.arange(first, first + 16), records(np.arange(first, first + 16), version))
    end = checkpoint(database, log)
    database.write(Delete(0, 9))
    database.wait()
    database.close()
    database = opened(tmp_path, resumes=True)
    with pytest.raises(UserError, match="damaged: group 0 lacks a segment; put back a copy"):
        new_log(database, book).load(*end)
    database.close()


def test_a_budget_too_small_names_the_option():
    assert frames_for(1 << 20, 90, 10**6) == (1 << 20) // 100
    assert frames_for(1 << 20, 90, 500) == 500
    with pytest.raises(UserError, match=r"--host-budget leaves room for 10 records of 90 bytes"):
        frames_for(1000, 90, 10**6)


@pytest.mark.parametrize(
    ("size", "seed", "value"),
    [(0, 7, 0xD7ADAFF8), (1, 7, 0x14F110A0), (3, 7, 0x50A52EFB), (4, 7, 0xC0447409), (16, 7, 0x6829A4F9)],
)
def test_checksums_are_xxh32(size, seed, value):
    """Values of the reference implementation (python-xxhash 3.6)."""
    words = np.arange(size, dtype=np.uint32) * np.uint32(2654435761)
    assert xxh32(words, np.uint32(seed)) == value


def test_a_full_segment_fills_whole_pages():
    for width in (1, 16, 48, 129):
        capacity = segment_capacity(width, 1 << 20)
        size = SegmentBuilder(capacity, width).words.nbytes + 16  # with LMDB's header
        assert capacity == 1 << 14 or (1 << 20) - 4 * (width + 2) < size <= 1 << 20


def test_a_segment_keeps_its_parts():
    builder = SegmentBuilder(5, 2)
    builder.append(np.array([7, 9]), np.array([[1, 2], [3, 4]], np.float32))
    view = parse_segment(builder.finish(3), 3, 2, 10)
    assert view.rows.tolist() == [7, 9]
    assert view.records(np.array([1, 0])).tolist() == [[3, 4], [1, 2]]
    assert view.first_damaged() == -1


def test_a_record_that_went_to_the_device_is_not_saved(tmp_path):
    database, book = opened(tmp_path), AddressBook(NUM_ROWS)
    book.register(np.arange(NUM_ROWS))
    log = new_log(database, book)
    store = LmdbStore(NUM_ROWS, 20, WIDTH, log)
    both = np.array([1, 2])
    store.write(both, records(both, 1))
    store.read(both[:1], np.empty((1, WIDTH), np.float32))
    store.save_changed()
    assert scanned(log) == {2: 1}
    database.close()
