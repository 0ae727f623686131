"""`CachedEmbeddingBags` in a model and a loop of the user's own, beside the same model with plain torch embeddings."""

import copy
import functools
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cachedlrm import CachedEmbeddingBags, UserError
from support.plain_torch import RwsAdagrad

TABLE_ROWS, DIM, BATCH, STEPS, LR = (300, 40, 1000, 7), 8, 32, 40, 0.05
NUM_TABLES = len(TABLE_ROWS)
OPTIMIZERS = ["sgd", "adagrad", "rwsadagrad", "adam"]


ZEROS = torch.zeros(2, NUM_TABLES, dtype=torch.int64)


@functools.cache
def initial_weights() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.rand(rows, DIM, generator=generator) - 0.5 for rows in TABLE_ROWS)


def make_bags(optimizer: str = "adagrad", cache_rows: int = 170, **arguments) -> CachedEmbeddingBags:
    arguments = {"learning_rate": LR, "weights": initial_weights(), **arguments}
    return CachedEmbeddingBags(TABLE_ROWS, DIM, optimizer=optimizer, cache_rows=cache_rows, **arguments)


class Batch:
    """Skewed ids of bags of 0 to 3 lookups, with duplicates; or of one each.

    Attributes:
        ids, offsets: one tensor for each table, as nn.EmbeddingBag takes them.
    """

    def __init__(self, rng: np.random.Generator, num_samples: int, one_hot: bool = False) -> None:
        self.ids, self.offsets = [], []
        for rows in TABLE_ROWS:
            sizes = np.ones(num_samples, int) if one_hot else rng.integers(0, 4, num_samples)
            self.ids.append(torch.from_numpy(rng.zipf(1.2, sizes.sum()) % rows))
            self.offsets.append(torch.from_numpy(np.cumsum(sizes) - sizes))
        self.dense = torch.from_numpy(rng.standard_normal((num_samples, 5)).astype(np.float32))
        self.labels = torch.from_numpy((rng.random(num_samples) < 0.3).astype(np.float32))

    @property
    def lookup(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.ids, self.offsets


@functools.cache
def batches(one_hot: bool = False) -> tuple[Batch, ...]:
    rng = np.random.default_rng(7)
    return tuple(Batch(rng, BATCH if step < STEPS - 1 else 5, one_hot) for step in range(STEPS))


class PlainTables(nn.Module):
    """The same tables as parameters, pooled by ``pooling``, with torch's own optimizer."""

    def __init__(self, pooling, optimizer: str, weight_decay: float = 0.0, **settings: float) -> None:
        super().__init__()
        self._pooling = pooling
        self.weights = [nn.Parameter(weight.clone()) for weight in initial_weights()]
        make = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rwsadagrad": RwsAdagrad,
                "adam": torch.optim.SparseAdam}[optimizer]  # fmt: skip
        self._optimizer, self._weight_decay = make(self.weights, lr=LR, **settings), weight_decay

    def forward(self, ids, offsets):
        pooled = [self._pooling(*parts) for parts in zip(self.weights, ids, offsets, strict=True)]
        return torch.stack(pooled, dim=1)

    def step(self, ids) -> None:
        for weight, table_ids in zip(self.weights, ids, strict=True):
            if not weight.grad.is_sparse:  # the lazy optimizers take sparse gradients
                rows = table_ids.unique()
                weight.grad = torch.sparse_coo_tensor(rows[None], weight.grad[rows], weight.shape)
            with torch.no_grad():
                weight[table_ids.unique()] *= 1 - LR * self._weight_decay
        self._optimizer.step()
        self._optimizer.zero_grad()


def embedding_bag(weight, ids, offsets):
    """nn.EmbeddingBag's function."""
    return nn.functional.embedding_bag(ids, weight, offsets, mode="sum", sparse=True)


def ordered_bag(weight, ids, offsets):
    """The same from nn.Embedding's function, whose backward adds gradients in the order of the lookups."""
    sizes = torch.diff(offsets, append=torch.tensor([len(ids)]))
    bags = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return torch.zeros(len(sizes), weight.shape[1]).index_add(0, bags, nn.functional.embedding(ids, weight))


