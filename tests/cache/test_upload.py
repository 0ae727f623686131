"""What of a batch comes to the device, and where it lies there."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from cachedlrm.cache.transfer import Transfer
from cachedlrm.cache.upload import Arrays
from cachedlrm.data.batch import Batch
from cachedlrm.store.records import RecordLayout
from support.models import one_group

NUM_ROWS, DIM = 30, 3


def batch_of(rows: list[int]) -> Batch:
    empty = np.zeros((0, 1), np.float32)
    return Batch(empty, np.array(rows, np.int64), np.arange(len(rows) + 1), np.zeros(0, np.float32))


@pytest.mark.parametrize("shift", range(4))
def test_dense_features_lie_at_an_aligned_address_wherever_they_came_from(shift):
    # Matrix products may take another kernel, and round differently, where an operand is aligned otherwise.
    memory = np.arange(7 * 13 + 64, dtype=np.float32)
    start = -(memory.ctypes.data // 4) % 16 + shift
    dense = memory[start : start + 7 * 13].reshape(7, 13)
    batch = Batch(dense, np.array([1, 2, 3]), np.arange(4), np.zeros(7, np.float32))
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 6)
    uploaded = next(cache.prepare([batch])).tensors.dense
    assert uploaded.data_ptr() % 64 == 0
    assert (uploaded.numpy() == dense).all()


class _Copies:
    """In place of pinned memory and its image on a GPU."""

    def open(self, parts: Sequence[Arrays]) -> None:
        self.room = sum(array.nbytes for arrays in parts for array in arrays.values())

    def put(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        self.room -= sum(array.nbytes for array in arrays.values())
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def send(self) -> None:
        assert self.room == 0


def test_lookups_sorted_by_position_go_where_arrays_are_copied(monkeypatch):
    cache = one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 6)
    cache._upload._ring = [_Copies()]
    cache.trained.mark(0)
    moved, execute = [], Transfer.execute
    monkeypatch.setattr(Transfer, "execute", lambda self, *given: moved.append(given[1]) or execute(self, *given))
    [lookups] = next(cache.prepare([batch_of([3, 5, 3, 7, 5, 3])])).tensors.lookups
    [moves] = moved
    assert lookups.positions.tolist() == [0, 1, 0, 2, 1, 0]
    assert lookups.slots.tolist() == moves.create_slots.tolist() == [0, 1, 2]
    assert moves.create_rows.tolist() == [3, 5, 7]
    assert moves.fetch_slots.tolist() == moves.evict_slots.tolist() == []
    assert lookups.bags_by_position.tolist() == [0, 2, 5, 1, 4, 3]
    assert lookups.position_offsets.tolist() == [0, 3, 5, 6]
    [unsorted] = next(one_group((NUM_ROWS,), RecordLayout(DIM, "sgd"), 6).prepare([batch_of([3, 3])])).tensors.lookups
    assert unsorted.bags_by_position is unsorted.position_offsets is None
