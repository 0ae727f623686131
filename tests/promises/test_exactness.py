"""The product's first promise: a cached run gives the bits of an uncached one.

Each cached run here evicts, writes back and fetches rows again, and says so. Its losses and final parameters are
compared with ``==``: to a run whose rows are all resident, and to a trainer of plain torch modules that shares no code.
"""

import numpy as np
import pytest
import torch

from cachedlrm.base.rounding import TORCH_DTYPES
from cachedlrm.model.dense_settings import DenseSettings
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.interaction import InteractionKind
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.store.records import RecordLayout
from support.models import POLICIES, one_group, plain_features
from support.plain_torch import train_plain
from support.training import (
    ALL_ROWS,
    DENSE,
    DIM,
    EVALUATE_AFTER,
    LR,
    NUM_TABLES,
    STEPS,
    TABLE_ROWS,
    batches,
    resident,
    train,
)


@pytest.mark.parametrize("prefetch_depth", [0, 1, 4])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_a_cached_run_has_the_bits_of_a_resident_one(optimizer, lookups_per_bag, policy, prefetch_depth):
    cached = train(optimizer, lookups_per_bag, 170, policy=policy, prefetch_depth=prefetch_depth)
    cached.assert_rows_travelled()
    uncached = resident(optimizer, lookups_per_bag)
    assert uncached.counters.evicted_rows == 0
    cached.assert_same_bits(uncached)