class Model(nn.Module):
    """A model that is no DLRM: an attention of the tables' vectors over each other."""

    def __init__(self, embeddings: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = embeddings
        self.attention = nn.MultiheadAttention(DIM, 2, batch_first=True)
        self.top = nn.Sequential(nn.Linear(5 + NUM_TABLES * DIM, 16), nn.GELU(), nn.Linear(16, 1))

    def forward(self, dense, ids, offsets=None):
        vectors = self.embeddings(ids, offsets)
        vectors = vectors + self.attention(vectors, vectors, vectors, need_weights=False)[0]
        return self.top(torch.cat([dense, vectors.flatten(1)], dim=1)).squeeze(1)


def loss_of(model: Model, batch: Batch) -> torch.Tensor:
    return nn.functional.binary_cross_entropy_with_logits(model(batch.dense, *batch.lookup), batch.labels)


def dense_optimizer(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def train_plain(optimizer: str, pooling, stream, **settings: float) -> tuple[list[float], Model]:
    model = Model(PlainTables(pooling, optimizer, **settings))
    dense = dense_optimizer(model)
    losses = []
    for batch in stream:
        loss = loss_of(model, batch)
        dense.zero_grad()
        loss.backward()
        dense.step()
        model.embeddings.step(batch.ids)
        losses.append(loss.item())
    return losses, model


def train_cached(model: Model, dense: torch.optim.Optimizer, stream, ahead: bool = True) -> list[float]:
    ready = model.embeddings.prefetch(stream, lambda batch: batch.lookup) if ahead else stream
    return [train_batch(model, dense, batch) for batch in ready]


def train_batch(model: Model, dense: torch.optim.Optimizer, batch: Batch) -> float:
    """One step of a user's loop; the loss."""
    loss = loss_of(model, batch)
    dense.zero_grad()
    loss.backward()
    dense.step()
    model.embeddings.step()
    return loss.item()


def assert_rows_travelled(bags: CachedEmbeddingBags) -> None:
    assert bags.counters.evicted_rows > 0
    assert bags.counters.written_back_rows > 0
    assert bags.counters.fetched_rows > 0


def assert_same_model(cached: Model, plain: Model) -> None:
    for table, weight in enumerate(plain.embeddings.weights):
        assert torch.equal(cached.embeddings.weight(table), weight.detach())
    assert_same_dense(cached, plain)


def assert_same_dense(cached: Model, plain: Model) -> None:
    ours, theirs = dict(cached.named_parameters()), dict(plain.named_parameters())
    assert ours
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


# --- the same bits


@pytest.mark.parametrize(
    "setting",
    [
        {"ahead": False},
        {"prefetch_depth": 0},
        {"prefetch_depth": 2},
        {"prefetch_depth": 5, "policy": "lru"},
        {"prefetch_depth": 2, "policy": "lookahead", "lookahead": 6},
    ],
    ids=str,
)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_users_loop_gives_the_bits_of_plain_torch(optimizer, setting):
    setting = dict(setting)
    ahead = setting.pop("ahead", True)
    pooling = embedding_bag if optimizer == "sgd" else ordered_bag
    plain_losses, plain = train_plain(optimizer, pooling, batches())
    with make_bags(optimizer, **setting) as bags:
        model = Model(bags)
        losses = train_cached(model, dense_optimizer(model), batches(), ahead)
        assert_rows_travelled(bags)
        assert losses == plain_losses
        assert_same_model(model, plain)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_rows_decay_and_take_an_eps(optimizer):
    settings = {"weight_decay": 0.2, **({} if optimizer == "sgd" else {"eps": 1e-3})}
    pooling = embedding_bag if optimizer == "sgd" else ordered_bag
    plain_losses, plain = train_plain(optimizer, pooling, batches(), **settings)
    with make_bags(optimizer, **settings) as bags:
        model = Model(bags)
        assert train_cached(model, dense_optimizer(model), batches()) == plain_losses
        assert_rows_travelled(bags)
        assert_same_model(model, plain)
    assert plain_losses != train_plain(optimizer, pooling, batches())[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_embedding_bag_too_where_its_sums_have_one_order(optimizer):
    """nn.EmbeddingBag sorts lookups with a sort that is not stable; a sum of two is the same either way."""
    rng = np.random.default_rng(3)
    stream = []
    for _ in range(STEPS):
        batch = Batch(rng, 6, one_hot=True)
        twice = [torch.from_numpy(np.repeat(rng.permutation(rows)[:3], 2)) for rows in TABLE_ROWS]
        batch.ids = [ids[torch.from_numpy(rng.permutation(6))] for ids in twice]
        stream.append(batch)
    plain_losses, plain = train_plain(optimizer, embedding_bag, stream)
    with make_bags(optimizer, 24) as bags:
        model = Model(bags)
        assert train_cached(model, dense_optimizer(model), stream) == plain_losses
        assert_rows_travelled(bags)
        assert_same_model(model, plain)


def test_several_epochs_and_loops_that_are_left_early_are_one_run():
    stream = batches()
    plain_losses, plain = train_plain("adagrad", ordered_bag, [*stream[:10], *stream[:3], *stream[10:]])
    for setting in ({"policy": "lookahead", "lookahead": 4}, {"prefetch_depth": 4}, {"prefetch_depth": 0}):
        with make_bags("adagrad", **setting) as bags:
            model = Model(bags)
            dense = dense_optimizer(model)
            losses = train_cached(model, dense, stream[:10])
            for number, batch in enumerate(bags.prefetch(stream, lambda batch: batch.lookup)):
                if number == 3:  # handed out, and left as it is
                    break
                losses += train_cached(model, dense, [], ahead=False)
                losses.append(train_batch(model, dense, batch))
            losses += train_cached(model, dense, stream[10:])
            assert_rows_travelled(bags)
            assert losses == plain_losses
            assert_same_model(model, plain)


def test_all_forms_of_ids_are_one():
    batch = batches(one_hot=True)[0]
    square = torch.stack(batch.ids, dim=1)  # [B, T]
    ends = torch.arange(BATCH * NUM_TABLES + 1)
    with make_bags() as bags, torch.no_grad():
        pooled = bags(square)
        assert pooled.shape == (BATCH, NUM_TABLES, DIM)
        for table, weight in enumerate(initial_weights()):
            assert torch.equal(pooled[:, table], weight[batch.ids[table]])
        assert torch.equal(bags(*batch.lookup), pooled)
        assert torch.equal(bags(square.T.reshape(-1), ends), pooled)  # as a KeyedJaggedTensor has them
        assert torch.equal(bags(square.int()), pooled)
        doubled = torch.stack([square, square], dim=2)  # [B, T, 2]
        assert torch.equal(bags(doubled), pooled + pooled)
        jagged = batches()[0]
        joined = torch.cat(jagged.ids)
        starts, end = [], 0
        for ids, offsets in zip(*jagged.lookup, strict=True):
            starts.append(offsets + end)
            end += len(ids)
        assert torch.equal(bags(joined, torch.cat([*starts, torch.tensor([end])])), bags(*jagged.lookup))
        expected = [embedding_bag(*parts) for parts in zip(initial_weights(), *jagged.lookup, strict=True)]
        assert torch.equal(bags(*jagged.lookup), torch.stack(expected, dim=1))


def test_forward_twice_adds_gradients():
    batch = batches()[0]
    with make_bags("sgd") as once, make_bags("sgd") as twice:
        (2 * once(*batch.lookup).sum()).backward()
        (twice(*batch.lookup).sum() + twice(*copy.deepcopy(batch.lookup)).sum()).backward()
        once.step()
        twice.step()
        assert torch.equal(once.weight(0), twice.weight(0))
        assert not torch.equal(once.weight(0), initial_weights()[0])


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")  # its gradients are small
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_gradient_with_a_graph_of_its_own_moves_rows_alike(optimizer):
    weights = []
    for has_graph in (False, True):
        with make_bags(optimizer) as bags:
            for batch in batches()[:5]:
                pooled = bags(*batch.lookup)
                pooled.square().sum().backward(create_graph=has_graph)
                bags.step()
            weights.append([bags.weight(table) for table in range(NUM_TABLES)])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_learning_rate_may_change_between_steps():
    with make_bags("sgd", learning_rate=100.0) as bags:
        bags.learning_rate = 0.5
        bags(torch.zeros(1, NUM_TABLES, dtype=torch.int64)).sum().backward()
        bags.step()
        assert torch.equal(bags.weight(0, torch.tensor([0])), initial_weights()[0][:1] - 0.5)


def test_initial_weights_are_copied_or_follow_from_the_seed():
    weights = [weight.clone() for weight in initial_weights()]
    with make_bags(weights=weights) as bags:
        weights[0].zero_()
        assert torch.equal(bags.weight(0), initial_weights()[0])
    with make_bags(weights=None, seed=5) as one, make_bags("adam", 30, weights=None, seed=5) as same:
        assert torch.equal(one.weight(2), same.weight(2))
        assert one.weight(2).abs().max() <= TABLE_ROWS[2] ** -0.5
        assert one.weight(2).unique().numel() > 1000


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_batches_without_ids_move_nothing(optimizer):
    none = torch.empty(0, dtype=torch.int64)
    with make_bags(optimizer) as bags:
        for ids, offsets in (([none] * NUM_TABLES, [ZEROS[:, 0]] * NUM_TABLES), (ZEROS[:0], None)):
            pooled = bags(ids, offsets)
            assert pooled.shape == (2 if offsets else 0, NUM_TABLES, DIM)
            assert not pooled.any()
            pooled.sum().backward()
            bags.step()
        assert bags.counters.lookups == 0
        assert torch.equal(bags.weight(0), initial_weights()[0])


# --- evaluation


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference_mode"])
def test_evaluation_leaves_training_untouched(mode):
    held_out = batches()[-2]

    def run(evaluate: bool):
        predictions = []
        with make_bags("adam") as bags:
            model = Model(bags)
            dense = dense_optimizer(model)
            losses = []
            for number, batch in enumerate(bags.prefetch(batches(), lambda batch: batch.lookup, pause_every=5)):
                if evaluate and number % 10 == 4:
                    model.train(mode != "eval")
                    with {"eval": nullcontext, "no_grad": torch.no_grad}.get(mode, torch.inference_mode)():
                        predictions.append(model(held_out.dense, *held_out.lookup).detach())
                        loss_of(model, batch)  # the batch itself may be read, too
                    model.train()
                losses.append(train_batch(model, dense, batch))
            assert_rows_travelled(bags)
            return losses, bags.counters, [bags.weight(table) for table in range(NUM_TABLES)], predictions

    plain, evaluated = run(False), run(True)
    assert evaluated[0] == plain[0]
    assert evaluated[1] == plain[1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(evaluated[2], plain[2], strict=True))
    assert len(evaluated[3]) == STEPS // 10
    assert not torch.equal(evaluated[3][0], evaluated[3][1])


def test_evaluation_reads_current_rows():
    batch = batches()[0]
    with make_bags("sgd", cache_rows=170) as bags:
        model = Model(bags)
        dense = dense_optimizer(model)
        train_cached(model, dense, batches()[:20])
        assert_rows_travelled(bags)
        model.eval()
        values = bags(*batch.lookup)
        assert not values.requires_grad
        expected = [embedding_bag(bags.weight(t), batch.ids[t], batch.offsets[t]) for t in range(NUM_TABLES)]
        assert torch.equal(values, torch.stack(expected, dim=1))


# --- state


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loaded_run_goes_on_with_the_same_bits(optimizer, seeded, tmp_path):
    arguments = {"weights": None, "seed": 5} if seeded else {}
    half = STEPS // 2
    with make_bags(optimizer, **arguments) as bags:
        straight = Model(bags)
        whole = train_cached(straight, dense_optimizer(straight), batches())
        with make_bags(optimizer, **arguments) as first:
            model = Model(first)
            dense = dense_optimizer(model)
            losses = train_cached(model, dense, batches()[:half])
            torch.save({"model": model.state_dict(), "dense": dense.state_dict()}, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        num_rows = len(state["model"]["embeddings.rows"])
        assert (0 < num_rows < sum(TABLE_ROWS)) if seeded else (num_rows == sum(TABLE_ROWS))
        with make_bags(optimizer, weights=None, seed=99, cache_rows=150) as second:
            model = Model(second)
            dense = dense_optimizer(model)
            train_cached(model, dense, batches()[:3])  # what was there before is gone
            model.load_state_dict(state["model"])
            dense.load_state_dict(state["dense"])
            assert second.steps == half
            losses += train_cached(model, dense, batches()[half:])
            assert losses == whole
            assert_rows_travelled(second)
            assert all(torch.equal(second.weight(table), bags.weight(table)) for table in range(NUM_TABLES))
            assert_same_dense(model, straight)


@pytest.mark.parametrize("way", ["save", "state_dict"])
def test_a_loader_goes_on_with_its_draws_in_a_loaded_run(way, tmp_path):
    samples = [batch.lookup for batch in batches()]

    def epoch(bags) -> list[float]:
        loader = DataLoader(samples, batch_size=None, shuffle=True)
        losses = []
        for lookup in bags.prefetch(loader, tuple):  # a DataLoader makes lists of tuples
            loss = bags(*lookup).square().sum()
            loss.backward()
            bags.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(3)
    with make_bags() as bags:
        first, second = epoch(bags), epoch(bags)
    torch.manual_seed(3)
    with make_bags() as bags:
        assert epoch(bags) == first
        bags.save(tmp_path / "rows")
        torch.save((bags.state_dict(), torch.get_rng_state()), tmp_path / "state.pt")
    with make_bags(weights=None) as bags:
        state, generator = torch.load(tmp_path / "state.pt", weights_only=True)
        torch.set_rng_state(generator)
        if way == "save":
            bags.load(tmp_path / "rows")
        else:
            bags.load_state_dict(state)
        assert epoch(bags) == second
        assert_rows_travelled(bags)


@pytest.mark.parametrize(("row", "state"), [("bf16", "fp32"), ("fp16", "bf16")])
def test_rows_of_16_bits_have_the_bits_of_resident_ones_after_a_load_too(row, state):
    kept = {"row_dtype": row, "row_state_dtype": state, "seed": 5}
    with make_bags(cache_rows=sum(TABLE_ROWS), **kept) as resident, make_bags(**kept) as cached:
        straight, model = Model(resident), Model(cached)
        whole = train_cached(straight, dense_optimizer(straight), batches())
        dense = dense_optimizer(model)
        losses = train_cached(model, dense, batches()[: STEPS // 2])
        with make_bags(**{**kept, "seed": 6}) as second:
            second.load_state_dict(cached.state_dict())
            model.embeddings = second
            losses += train_cached(model, dense, batches()[STEPS // 2 :])
            assert losses == whole
            assert_rows_travelled(second)
            assert all(torch.equal(second.weight(table), resident.weight(table)) for table in range(NUM_TABLES))
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[row]
        assert torch.equal(cached.weight(0).to(dtype).float(), cached.weight(0))


def test_a_state_of_before_rows_had_a_type_is_one_of_32_bits():
    with make_bags() as bags, make_bags(row_dtype="bf16") as others:
        state = bags.state_dict()
        before = {
            name: value for name, value in state["_extra_state"].items() if not name.startswith(("row_", "rounding"))
        }
        bags.load_state_dict({**state, "_extra_state": before})
        with pytest.raises(RuntimeError, match="the state is of row_dtype fp32, these tables of bf16"):
            others.load_state_dict({**state, "_extra_state": before})


@pytest.mark.parametrize("policy", ["lrfu", "lookahead"])
def test_state_inside_the_loop_is_that_of_the_steps_taken(policy):
    with make_bags("adam", policy=policy, lookahead=5) as bags, make_bags("adam") as short:
        model, short_model = Model(bags), Model(short)
        dense = dense_optimizer(model)
        train_cached(short_model, dense_optimizer(short_model), batches()[:8])
        for number, batch in enumerate(bags.prefetch(batches(), lambda batch: batch.lookup, pause_every=8)):
            train_batch(model, dense, batch)
            if number == 7:
                state, expected = bags.state_dict(), short.state_dict()
                assert torch.equal(state["rows"], expected["rows"])
                assert torch.equal(state["records"], expected["records"])
                assert state["_extra_state"] == expected["_extra_state"]


def test_a_state_of_other_tables_is_refused_by_name():
    with make_bags("adagrad") as bags:
        state = bags.state_dict()
        for change, word in (
            ({"optimizer": "adam"}, "optimizer"),
            ({"dim": 4}, "dim"),
            ({"table_rows": [1, 2]}, "table_rows"),
        ):
            with pytest.raises(RuntimeError, match=word):
                bags.load_state_dict({**state, "_extra_state": {**state["_extra_state"], **change}})
        for change, word in (
            ({"rows": state["rows"][:-1]}, "records are"),
            ({"rows": state["rows"].float()}, "damaged"),
            ({"rows": state["rows"].clamp(max=5)}, "distinct"),
            ({"rows": state["rows"] + 1}, "distinct"),
            ({"rows": state["rows"][1:], "records": state["records"][1:]}, "no seed"),
        ):
            with pytest.raises(RuntimeError, match=word):
                bags.load_state_dict({**state, **change})
        with pytest.raises(RuntimeError, match="Missing key"):
            bags.load_state_dict({})
        bags.load_state_dict({}, strict=False)


# --- mistakes


def test_calls_out_of_order_are_named():
    batch, other = batches()[0], batches()[1]
    with make_bags() as bags:
        with pytest.raises(UserError, match="step was called without a batch"):
            bags.step()
        bags(*batch.lookup)
        with pytest.raises(UserError, match=r"without a gradient; call loss.backward\(\)"):
            bags.step()
        with pytest.raises(UserError, match="the batch before was not trained"):
            bags(*other.lookup)
        with pytest.raises(UserError, match="starting to prefetch: the batch before was not trained"):
            next(bags.prefetch(batches(), lambda batch: batch.lookup))
        bags.zero_grad()
        bags(*other.lookup).sum().backward()
        bags.step()
        with pytest.raises(UserError, match="step was called without a batch"):
            bags.step()


def test_calls_out_of_order_inside_the_loop_are_named():
    other = batches()[9]
    with make_bags() as bags:
        loop = bags.prefetch(batches(), lambda batch: batch.lookup)
        next(loop)
        with pytest.raises(UserError, match="other ids than those of the batch that prefetch handed out"):
            bags(*other.lookup)
        loop = bags.prefetch(batches(), lambda batch: batch.lookup)
        next(loop)
        for call in (lambda: bags.eval()(*other.lookup), bags.state_dict, lambda: bags.weight(0)):
            with pytest.raises(UserError, match="pause_every"):
                call()
            bags.train()
        last = bags.prefetch(batches(), lambda batch: batch.lookup)
        bags(*next(last).lookup).sum().backward()
        with pytest.raises(UserError, match="going on to the next batch: the batch before was not trained"):
            next(last)
        with pytest.raises(UserError, match="one after the other"):
            next(loop)


def test_batches_may_be_left_as_they_are():
    with make_bags() as bags:
        for number, batch in enumerate(bags.prefetch(batches(), lambda batch: batch.lookup)):
            if number % 2:
                bags(*batch.lookup).sum().backward()
                bags.zero_grad()
        assert_rows_travelled(bags)
        assert bags.steps == 0
        assert all(torch.equal(bags.weight(t), weight) for t, weight in enumerate(initial_weights()))


def test_an_error_of_the_batches_comes_in_its_place_and_training_goes_on():
    def broken():
        yield from batches()[:4]
        raise OSError("the disk is gone")

    for depth in (0, 3):
        with make_bags(prefetch_depth=depth, policy="lookahead", lookahead=3) as bags:
            model = Model(bags)
            dense = dense_optimizer(model)
            with pytest.raises(OSError, match="the disk is gone"):
                train_cached(model, dense, broken())
            assert bags.steps == 4
            train_cached(model, dense, batches()[4:])
            _, plain = train_plain("adagrad", ordered_bag, batches())
            assert_same_model(model, plain)


@pytest.mark.parametrize("ahead", [True, False])
def test_an_id_out_of_range_is_named(ahead):
    stream = [copy.deepcopy(batch) for batch in batches(one_hot=True)[:3]]
    stream[2].ids[1][4] = 40
    with make_bags() as bags:
        model = Model(bags)
        words = r"batch 2: sample 4, table 1: id 40 is outside 0..39; .* table_rows"
        with pytest.raises(UserError, match=words):
            train_cached(model, dense_optimizer(model), stream, ahead)
        assert bags.steps == 2
        with pytest.raises(UserError, match=r"evaluation: sample 0, table 3: id -1 is outside 0..6; ids count from 0"):
            bags.eval()(torch.tensor([[0, 0, 0, -1]]))


@pytest.mark.parametrize(
    ("ids", "offsets", "words"),
    [
        (ZEROS.float(), None, r"ids without offsets are torch.float32 \[2, 4\]; give an int64 or int32 tensor"),
        (ZEROS[:, :3], None, r"ids are \[2, 3\]; the second axis is for the 4 tables"),
        (ZEROS[0], None, "of 2 axes"),
        ([ZEROS[0]] * 4, None, "needs offsets beside it"),
        ([ZEROS[0]] * 4, ZEROS[0], "both a tensor, or both"),
        ([ZEROS[0]] * 3, [ZEROS[0]] * 3, "3 tensors of ids and 3 of offsets for 4 tables"),
        ([ZEROS[0]] * 4, [ZEROS[0]] * 3 + [ZEROS[0][:1]], "table 3 has 1 bags and table 0 has 4"),
        ([ZEROS[0]] * 4, [ZEROS[0] + 1] * 4, "offsets of table 0 do not rise from 0 to the number of ids, 4"),
        (ZEROS[0], ZEROS[0], r"4 offsets; for B samples in 4 tables there are 4 \* B \+ 1"),
        (ZEROS[0], torch.tensor([0, 2, 1, 3, 4]), "do not rise"),
        (ZEROS[0], torch.tensor([0, 1, 2, 3, 5]), "do not rise"),
        ("ids", None, "needs offsets"),
    ],
)
def test_ids_of_another_form_are_refused(ids, offsets, words):
    with make_bags() as bags, pytest.raises(UserError, match=words):
        bags(ids, offsets)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cache_rows": None}, "either cache_ratio or cache_rows"),
        ({"cache_ratio": 0.5}, "either cache_ratio or cache_rows"),
        ({"cache_rows": None, "cache_ratio": 1.5}, "cache_ratio is 1.5"),
        ({"cache_rows": 1.5}, "cache_rows is 1.5; give a whole number"),
        ({"optimizer": "lion"}, "optimizer is 'lion'; choose sgd, "),
        ({"optimizer": "sgd", "eps": 1e-8}, "eps is 1e-08 and optimizer sgd has none"),
        ({"eps": 0.0}, "eps is 0.0; the least is 1e-30"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"policy": "static"}, "policy is 'static'; choose lru, "),
        ({"row_dtype": "int8"}, "row_dtype is 'int8'; choose fp32, bf16, fp16"),
        ({"policy": "oracle"}, "choose 'lookahead'"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"prefetch_depth": -1}, "prefetch_depth is -1"),
        ({"weights": initial_weights()[:3]}, "weights are "),
        ({"host_bytes": 0}, "host_bytes is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(UserError, match=words):
        make_bags(**arguments)


@pytest.mark.parametrize(("rows", "dim"), [((), 8), ((5, 0), 8), ((2**31,), 8), ((5,), 0)])
def test_sizes_that_do_not_fit_are_named(rows, dim):
    with pytest.raises(UserError):
        CachedEmbeddingBags(rows, dim, cache_ratio=0.5)


def test_rows_that_fit_nowhere_are_refused_before_they_move():
    with make_bags(cache_rows=20) as bags:
        with pytest.raises(UserError, match=r"batch 0 looks up \d+ rows and the cache holds 20; raise cache_rows"):
            bags(*batches()[0].lookup)
        ids = torch.tensor([[row, 0, row, 0] for row in range(9)])
        bags(ids).sum().backward()
        bags.step()
    with make_bags(host_bytes=64 * 300) as bags:  # records of 16 columns
        model = Model(bags)
        with pytest.raises(UserError, match="host memory may hold 300; raise host_bytes"):
            train_cached(model, dense_optimizer(model), batches())
        assert bags.steps > 1
        rows = len(bags.state_dict()["rows"])  # all that was trained can be saved
        assert rows == sum(TABLE_ROWS)


def test_closed_bags_say_so():
    with make_bags() as bags:
        loop = bags.prefetch(batches(), lambda batch: batch.lookup)
        next(loop)
    for call in (lambda: bags(ZEROS), bags.step, bags.state_dict, lambda: bags.weight(0)):
        with pytest.raises(UserError, match="closed"):
            call()
    bags.close()


def test_it_stays_where_it_was_made():
    with make_bags() as bags:
        model = Model(bags).to("cpu").float().train()
        for change in (model.half, lambda: model.to("meta")):
            with pytest.raises(UserError, match="stays float32 on cpu"):
                change()
        with pytest.raises(TypeError, match="state_dict"):
            copy.deepcopy(model)
        assert "4 tables, 1,347 rows of 8, 170 on cpu, adagrad" in str(model)
        assert not list(bags.parameters())
        with pytest.raises(UserError, match="no table 4"):
            bags.weight(4)
        with pytest.raises(UserError, match=r"outside 0..6"):
            bags.weight(3, torch.tensor([7]))
        for table, words in ((-1, "table is -1"), ("0", "table is '0'; give a whole number")):
            with pytest.raises(UserError, match=words):
                bags.weight(table)
        for ids in (torch.tensor([1.5]), torch.tensor([True]), [1, 2]):
            with pytest.raises(UserError, match=r"table 3: ids are .*; give an int64 or int32 tensor"):
                bags.weight(3, ids)
        assert torch.equal(bags.weight(3, torch.tensor([[1], [2]], dtype=torch.int32)), bags.weight(3)[1:3])


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, cachedlrm; print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])"
    code += "; from cachedlrm import CachedEmbeddingBags, UserError; print(CachedEmbeddingBags.__name__)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\nCachedEmbeddingBags\n"
    with pytest.raises(ImportError):
        exec("from cachedlrm import Missing")


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("setting", [{"prefetch_depth": 0}, {"prefetch_depth": 3}, {"policy": "lookahead"}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_cached_loop_on_cuda_has_the_bits_of_a_resident_one(optimizer, setting):
    def train_on_cuda(cache_rows: int, **arguments) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        with make_bags(optimizer, cache_rows, device="cuda", **arguments) as bags:
            for number, batch in enumerate(bags.prefetch(batches(), lambda batch: batch.lookup, pause_every=9)):
                if number == 8:
                    with torch.no_grad():
                        bags(*batches()[0].lookup)
                if number % 7 != 3:  # others are left as they are
                    bags(*batch.lookup).sin().square().sum().backward()
                    bags.step()
            if cache_rows < sum(TABLE_ROWS):
                assert_rows_travelled(bags)
            return [bags.weight(table) for table in range(NUM_TABLES)], bags.state_dict()

    (cached, cached_state), (resident, resident_state) = train_on_cuda(170, **setting), train_on_cuda(sum(TABLE_ROWS))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(cached, resident, strict=True))
    assert torch.equal(cached_state["records"], resident_state["records"])
