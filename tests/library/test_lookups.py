"""Ids to the rows of each group, and several calls as one batch."""

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.ids import bag_ids, named_ids
from cachedlrm.library.lookups import Routes, join
from cachedlrm.library.tables import EmbeddingTable, TableSet

TABLES = [EmbeddingTable("a", 10, 4, ("x", "y")), EmbeddingTable("b", 5, 2, ("z",)), EmbeddingTable("c", 7, 4, ("w",))]
NAMES = ["x", "y", "z", "w"]
FEATURES = {
    "x": (torch.tensor([1, 2]), torch.tensor([0, 2, 2])),
    "y": torch.tensor([9, 8]),
    "z": torch.tensor([4, 3]),
    "w": torch.tensor([[0], [6]]),
}


def routes(pools: bool) -> Routes:
    return Routes(TableSet(TABLES, pools), [f"feature {name}" for name in NAMES], "raise it")


def test_bags_are_sample_after_sample_and_rows_global_in_their_group():
    part = routes(pools=True)(named_ids(FEATURES, NAMES))
    wide, narrow = part.lookups
    assert wide.rows.tolist() == [1, 2, 9, 10, 8, 16]  # x and y share table a; rows of table c begin at 10
    assert wide.offsets.tolist() == [0, 2, 3, 4, 4, 5, 6]
    assert narrow.rows.tolist() == [4, 3]
    assert narrow.offsets.tolist() == [0, 1, 2]


SIZES = {"x": torch.tensor([[1, 2], [3, 4]]), "y": torch.tensor([9, 8]), "z": torch.zeros(2, 0, dtype=torch.int64)}


@pytest.mark.parametrize("spelled", [True, False])
def test_bags_of_one_size_in_each_feature(spelled):
    ids = {**SIZES, "w": torch.tensor([0, 6])}
    if spelled:
        ids = {name: (of.reshape(-1), torch.arange(3) * (of.numel() // 2)) for name, of in ids.items()}
    found = named_ids(ids, NAMES)
    assert found.offsets is None
    wide, narrow = routes(pools=True)(found).lookups
    assert wide.rows.tolist() == [1, 2, 9, 10, 3, 4, 8, 16]
    assert wide.offsets.tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert narrow.offsets.tolist() == [0, 0, 0]
    wide, _ = routes(pools=False)(found).lookups
    assert wide.rows.tolist() == [1, 2, 3, 4, 9, 8, 10, 16]


@pytest.mark.parametrize("num_samples", [0, 1, 31, 32, 33, 100])
def test_one_id_a_bag_of_any_number_of_samples(num_samples):
    ids = torch.randint(5, (num_samples, 4), generator=torch.Generator().manual_seed(1))
    of_features = {name: ids[:, feature] for feature, name in enumerate(NAMES)}
    for found in (bag_ids(ids, None, 4), named_ids(of_features, NAMES)):
        wide, narrow = routes(pools=True)(found).lookups
        assert wide.rows.tolist() == [row for x, y, _, w in ids.tolist() for row in (x, y, 10 + w)]
        assert narrow.rows.tolist() == ids[:, 2].tolist()


@pytest.mark.parametrize("bad", [-1, 5, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("sample", [0, 40])
def test_one_id_outside_its_table_is_named(bad, sample):
    ids = torch.zeros(41, 4, dtype=torch.int64)
    ids[sample, 2] = bad
    with pytest.raises(UserError, match=rf"sample {sample}, feature z: id {bad} is outside 0\.\.4"):
        routes(pools=True)(bag_ids(ids, None, 4))


def test_an_id_outside_its_table_is_named_among_larger_bags():
    ids = {**SIZES, "w": torch.tensor([0, 6]), "x": torch.tensor([[1, 2], [3, 10]])}
    with pytest.raises(UserError, match=r"sample 1, feature x: id 10 is outside 0\.\.9"):
        routes(pools=True)(named_ids(ids, NAMES))


def test_sequences_are_feature_after_feature():
    part = routes(pools=False)(named_ids(FEATURES, NAMES))
    wide, _ = part.lookups
    assert wide.rows.tolist() == [1, 2, 9, 8, 10, 16]
    assert wide.offsets.tolist() == list(range(7))


def test_ids_of_one_size_and_the_same_in_bags_are_equal():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    square = routes(pools=True)(bag_ids(ids, None, 4))
    jagged = routes(pools=True)(bag_ids(ids.T.reshape(-1), torch.arange(9), 4))
    other = routes(pools=True)(bag_ids(ids.flip(0), None, 4))
    assert square.equals(jagged)
    assert not square.equals(other)


def test_parts_make_one_batch():
    find = routes(pools=True)
    one, other = (find(bag_ids(torch.tensor([ids]), None, 4)) for ids in ([1, 2, 3, 4], [5, 6, 0, 0]))
    joined = join([one, other])
    assert joined.lookups[0].rows.tolist() == [1, 2, 14, 5, 6, 10]
    assert joined.lookups[0].offsets.tolist() == list(range(7))
    assert joined.lookups[1].rows.tolist() == [3, 0]
    assert join([one]).lookups is one.lookups
    assert len(joined.dense) == len(joined.labels) == 0


def test_what_comes_out_does_not_follow_the_ids():
    ids = np.array([[1, 2, 3, 4]])
    part = routes(pools=True)(bag_ids(ids, None, 4))
    ids[:] = 0
    assert part.lookups[0].rows.tolist() == [1, 2, 14]


@pytest.mark.parametrize("pools", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z": torch.tensor([4, 5])}, r"^sample 1, feature z: id 5 is outside 0\.\.4; raise it"),
        ({"y": torch.tensor([-1, 5])}, r"^sample 0, feature y: id -1 is outside 0\.\.9; ids count from 0"),
    ],
)
def test_an_id_outside_its_table_is_named(pools, change, words):
    with pytest.raises(UserError, match=words):
        routes(pools)(named_ids({**FEATURES, **change}, NAMES))
