"""The bounded host tier over a log: the contract of a store, and which records go to the disk."""

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.errors import UserError
from cachedlrm.store.lmdb_store import LmdbStore, frames_for
from support.logs import NUM_ROWS, WIDTH, new_log, opened, records, scanned, shrink
from support.store_contract import OPERATIONS, check_contract


@pytest.fixture(autouse=True)
def small_transactions(monkeypatch):
    shrink(monkeypatch)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(OPERATIONS, st.integers(1, 200))
def test_the_contract_of_a_store_whatever_fits_in_memory(tmp_path_factory, operations, num_frames):
    with closing(opened(tmp_path_factory.mktemp("store"))) as database:
        check_contract(LmdbStore(NUM_ROWS, num_frames, WIDTH, new_log(database)), num_frames, operations)


def test_the_least_recently_evicted_records_go_to_the_disk_and_no_others(tmp_path):
    with closing(opened(tmp_path)) as database:
        log = new_log(database)
        store = LmdbStore(NUM_ROWS, 4, WIDTH, log)
        for address in range(4):
            store.write(np.array([address]), records(np.array([address]), 1))
        assert scanned(log) == {}
        store.write(np.array([4, 5]), records(np.array([4, 5]), 1))
        assert scanned(log) == {0: 1, 1: 1}
        back = np.array([0])
        store.read(back, np.empty((1, WIDTH), np.float32))
        store.write(back, records(back, 2))
        assert scanned(log) == {0: 1, 1: 1, 2: 1}
        assert scanned(store) == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}


def test_a_record_that_is_saved_already_is_not_written_again(tmp_path):
    with closing(opened(tmp_path)) as database:
        log = new_log(database)
        store = LmdbStore(NUM_ROWS, 2, WIDTH, log)
        store.write(np.array([0, 1]), records(np.array([0, 1]), 1))
        store.save_changed()
        store.write(np.array([2, 3]), records(np.array([2, 3]), 1))
        assert log.appended_records == 2
        assert scanned(store) == dict.fromkeys(range(4), 1)


def test_a_budget_too_small_names_the_option():
    assert frames_for(1 << 20, 90, 10**6) == (1 << 20) // 100
    assert frames_for(1 << 20, 90, 500) == 500
    with pytest.raises(UserError, match=r"--host-budget leaves room for 10 records of 90 bytes"):
        frames_for(1000, 90, 10**6)


def test_a_record_that_went_to_the_device_is_not_saved(tmp_path):
    with closing(opened(tmp_path)) as database:
        log = new_log(database)
        store = LmdbStore(NUM_ROWS, 20, WIDTH, log)
        both = np.array([1, 2])
        store.write(both, records(both, 1))
        store.read(both[:1], np.empty((1, WIDTH), np.float32))
        store.save_changed()
        assert scanned(log) == {2: 1}