@pytest.mark.parametrize(("policy", "prefetch_depth"), list(zip(POLICIES, [0, 1, 4, 2, 3, 0], strict=True)))
@pytest.mark.parametrize(("row_dtype", "state_dtype"), [("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "bf16")])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_rows_of_16_bits_are_rounded_alike_wherever_they_are(optimizer, row_dtype, state_dtype, policy, prefetch_depth):
    kept = {"row_dtype": row_dtype, "state_dtype": state_dtype}
    cached = train(optimizer, 3, 170, policy=policy, prefetch_depth=prefetch_depth, **kept)
    cached.assert_rows_travelled()
    uncached = resident(optimizer, 3, **kept)
    assert uncached.counters.evicted_rows == 0
    cached.assert_same_bits(uncached)
    assert cached.losses != resident(optimizer, 3).losses
    in_half = TORCH_DTYPES[row_dtype]
    assert all(torch.equal(table.to(in_half).float(), table) for table in cached.tables)
    assert cached.records.nbytes < resident(optimizer, 3).records.nbytes


@pytest.mark.parametrize("prefetch_depth", [0, 3])
@pytest.mark.parametrize("policy", ["lru", "lookahead", "oracle"])
def test_a_working_set_beyond_the_quota_trains_in_temporary_slots(policy, prefetch_depth):
    cached = train("adagrad", 3, quota_slots=30, num_slots=400, policy=policy, prefetch_depth=prefetch_depth)
    assert max(len(np.unique(batch.rows)) for batch in batches(3)) > 30
    cached.assert_rows_travelled()
    cached.assert_same_bits(resident("adagrad", 3))


@pytest.mark.parametrize("prefetch_depth", [0, 2])
def test_evaluation_leaves_training_untouched(prefetch_depth):
    plain = train("adam", 3, 170, prefetch_depth=prefetch_depth)
    evaluated = train("adam", 3, 170, prefetch_depth=prefetch_depth, evaluate=True)
    evaluated.assert_rows_travelled()
    evaluated.assert_same_bits(plain)
    assert evaluated.counters == plain.counters
    uncached = resident("adam", 3, evaluate=True)
    assert len(evaluated.predictions) == len(EVALUATE_AFTER)
    for ours, theirs in zip(evaluated.predictions, uncached.predictions, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize("interaction", ["dot", "cat"])
@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_a_cached_run_equals_plain_torch(optimizer, lookups_per_bag, interaction):
    cached = train(optimizer, lookups_per_bag, 170, policy="lrfu", prefetch_depth=2, interaction=interaction)
    cached.assert_rows_travelled()
    losses, tables, dense = plain(optimizer, lookups_per_bag, STEPS, interaction)
    assert losses == cached.losses
    assert all(torch.equal(a, b) for a, b in zip(tables, cached.tables, strict=True))
    assert all(torch.equal(dense[name], cached.dense[name]) for name in dense)


@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_embedding_bag_differs_by_the_order_of_summation_only(optimizer, lookups_per_bag):
    cached = train(optimizer, lookups_per_bag, 170)
    losses, _, _ = plain(optimizer, lookups_per_bag, 20, ordered=False)
    torch.testing.assert_close(torch.tensor(cached.losses[:20]), torch.tensor(losses), rtol=1e-6, atol=1e-6)


RATE, DENSE_RATE = LearningRate(LR, 9, 12, 30, "cosine", 0.01), LearningRate(0.02, 9, 12, 30, "polynomial", 0.001)
APART = {
    "adagrad, adam": (
        "adagrad",
        {"eps": 1e-3, "weight_decay": 0.1, "dense": DenseSettings("adam", 1e-5, weight_decay=0.01)},
        {
            "row_settings": {"eps": 1e-3},
            "weight_decay": 0.1,
            "layers": lambda p: torch.optim.Adam(p, eps=1e-5, weight_decay=0.01),
        },
    ),
    "sgd, momentum": (
        "sgd",
        {"weight_decay": 0.3, "dense": DenseSettings("sgd", momentum=0.9, weight_decay=0.01)},
        {"weight_decay": 0.3, "layers": lambda p: torch.optim.SGD(p, momentum=0.9, weight_decay=0.01)},
    ),
    "adam, adamw": (
        "adam",
        {"eps": 1e-4, "weight_decay": 0.2, "dense": DenseSettings("adamw", weight_decay=0.5)},
        {
            "row_settings": {"eps": 1e-4},
            "weight_decay": 0.2,
            "layers": lambda p: torch.optim.AdamW(p, weight_decay=0.5),
        },
    ),
    "rwsadagrad, sgd": (
        "rwsadagrad",
        {"eps": 1e-4, "dense": DenseSettings("sgd")},
        {"row_settings": {"eps": 1e-4}, "layers": torch.optim.SGD},
    ),
}
CLIPPED = {  # the norms that torch adds up are of parameters, here they are of all layers and all rows
    "sgd": {"clip_grad_norm": 0.05},
    "adagrad": {"clip_grad_norm": 0.05, "eps": 1e-3, "dense": DenseSettings("sgd", momentum=0.5)},
    "adam": {"clip_grad_norm": 0.05, "eps": 1e-2, "dense": DenseSettings("adamw", 1e-2, weight_decay=0.1)},
}


@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("name", APART)
def test_rows_and_layers_move_apart_as_in_torch(name, lookups_per_bag):
    optimizer, settings, of_torch = APART[name]
    settings = {**settings, "rate": RATE, "dense_learning_rate": DENSE_RATE}
    cached = train(optimizer, lookups_per_bag, 170, policy="lrfu", prefetch_depth=2, **settings)
    cached.assert_rows_travelled()
    cached.assert_same_bits(train(optimizer, lookups_per_bag, **settings))
    rates = lambda step: (RATE(step), DENSE_RATE(step))  # noqa: E731
    losses, tables, dense = plain(optimizer, lookups_per_bag, STEPS, rates=rates, **of_torch)
    assert losses == cached.losses
    assert all(torch.equal(a, b) for a, b in zip(tables, cached.tables, strict=True))
    assert all(torch.equal(dense[name], cached.dense[name]) for name in dense)


@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", CLIPPED)
def test_gradients_are_clipped_as_in_torch(optimizer, lookups_per_bag):
    settings = CLIPPED[optimizer]
    cached = train(optimizer, lookups_per_bag, 170, policy="lru", prefetch_depth=3, **settings)
    cached.assert_rows_travelled()
    cached.assert_same_bits(train(optimizer, lookups_per_bag, **settings))
    of_torch = {"row_settings": {"eps": settings["eps"]} if "eps" in settings else {}, "clip": 0.05}
    if optimizer != "sgd":
        of_torch["layers"] = {
            "adagrad": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.5),
            "adam": lambda p: torch.optim.AdamW(p, lr=LR, eps=1e-2, weight_decay=0.1),
        }[optimizer]
    losses, tables, dense = plain(optimizer, lookups_per_bag, STEPS, **of_torch)
    torch.testing.assert_close(torch.tensor(cached.losses), torch.tensor(losses), rtol=1e-6, atol=1e-6)
    for ours, theirs in [*zip(cached.tables, tables, strict=True), *((cached.dense[n], dense[n]) for n in dense)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    unclipped = train(optimizer, lookups_per_bag, **{**settings, "clip_grad_norm": None})
    assert abs(unclipped.losses[-1] - cached.losses[-1]) > 1e-4


def plain(
    optimizer: str, lookups_per_bag: int, num_steps: int, interaction: str = "dot", ordered: bool = True, **settings
):
    """`train_plain` from the initial parameters of `train`."""
    fresh = one_group(TABLE_ROWS, RecordLayout(DIM, "sgd"), 1, seed=3).groups[0]
    tables = [table.clone() for table in fresh.read(np.arange(ALL_ROWS)).split(TABLE_ROWS)]
    dense = Dlrm(
        plain_features(NUM_TABLES, DIM), (DENSE, 16, DIM), (16, 1), InteractionKind(interaction), seed=3
    ).state_dict()
    stream = list(batches(lookups_per_bag))[:num_steps]
    return train_plain(stream, tables, dense, optimizer, LR, interaction, ordered, **settings)
