"""The host store: the contract of a store, and what it saves."""

import numpy as np
import pytest
from hypothesis import given, settings

from cachedlrm.base.errors import UserError
from cachedlrm.store.host import HostStore
from support.logs import WIDTH
from support.store_contract import NUM_ADDRESSES, OPERATIONS, check_contract


@settings(deadline=None, derandomize=True, max_examples=25)
@given(OPERATIONS)
def test_the_contract_of_a_store(operations):
    check_contract(HostStore(NUM_ADDRESSES, WIDTH), NUM_ADDRESSES, operations)


def test_a_full_host_store_names_the_option():
    store = HostStore(4, 2)
    store.check_capacity(4)
    with pytest.raises(UserError, match=r"5 rows of 8 bytes .* may hold 4; raise --host-budget") as refused:
        store.check_capacity(5)
    assert "\n" not in str(refused.value)


def test_nothing_to_read_or_write():
    store = HostStore(4, 2)
    store.write(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    store.read(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    assert store.used_rows == 0
    HostStore(0, 2).read(np.empty(0, np.int64), np.empty((0, 2), np.float32))


def test_records_by_address():
    store = HostStore(5, 2)
    store.write(np.array([2, 0]), np.array([[5, 6], [1, 2]], np.float32))
    out = np.empty((2, 2), np.float32)
    store.read(np.array([0, 2]), out)
    assert out.tolist() == [[1, 2], [5, 6]]
    store.write(np.array([0]), np.array([[3, 4]], np.float32))
    store.peek(np.array([0, 2]), out)
    assert out.tolist() == [[3, 4], [5, 6]]


class Log:
    """Keeps what is appended."""

    def __init__(self) -> None:
        self.saved: dict[int, float] = {}

    def append(self, addresses: np.ndarray, records: np.ndarray) -> None:
        self.saved.update(zip(addresses.tolist(), records[:, 0].tolist(), strict=True))


def test_only_changed_records_are_saved_and_none_that_the_device_has():
    log = Log()
    store = HostStore(5, 2, log)
    store.write(np.array([0, 1, 2]), np.array([[1, 1], [2, 2], [3, 3]], np.float32))
    store.read(np.array([1]), np.empty((1, 2), np.float32))  # its newest record is on the device
    store.peek(np.array([2]), np.empty((1, 2), np.float32))
    store.save_changed()
    assert log.saved == {0: 1, 2: 3}
    log.saved.clear()
    store.write(np.array([4]), np.array([[5, 5]], np.float32))
    store.save_changed()
    assert log.saved == {4: 5}
