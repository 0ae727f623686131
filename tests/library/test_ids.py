"""Every form of ids is the same ids; other forms are refused by name."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.ids import FeatureIds, bag_ids, named_ids

ZEROS = torch.zeros(4, dtype=torch.int64)


def bags(ids: FeatureIds) -> list[list[list[int]]]:
    """Of each feature, of each sample: its ids."""
    values, offsets = ids.jagged()
    pieces = [values[start:end].tolist() for start, end in pairwise(offsets)]
    return [pieces[first : first + ids.num_samples] for first in range(0, len(pieces), ids.num_samples)]


@pytest.mark.parametrize(
    ("ids", "offsets"),
    [
        (torch.tensor([[1, 5], [2, 6], [3, 7]]), None),
        (torch.tensor([[1, 5], [2, 6], [3, 7]], dtype=torch.int32), None),
        (torch.tensor([[1, 2, 3], [5, 6, 7]]).T, None),
        (np.array([[1, 5], [2, 6], [3, 7]], np.uint8), None),
        (torch.tensor([[[1], [5]], [[2], [6]], [[3], [7]]]), None),
        ([torch.tensor([1, 2, 3]), np.array([5, 6, 7])], [torch.arange(3), torch.arange(3)]),
        (torch.tensor([1, 2, 3, 5, 6, 7]), torch.arange(7)),
    ],
    ids=["[B, T]", "int32", "a view", "numpy", "[B, T, L]", "each table", "table after table"],
)
def test_one_id_a_bag(ids, offsets):
    found = bag_ids(ids, offsets, 2)
    assert bags(found) == [[[1], [2], [3]], [[5], [6], [7]]]
    assert found.num_samples == 3


def test_read_only_arrays_are_ids_like_others():
    ids = np.array([[1, 5], [2, 6]])
    ids.flags.writeable = False  # as np.load(mmap_mode="r") gives them; a warning would be an error here
    assert bags(bag_ids(ids, None, 2)) == [[[1], [2]], [[5], [6]]]
    assert bags(named_ids({"a": ids}, ["a"])) == [[[1, 5], [2, 6]]]


def test_an_array_of_one_id_may_have_been_turned_around():
    one = np.array([7])[::-1]  # numpy says that it lies side by side, and keeps its negative stride
    assert bags(named_ids({"a": one, "b": one.reshape(1, 1)}, ["a", "b"])) == [[[7]], [[7]]]


def test_offsets_whose_differences_overflow_do_not_rise():
    offsets = np.array([0, 2**63 - 1, -2, 4])
    with pytest.raises(UserError, match="do not rise from 0"):
        named_ids({"a": (ZEROS, offsets)}, ["a"])


def test_bags_of_several_ids_and_empty_ones():
    by_table = [torch.tensor([4, 4]), torch.tensor([0, 19])], [torch.tensor([0, 2]), torch.tensor([0, 0])]
    jagged = torch.tensor([4, 4, 0, 19]), torch.tensor([0, 2, 2, 2, 4])
    for ids, offsets in (by_table, jagged):
        assert bags(bag_ids(ids, offsets, 2)) == [[[4, 4], []], [[], [0, 19]]]


@pytest.mark.parametrize(
    ("ids", "offsets"),
    [
        (torch.tensor([[9], [8], [7]]), None),
        (torch.tensor([[[9]], [[8]], [[7]]]), None),
        ([torch.tensor([9, 8, 7])], [torch.arange(3)]),
        (torch.tensor([9, 8, 7]), torch.arange(4)),
    ],
    ids=["[B, T]", "[B, T, L]", "each table", "table after table"],
)
def test_one_table_is_a_case_of_many(ids, offsets):
    assert bags(bag_ids(ids, offsets, 1)) == [[[9], [8], [7]]]


@pytest.mark.parametrize(
    ("ids", "offsets", "words"),
    [
        (torch.zeros(3, 3, dtype=torch.int64), None, "the second axis is for the 2 tables"),
        (torch.zeros(3, 2), None, "give an int64 or int32 tensor"),
        (torch.arange(4), [torch.arange(2)], "both a tensor"),
        (torch.arange(4), torch.tensor([0, 1, 2, 3]), "2 * B + 1"),
        (torch.arange(0), torch.arange(0), "2 * B + 1"),
        (torch.arange(0), torch.tensor([-4, -2, 0, 0, 0]), "do not rise"),
        (torch.arange(4), torch.tensor([0, 3, 2, 3, 4]), "do not rise"),
        ([ZEROS], [ZEROS], "1 tensors of ids and 1 of offsets for 2 tables"),
        ([ZEROS, ZEROS], [ZEROS, ZEROS[:1]], "table 1 has 1 bags and table 0 has 4"),
    ],
)
def test_other_forms_are_refused(ids, offsets, words):
    with pytest.raises(UserError) as raised:
        bag_ids(ids, offsets, 2)
    assert words in str(raised.value)


def keyed(keys, values, offsets, **more) -> SimpleNamespace:
    """What a KeyedJaggedTensor offers."""
    return SimpleNamespace(
        keys=lambda: keys, values=lambda: torch.as_tensor(values), offsets=lambda: torch.as_tensor(offsets), **more
    )


@pytest.mark.parametrize(
    "features",
    [
        keyed(["a", "b"], [1, 2, 3, 4], [0, 2, 2, 3, 4]),
        keyed(["b", "c", "a"], [3, 4, 9, 1, 2], [0, 1, 2, 3, 3, 5, 5]),
        {"a": (torch.tensor([1, 2]), torch.tensor([0, 2, 2])), "b": torch.tensor([3, 4])},
        {"b": np.array([[3], [4]]), "a": keyed(None, [1, 2], [0, 2, 2]), "c": None},
    ],
    ids=["in order", "in another order, and more", "dictionary", "of all kinds"],
)
def test_named_features(features):
    assert bags(named_ids(features, ["a", "b"])) == [[[1, 2], []], [[3], [4]]]


def test_features_may_share_their_offsets():
    offsets = torch.tensor([0, 2, 2])
    features = {"a": (torch.tensor([1, 2]), offsets), "b": (torch.tensor([3, 4], dtype=torch.int32), offsets)}
    assert bags(named_ids(features, ["a", "b"])) == [[[1, 2], []], [[3, 4], []]]
    features["b"] = torch.tensor([3, 4, 5]), offsets
    with pytest.raises(UserError, match="feature b: offsets end with 2 and there are 3 values"):
        named_ids(features, ["a", "b"])


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.arange(4), "features are Tensor; give a KeyedJaggedTensor, or a dictionary"),
        ({"a": ZEROS}, "feature b is missing; there are a"),
        (keyed(["a"], [1], [0, 1]), "feature b is missing; there are a"),
        ({"a": ZEROS, "b": ZEROS[:2]}, "feature b has 2 bags and a has 4"),
        ({"a": ZEROS, "b": (ZEROS, torch.tensor([1, 4]))}, "feature b: offsets do not rise from 0 to the number"),
        (
            {"a": ZEROS, "b": (ZEROS, torch.arange(4))},
            "offsets end with 3 and there are 4 values; give one more",
        ),
        ({"a": ZEROS, "b": (ZEROS, ZEROS[:0])}, "no offsets"),
        ({"a": ZEROS, "b": "ids"}, "feature b is str; give (values, offsets), or ids [B] or [B, L]"),
        ({"a": ZEROS, "b": ZEROS.float()}, "feature b are torch.float32 [4]"),
        (keyed(["a", "b"], [1, 2], [0, 1, 1, 2]), "4 offsets for 2 keys"),
        (keyed(["a"], torch.arange(0), torch.arange(0)), "0 offsets for 1 keys"),
        (keyed(["a", "b"], [1, 2], [0, 1, 2], weights_or_none=lambda: ZEROS), "has weights"),
        (keyed(["a", "b"], [1, 2], [0, 1, 2], variable_stride_per_key=lambda: True), "batches of different sizes"),
        (
            {"a": ZEROS, "b": keyed(None, ZEROS, torch.arange(5), weights_or_none=lambda: ZEROS)},
            "feature b has weights",
        ),
        ({"a": ZEROS, "b": ZEROS.to_sparse()}, "feature b cannot be read"),
        ({"a": ZEROS, "b": ZEROS.to("meta")}, "feature b cannot be read"),
    ],
)
def test_other_features_are_refused(features, words):
    with pytest.raises(UserError) as raised:
        named_ids(features, ["a", "b"])
    assert words in str(raised.value)
