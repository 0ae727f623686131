"""What users put around modules over cached tables: scaling, autocast, compilation, evaluation, and the end."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from cachedlrm import CachedEmbeddingBags, UserError, clip_grad_norm_
from support.cached_collections import (
    Model,
    assert_rows_travelled,
    batches,
    dense_optimizer,
    loss_of,
    make_collection,
    plain_run,
    train,
    train_batch,
)
from support.models import default_dtype


def test_a_scaler_scales_rows_too_and_a_step_without_a_finite_gradient_is_left_out():
    losses, _ = plain_run("sgd")
    with make_collection() as collection:
        model = Model(collection)
        dense = dense_optimizer(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        found, left_out = [], 0
        for number, batch in enumerate(collection.prefetch(batches(), lambda batch: batch.features)):
            loss = loss_of(model, batch)
            scaler.scale(loss).backward()
            if number == 9:
                before = collection.steps
                collection.leaves()[0].grad[0] = torch.inf
                scaler.step(collection)
                left_out += collection.steps == before
                collection.zero_grad()
                break
            scaler.step(dense)
            scaler.step(collection)
            scaler.update()
            dense.zero_grad()
            found.append(loss.item())
        assert found == losses[:9]  # a power of two changes no bit
        assert left_out == 1


def test_autocast_around_the_users_layers():
    def run(cache_rows: int) -> list[float]:
        with make_collection(cache_rows=cache_rows, optimizer="adagrad") as collection:
            model = Model(collection)
            dense, losses = dense_optimizer(model), []
            for batch in collection.prefetch(batches()[:15], lambda batch: batch.features):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(model, batch)
                dense.zero_grad()
                loss.backward()
                dense.step()
                collection.step()
                losses.append(loss.item())
            assert collection.counters.evicted_rows > 0 or cache_rows > 200
            return losses

    assert run(200) == run(900)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler looks
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_compiled_models_have_the_same_numbers():
    losses, _ = plain_run("sgd")
    with make_collection() as collection:
        model = Model(collection)
        compiled = torch.compile(model, backend="aot_eager")
        dense = dense_optimizer(model)
        found = []
        for batch in collection.prefetch(batches(), lambda batch: batch.features):
            loss = nn.functional.binary_cross_entropy_with_logits(compiled(batch.features), batch.labels)
            dense.zero_grad()
            loss.backward()
            dense.step()
            collection.step()
            found.append(loss.item())
        assert_rows_travelled(collection)
        assert found == pytest.approx(losses, abs=1e-6)


def test_evaluation_in_the_middle_changes_nothing():
    losses, _ = plain_run("adagrad")
    with make_collection(optimizer="adagrad") as collection:
        model = Model(collection)
        dense, found, values = dense_optimizer(model), [], []
        for number, batch in enumerate(collection.prefetch(batches(), lambda batch: batch.features, pause_every=10)):
            found.append(train_batch(model, dense, batch))
            if number % 10 == 9:
                model.eval()
                with torch.no_grad():
                    values.append(loss_of(model, batches()[0]).item())
                model.train()
        assert found == losses
        assert len(set(values)) == 3
        assert_rows_travelled(collection)


def test_models_that_look_up_twice_before_a_step():
    with make_collection(accumulate=2) as twice, make_collection() as once:
        one, other = batches()[0].features, batches()[1].features
        (twice(one).values().sum() + twice(other).values().sum()).backward()
        twice.step()
        for features in (one, other):
            once(features).values().sum().backward()
            once.step()
        assert torch.allclose(twice.weight("user"), once.weight("user"), atol=1e-6)
        for batch in batches()[:2]:
            twice(batch.features)
        with pytest.raises(UserError, match="the batch before was not trained"):
            twice(batches()[2].features)
        twice.zero_grad()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, "0.1", None])
def test_a_learning_rate_that_became_none_moves_no_row(bad):
    with make_collection(accumulate=2) as collection, make_collection(accumulate=2) as expected:
        for module in (collection, expected):
            for batch in batches()[:2]:
                module(batch.features).values().sum().backward()
        collection.learning_rate = bad
        before = {name: collection.weight(name) for name in ("user", "place", "item", "tag")}
        with pytest.raises(UserError, match="learning_rate is "):
            collection.step()
        assert all(torch.equal(collection.weight(name), before[name]) for name in before)
        assert collection.steps == 0
        collection.learning_rate = expected.learning_rate = 0.25
        collection.step()
        expected.step()
        assert all(torch.equal(collection.weight(name), expected.weight(name)) for name in before)
        assert not torch.equal(collection.weight("user"), before["user"])


def test_a_batch_that_fits_nowhere_is_named():
    with make_collection(cache_rows=30) as collection:
        with pytest.raises(
            UserError, match=r"batch 0 looks up \d+ rows and the cache holds \d+ for tables of 8 columns"
        ):
            collection(batches()[0].features)
        with pytest.raises(UserError, match="batch 0: feature user is missing"):
            collection({})


def test_it_stays_where_it_was_made_and_ends():
    with make_collection() as collection:
        model = Model(collection).to("cpu").float()
        with pytest.raises(UserError, match="CachedEmbeddingBagCollection stays float32 on cpu"):
            model.half()
        with pytest.raises(TypeError, match=r"save\(path\)"):
            copy.deepcopy(model)
        assert "4 tables, 900 rows of 8 and 4, 200 on cpu, sgd" in str(model)
        assert not list(collection.parameters())
        train(model, batches()[:2])
    for call in (
        lambda: collection(batches()[0].features),
        collection.step,
        collection.state_dict,
        lambda: collection.stats,
    ):
        with pytest.raises(UserError, match="closed"):
            call()
    collection.close()


def test_tables_are_frozen_by_eval_alone():
    with make_collection() as collection:
        assert collection.requires_grad_() is collection
        with pytest.raises(UserError, match=r"no parameters to freeze; call eval\(\) on it"):
            collection.requires_grad_(False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_tracing_is_refused(training):
    # A traced graph has the rows of the ids that it was traced with, whatever ids it is called with.
    with (
        CachedEmbeddingBags((40, 30, 20), 4, cache_rows=60) as bags,
        pytest.raises(UserError, match="trace the layers"),
    ):
        torch.jit.trace(bags.train(training), torch.tensor([[1, 2, 0]]), check_trace=False)


def test_threads_that_serve_a_model_take_turns():
    generator = torch.Generator().manual_seed(1)
    with CachedEmbeddingBags((400, 300, 200), 4, cache_rows=600) as bags:
        bags.eval()
        ids = [torch.randint(0, 200, (64, 3), generator=generator) for _ in range(8)]
        expected = [bags(one) for one in ids]

        def serve(number: int) -> bool:
            one = number % len(ids)
            return torch.equal(bags(ids[one]), expected[one]) and bool(torch.isfinite(bags.weight(0)).all())

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(serve, range(400)))


@pytest.mark.parametrize("row_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "defaults",
    [lambda: default_dtype(torch.float64), lambda: default_dtype(torch.bfloat16), lambda: torch.device("meta")],
    ids=["float64", "bfloat16", "another device"],
)
def test_torchs_defaults_change_no_bit(tmp_path, defaults, row_dtype):
    def run() -> tuple[list[torch.Tensor], int]:
        stream = batches(20)
        with make_collection(optimizer="adagrad", row_dtype=row_dtype) as collection:
            for batch in collection.prefetch(stream, lambda batch: batch.features):
                collection(batch.features).values().square().sum().backward()
                clip_grad_norm_(collection, 1e3)
                collection.step()
            collection.to("cpu").save(tmp_path / "state")
            collection.load(tmp_path / "state")
            collection.load_state_dict(collection.state_dict())
            names = [table.name for table in collection.embedding_bag_configs()]
            evaluated = collection.eval()(stream[0].features).values()
            return [evaluated, *map(collection.weight, names)], collection.counters.evicted_rows

    expected, evicted = run()
    assert evicted > 0
    with defaults():
        found, _ = run()
    assert all(
        ours.dtype == torch.float32 and torch.equal(ours, its) for ours, its in zip(found, expected, strict=True)
    )


def test_a_graph_without_breaks_is_refused_with_the_reason():
    with make_collection() as collection:
        compiled = torch.compile(Model(collection), backend="eager", fullgraph=True)
        with pytest.raises(Exception, match="rows are looked up outside compiled code; drop fullgraph=True"):
            compiled(batches()[0].features)
