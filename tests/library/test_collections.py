"""The collections in a model and a loop of a user's own, beside the same model over plain torch."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cachedlrm import (
    CachedEmbeddingBagCollection,
    CachedEmbeddingCollection,
    EmbeddingTable,
    UserError,
    prefetch,
)
from cachedlrm.library.keyed import JaggedTensor
from support.cached_collections import (
    BATCH,
    FEATURES,
    TABLES,
    WIDTH,
    Model,
    assert_rows_travelled,
    assert_same_rows,
    batches,
    dense_optimizer,
    initial_weights,
    make_collection,
    plain_run,
    train,
)


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"prefetch_depth": 0, "policy": "lru", "cache_rows": None, "cache_budget": "18KiB"},
        {"prefetch_depth": 4, "policy": "lfu"},
        {"policy": "lookahead", "lookahead": 5},
        {"policy": "static", "row_counts": {t.name: np.arange(t.num_embeddings) for t in TABLES}},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_a_users_loop_gives_the_bits_of_plain_torch(optimizer, setting):
    losses, plain = plain_run(optimizer)
    with make_collection(optimizer=optimizer, **setting) as collection:
        model = Model(collection)
        assert train(model, collection.prefetch(batches(), lambda batch: batch.features)) == losses
        assert_rows_travelled(collection)
        assert_same_rows(collection, plain.embeddings.weights)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_tables_larger_than_memory_have_the_same_bits(optimizer, tmp_path):
    rows, stream = 6000, np.random.default_rng(0).permuted(np.tile(np.arange(6000), (30, 1)), axis=1)[:, :300]

    def run(**arguments) -> tuple[torch.Tensor, list[float]]:
        table = EmbeddingTable("item", rows, 4)
        with CachedEmbeddingBagCollection([table], optimizer=optimizer, seed=3, **arguments) as collection:
            losses = []
            for ids in collection.prefetch(stream, lambda ids: {"item": ids}):
                loss = (collection({"item": ids})["item"] - 1.0).square().sum()
                loss.backward()
                collection.step()
                losses.append(loss.item())
            if "store" in arguments:
                assert_rows_travelled(collection)
                assert collection.stats.host_bytes <= 1024 * 4 * (8 if optimizer == "adagrad" else 4)
                assert collection.stats.disk_bytes > 0
                assert "disk" in str(collection.stats)
            return collection.weight("item"), losses

    memory = {"sgd": 36_000, "adagrad": 58_000}[optimizer]
    cached = run(cache_rows=400, store="lmdb", host_budget=memory, store_path=tmp_path / "store")
    resident = run(cache_rows=rows)
    assert torch.equal(cached[0], resident[0])
    assert cached[1] == resident[1]


@pytest.mark.parametrize(("row", "state"), [("bf16", "fp32"), ("fp16", "bf16")])
def test_rows_of_16_bits_have_the_bits_of_resident_ones_after_a_save_too(row, state, tmp_path):
    kept = {"optimizer": "adagrad", "row_dtype": row, "row_state_dtype": state}

    def weights(collection) -> list[torch.Tensor]:
        return [collection.weight(table.name) for table in TABLES]

    with make_collection(**kept, cache_rows=900) as resident, make_collection(**kept) as cached:
        losses = train(Model(resident), resident.prefetch(batches(), lambda batch: batch.features))
        model = Model(cached)
        dense = dense_optimizer(model)
        found = train(model, cached.prefetch(batches()[:15], lambda batch: batch.features), dense)
        cached.save(tmp_path / "rows")
        train(Model(cached), batches()[:4])
        cached.load(tmp_path / "rows")
        found += train(model, cached.prefetch(batches()[15:], lambda batch: batch.features), dense)
        assert found == losses
        assert_rows_travelled(cached)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(cached), weights(resident), strict=True))
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[row]
        assert torch.equal(weights(cached)[0].to(dtype).float(), weights(cached)[0])
        cached.load_state_dict(resident.state_dict())
        assert torch.equal(weights(cached)[0], weights(resident)[0])


class History(nn.Module):
    """A model of sequences: attention of the target over a history of the same items.

    Args:
        rows: from (history [B, L], target [B]) to their rows [B, L, D] and [B, D].
    """

    def __init__(self, rows) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = rows
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.top = nn.Linear(16, 1)

    def forward(self, history, target):
        rows, wanted = self.rows(history, target)
        found = self.attention(wanted.unsqueeze(1), rows, rows, key_padding_mask=history == 0, need_weights=False)[0]
        return self.top(torch.cat([found.squeeze(1), wanted], dim=1)).squeeze(1)


def histories() -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(5)
    stream = []
    for _ in range(40):
        history = torch.from_numpy(rng.zipf(1.2, (12, 6)) % 400)  # 0 is padding
        history[:, 0] = history[:, 0].clamp(min=1)
        target = torch.from_numpy(rng.integers(1, 400, 12))
        stream.append((history, target, torch.from_numpy((rng.random(12) < 0.5).astype(np.float32))))
    return stream


def train_histories(model: nn.Module, stream, step) -> list[float]:
    dense = torch.optim.Adam([*model.attention.parameters(), *model.top.parameters()], lr=0.01)
    losses = []
    for history, target, labels in stream:
        loss = nn.functional.binary_cross_entropy_with_logits(model(history, target), labels)
        dense.zero_grad()
        loss.backward()
        dense.step()
        step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_a_model_of_sequences_gives_the_bits_of_nn_embedding(optimizer):
    weight = torch.rand(400, 8, generator=torch.Generator().manual_seed(1)) - 0.5
    table = nn.Embedding(400, 8, sparse=True, _weight=weight.clone())
    kinds = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
    rows_optimizer = kinds[optimizer](table.parameters(), lr=0.05)

    def both(history, target):  # one lookup, so that gradients add up in one order
        rows = table(torch.cat([history.reshape(-1), target]))
        return rows[: history.numel()].view(*history.shape, 8), rows[history.numel() :]

    def step() -> None:
        if optimizer != "sgd":  # whose sums coalesce in no fixed order
            gradient = table.weight.grad
            ids, dense = gradient._indices()[0], torch.zeros(400, 8)
            dense.index_add_(0, ids, gradient._values())
            used = ids.unique()
            table.weight.grad = torch.sparse_coo_tensor(used[None], dense[used], (400, 8))
        rows_optimizer.step()
        rows_optimizer.zero_grad()

    losses = train_histories(History(both), histories(), step)
    items = EmbeddingTable("item", 400, 8, ("history", "target"))
    with CachedEmbeddingCollection(
        [items], optimizer=optimizer, learning_rate=0.05, cache_rows=90, weights={"item": weight}
    ) as collection:

        def ours(history, target):
            found = collection({"history": history, "target": target})
            return found["history"].values().view(*history.shape, 8), found["target"].values()

        stream = collection.prefetch(histories(), lambda batch: {"history": batch[0], "target": batch[1]})
        assert train_histories(History(ours), stream, collection.step) == losses
        assert_rows_travelled(collection)
        assert torch.equal(collection.weight("item"), table.weight.detach())


def test_results_have_the_forms_of_torchrecs():
    batch = batches()[0]
    with make_collection() as collection:
        found = collection(batch.features)
        assert found.keys() == list(FEATURES)
        assert found.length_per_key() == [8, 8, 4, 8, 4, 4]
        assert torch.equal(torch.cat([found[name] for name in FEATURES], dim=1), found.values())
        assert all(torch.equal(found[name], values) for name, values in found.to_dict().items())
        configs = collection.embedding_bag_configs()
        assert [name for config in configs for name in config.feature_names] == list(FEATURES)  # as models read them
        assert not collection.is_weighted()
        assert collection.device == torch.device("cpu")
    twice = [EmbeddingTable("a", 9, 4, ("x", "y")), EmbeddingTable("b", 9, 2, ("x",))]
    features = {"x": (torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])), "y": torch.tensor([[4], [5]])}
    with CachedEmbeddingCollection(twice, cache_rows=10) as collection:
        found = collection(features)
        assert list(found) == ["x@a", "y", "x@b"]
        assert isinstance(found["y"], JaggedTensor)
        assert collection.embedding_names_by_table() == [["x@a", "y"], ["x@b"]]
        assert torch.equal(found["x@a"].values(), collection.weight("a", torch.tensor([1, 2, 3])))
        assert torch.equal(found["x@b"].values(), collection.weight("b", torch.tensor([1, 2, 3])))
        assert found["x@a"].offsets().tolist() == [0, 2, 3]


def test_means_are_those_of_embedding_bag_and_of_an_empty_bag_zero():
    rows = torch.rand(20, 4)
    ids, offsets = torch.tensor([3, 4, 5, 3, 19]), torch.tensor([0, 3, 3, 5])
    expected = nn.functional.embedding_bag(ids, rows, offsets, mode="mean", include_last_offset=True)
    table = EmbeddingTable("t", 20, 4, pooling="mean")
    with CachedEmbeddingBagCollection([table], cache_rows=10, weights={"t": rows}) as collection:
        assert torch.equal(collection({"t": (ids, offsets)})["t"], expected)
        assert torch.equal(collection.eval()({"t": (ids, offsets)})["t"], expected)
        assert not expected[1].any()


@pytest.mark.parametrize("depth", [0, 2])
def test_a_batch_without_samples_moves_nothing(depth):
    none = {name: torch.arange(0) for name in FEATURES}
    some = batches()[0].features
    with make_collection(prefetch_depth=depth) as collection:
        before = collection.state_dict()
        for features in collection.prefetch([none, some, none], lambda features: features):
            values = collection(features).values()
            assert values.shape == ((0 if features is none else BATCH), WIDTH)
            (values * 0).sum().backward()
            collection.step()
        assert collection.eval()(none).values().shape == (0, WIDTH)
        assert all(torch.equal(weight, before[name]) for name, weight in collection.state_dict().items())
        assert collection.steps == 3


def test_state_dicts_have_torchrecs_names_and_load_weights_beside_the_optimizers_state():
    stream = batches()
    with make_collection(optimizer="adagrad") as collection, make_collection(optimizer="adagrad") as other:
        model = Model(collection)
        train(model, stream[:5])
        state = model.state_dict()
        assert [key for key in state if key.startswith("embeddings")] == [
            f"embeddings.embedding_bags.{table.name}.weight" for table in TABLES
        ]
        sums = {table.name: torch.rand_like(initial_weights()[table.name]) for table in TABLES}
        train(Model(other), stream[:5])
        other.load_state_dict({f"embedding_bags.{name}.weight": weight for name, weight in sums.items()})
        assert_same_rows(other, sums)
        other.load_state_dict(collection.state_dict())
        again = Model(other)
        again.load_state_dict(state)
        # Rows go on as if nothing had happened: their sums of squares are those of the five steps.
        expected = train(model, stream[5:], torch.optim.SGD(model.layers.parameters(), lr=0.1))
        assert train(again, stream[5:], torch.optim.SGD(again.layers.parameters(), lr=0.1)) == expected
        with pytest.raises(RuntimeError, match="Missing key"):
            other.load_state_dict({})
        with pytest.raises(RuntimeError, match=r"embedding_bags.user.weight is \[3, 8\], the table is \[300, 8\]"):
            other.load_state_dict({**collection.state_dict(), "embedding_bags.user.weight": torch.zeros(3, 8)})
        with pytest.raises(RuntimeError, match="Unexpected key"):
            other.load_state_dict({**collection.state_dict(), "embedding_bags.more.weight": torch.zeros(3, 8)})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cache_rows": None}, "either cache_rows or cache_budget"),
        ({"cache_budget": "1GiB"}, "either cache_rows or cache_budget"),
        ({"cache_rows": 0}, "cache_rows is 0; the least is 1"),
        ({"cache_rows": None, "cache_budget": "many"}, 'cache_budget: "many" is not a size'),
        ({"cache_rows": None, "cache_budget": 20}, "it leaves no row"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; choose sgd, "),
        ({"policy": "oracle"}, "policy is 'oracle', which reads the ids of the whole run .* choose 'lookahead'"),
        ({"policy": "best"}, "policy is 'best'; choose lru, "),
        ({"policy": "lookahead", "row_counts": {"user": np.ones(300)}}, "row_counts are of policy='static'"),
        ({"learning_rate": math.nan}, "learning_rate is nan; give a finite number"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1; the least is 0"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1'; give a finite number"),
        ({"optimizer": "adam", "eps": "x"}, "eps is 'x'; give a finite number"),
        ({"policy": "static"}, "needs row_counts"),
        ({"policy": "static", "row_counts": {"user": np.ones(3)}}, "row_counts of table user"),
        ({"store": "disk"}, "store is 'disk'; choose host, lmdb"),
        ({"store_path": "here"}, "store_path is of store='lmdb'"),
        ({"store": "lmdb", "host_budget": 1000}, "host_budget leaves room for"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"weights": {"nobody": torch.zeros(1)}}, "there is no table nobody; there are user, "),
        ({"weights": {"user": torch.zeros(1, 8)}}, r"weights of table user are \[1, 8\]; give .* \[300, 8\]"),
        ({"weights": {"user": np.zeros((300, 8), np.float32)}}, "weights of table user are ndarray; give a tensor"),
        ({"eps": 1e-8}, "optimizer sgd has none"),
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"row_dtype": "int8"}, "row_dtype is 'int8'; choose fp32, bf16, fp16"),
        ({"row_dtype": torch.float16}, "row_dtype is torch.float16; choose fp32, bf16, fp16"),
        ({"device": "gpu"}, "device is 'gpu'; give 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": None}, "device is None; give 'cpu'"),
        ({"device": "meta"}, "device is 'meta'; give 'cpu'"),
        ({"row_state_dtype": "fp16"}, "row_state_dtype is 'fp16'; choose fp32, bf16"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        make_collection(**arguments)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_what_training_still_reads_is_not_written_when_a_collection_ends():
    with make_collection(device="cuda") as collection:
        for batch in collection.prefetch(batches()[:6], lambda batch: batch.features):
            collection(batch.features).values().sum().backward()
            collection.step()


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("setting", [{"prefetch_depth": 0}, {"policy": "lookahead", "lookahead": 4}], ids=str)
def test_cached_collections_on_cuda_have_the_bits_of_resident_ones(setting):
    def run(cache_rows: int, **arguments) -> list[torch.Tensor]:
        bags = make_collection(optimizer="adagrad", device="cuda", cache_rows=cache_rows, accumulate=2, **arguments)
        tables = [EmbeddingTable("item", 500, 8, ("item",))]
        rows = CachedEmbeddingCollection(
            tables, device="cuda", cache_rows=min(cache_rows // 3, 500), accumulate=2, **arguments
        )
        with bags, rows:
            for number, batch in enumerate(prefetch(batches()[:24], {m: lambda b: b.features for m in (bags, rows)})):
                sums = bags(batch.features).values().sum() + rows(batch.features)["item"].values().square().sum()
                sums.sin().backward()
                if number % 2:
                    bags.step()
                    rows.step()
            if cache_rows < 900:
                assert_rows_travelled(bags)
                assert_rows_travelled(rows)
            return [bags.weight(table.name) for table in TABLES] + [rows.weight("item")]

    cached, resident = run(330, **setting), run(1500)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cached, resident, strict=True))
