"""The log against a dictionary: what is read, what a checkpoint keeps, what is reclaimed."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.store.database import Database, Delete, Meta
from cachedlrm.store.environment import CHECKPOINT, DATA_FILE
from cachedlrm.store.record_log import RecordLog
from support.logs import CAPACITY, NUM_ROWS, WIDTH, new_log, opened, records, scanned, shrink


@pytest.fixture(autouse=True)
def small_transactions(monkeypatch):
    shrink(monkeypatch)


def checkpoint(database: Database, log: RecordLog) -> tuple[int, int]:
    """The end of the log: what `RecordLog.load` takes."""
    end = log.begin_checkpoint(), log.fingerprint()
    database.write(Meta(CHECKPOINT, json.dumps(end).encode()))
    log.end_checkpoint()
    return end


def contents(log: RecordLog, addresses: list[int]) -> dict[int, float]:
    out = np.empty((len(addresses), WIDTH), np.float32)
    log.read(np.array(addresses, np.int64), out)
    assert out[:, 0].tolist() == addresses
    return dict(zip(addresses, out[:, 1].tolist(), strict=True))


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
    record = records(np.array([42]), 7).tobytes()
    damaged = record[:5] + bytes([record[5] ^ 1]) + record[6:]
    # All there are: LMDB does not clear a page that it uses again, so parts of an index page may look like the record.
    (tmp_path / DATA_FILE).write_bytes((tmp_path / DATA_FILE).read_bytes().replace(record, damaged))
    database = opened(tmp_path, resumes=True)
    log = new_log(database, book)
    log.load(*end)
    out = np.empty((1, WIDTH), np.float32)
    log.read(np.array([41]), out)
    with pytest.raises(UserError, match=r"damaged: the record of row 42 of group 0, in segment \d+") as refused:
        log.read(np.array([41, 42, 43]), np.empty((3, WIDTH), np.float32))
    assert "\n" not in str(refused.value)
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
