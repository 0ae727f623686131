"""Every form of ids is the same batch, sample after sample; other forms are refused by name."""

import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.ids import host_batch

ROWS = (10, 20)


@pytest.mark.parametrize(
    ("ids", "offsets"),
    [
        (torch.tensor([[1, 5], [2, 6], [3, 7]]), None),
        (torch.tensor([[1, 5], [2, 6], [3, 7]], dtype=torch.int32), None),
        (torch.tensor([[[1], [5]], [[2], [6]], [[3], [7]]]), None),
        ([torch.tensor([1, 2, 3]), torch.tensor([5, 6, 7])], [torch.arange(3), torch.arange(3)]),
        (torch.tensor([1, 2, 3, 5, 6, 7]), torch.arange(7)),
    ],
    ids=["[B, T]", "int32", "[B, T, L]", "each table", "table after table"],
)
def test_one_id_a_bag(ids, offsets):
    batch = host_batch(ids, offsets, ROWS, "batch 0")
    assert batch.rows.tolist() == [1, 15, 2, 16, 3, 17]  # global: the second table's begin at 10
    assert batch.offsets.tolist() == list(range(7))
    assert batch.num_samples == 3


def test_bags_of_several_ids_and_empty_ones():
    # Sample 0: [4, 4] and none; sample 1: none and [0, 19].
    by_table = [torch.tensor([4, 4]), torch.tensor([0, 19])], [torch.tensor([0, 2]), torch.tensor([0, 0])]
    jagged = torch.tensor([4, 4, 0, 19]), torch.tensor([0, 2, 2, 2, 4])
    for ids, offsets in (by_table, jagged):
        batch = host_batch(ids, offsets, ROWS, "batch 0")
        assert batch.rows.tolist() == [4, 4, 10, 29]
        assert batch.offsets.tolist() == [0, 2, 2, 2, 4]


@pytest.mark.parametrize(
    ("ids", "offsets", "words"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), None, "the second axis is for the 2 tables"),
        (torch.zeros(3, 2), None, "give an int64 or int32 tensor"),
        (torch.tensor([[1, 20]]), None, "sample 0, table 1: id 20 is outside 0..19"),
        (torch.tensor([[-1, 2]]), None, "ids count from 0"),
        (torch.arange(4), [torch.arange(2)], "both a tensor"),
        (torch.arange(4), torch.tensor([0, 1, 2, 3]), "2 * B + 1"),
        (torch.arange(4), torch.tensor([0, 3, 2, 3, 4]), "do not rise"),
    ],
)
def test_other_forms_are_refused(ids, offsets, words):
    with pytest.raises(UserError, match="batch 7") as raised:
        host_batch(ids, offsets, ROWS, "batch 7")
    assert words in str(raised.value)
