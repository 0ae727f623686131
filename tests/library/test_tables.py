"""What a user says of tables, ours and TorchRec's, to groups."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cachedlrm.base.errors import UserError
from cachedlrm.library.tables import (
    EmbeddingTable,
    TableSet,
    one_of,
    own_init,
    policy_of,
    real,
    table_of,
    whole,
    with_features,
)
from support.models import default_dtype


def config(**fields) -> SimpleNamespace:
    """A TorchRec config, as far as it is read."""
    init = partial(torch.nn.init.uniform_, a=-0.5, b=0.5)
    fields = {"num_embeddings": 4, "embedding_dim": 2, "feature_names": ["f"], "init_fn": init, **fields}
    return SimpleNamespace(name="t", data_type=SimpleNamespace(value="FP32"), **fields)


def test_tables_of_one_dimension_make_a_group():
    tables = TableSet(
        [EmbeddingTable("a", 10, 4, ("x", "y")), EmbeddingTable("b", 5, 2, ("x",)), EmbeddingTable("c", 7, 4, ("z",))],
        pools=True,
    )
    assert [(group.dim, group.tables, group.features) for group in tables.groups] == [
        (4, (0, 2), (0, 1, 3)),
        (2, (1,), (2,)),
    ]
    assert tables.first_rows == (0, 0, 10)
    assert tables.num_rows == 22
    assert [feature.output for feature in tables.features] == ["x@a", "y", "x@b", "z"]
    assert [tables.group_of(table) for table in range(3)] == [0, 1, 0]
    assert tables.number("c") == 2


def test_torchrecs_configs_are_taken():
    table = table_of(config(pooling=SimpleNamespace(value="MEAN")), pools=True)
    assert table == EmbeddingTable("t", 4, 2, ("f",), "mean")
    assert table_of(config(feature_names=[]), pools=True).feature_names == ("t",)
    assert table_of(config(), pools=False).pooling == "none"


def test_a_table_without_features_has_one_of_its_name():
    assert with_features(EmbeddingTable("a", 3, 2)).feature_names == ("a",)
    assert with_features(config(feature_names=[])).feature_names == ["t"]
    assert with_features(config()).feature_names == ["f"]


def test_only_an_init_of_ones_own_is_drawn():
    assert own_init(config()) is None
    assert own_init(EmbeddingTable("t", 4, 2)) is None
    assert torch.equal(own_init(config(init_fn=torch.nn.init.ones_)), torch.ones(4, 2))
    assert torch.equal(own_init(config(init_fn=lambda weight: weight.fill_(2.0) + 1.0)), torch.full((4, 2), 3.0))
    bounded = config(weight_init_min=0.25, init_fn=partial(torch.nn.init.uniform_, a=0.25, b=0.5))
    assert own_init(bounded).min() >= 0.25
    with default_dtype(torch.float64), torch.device("meta"):
        assert torch.equal(own_init(config(init_fn=torch.nn.init.ones_)), torch.ones(4, 2, device="cpu").float())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"pooling": "max"}, "table t: pooling is max"),
        ({"pooling": "none"}, "CachedEmbeddingCollection for none"),
        ({"num_embeddings": 0}, "table t: num_embeddings is 0; the least is 1"),
        ({"embedding_dim": 2.5}, "table t: embedding_dim is 2.5; give a whole number"),
        ({"use_virtual_table": True}, "use_virtual_table is not supported"),
    ],
)
def test_tables_without_a_meaning_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        table_of(config(**fields), pools=True)


def test_tables_that_contradict_each_other_are_named():
    half = config()
    half.data_type.value = "FP16"
    with pytest.raises(UserError, match="data_type is FP16"):
        table_of(half, pools=True)
    assert table_of(half, True, "fp16").num_embeddings == 4
    with pytest.raises(UserError, match="no name"):
        table_of(SimpleNamespace(name=""), pools=True)
    one = EmbeddingTable("a", 10, 4, ("x",))
    for tables, words in (
        ([], "tables is empty"),
        ([one, one], "two tables are called a"),
        ([EmbeddingTable("a", 10, 4, ("x", "x"))], "named twice"),
        ([EmbeddingTable("a", 2**31, 4, ("x",))], "the most is 2,147,483,647"),
    ):
        with pytest.raises(UserError, match=words):
            TableSet(tables, pools=True)
    with pytest.raises(UserError, match="there is no table b; there are a"):
        TableSet([one], pools=True).number("b")


def test_values_that_do_not_fit_are_named():
    assert whole(3, "n", 1) == 3
    assert one_of("a", "n", ("a", "b")) == "a"
    with pytest.raises(UserError, match="n is 0; the least is 1"):
        whole(0, "n", 1)
    assert real(np.float64(0.5), "n", 0.0) == real(torch.tensor(0.5), "n", 0.0) == 0.5
    for value in (math.nan, math.inf, 1e39, 10**400, "0.5", "x", None, [1.0], torch.ones(2, 9)):
        with pytest.raises(UserError, match=r"^n is .*; give a finite number, 0 or more"):
            real(value, "n", 0.0)
    with pytest.raises(UserError, match=r"n is -1\.0; the least is 0"):
        real(-1, "n", 0.0)
    with pytest.raises(UserError, match=r"oracle.*ids of the whole run.*choose 'lookahead'"):
        policy_of("oracle", ("lru",))
    with pytest.raises(UserError, match="n is 'c'; choose a, b"):
        one_of("c", "n", ("a", "b"))
