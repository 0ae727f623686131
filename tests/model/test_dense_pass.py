"""The dense part's own passes and optimizers beside torch's autograd and torch.optim, bit for bit."""

import itertools
from dataclasses import replace

import pytest
import torch

from cachedlrm.model import interaction as interaction_module
from cachedlrm.model.dense_optimizer import DenseOptimizer
from cachedlrm.model.dense_pass import DensePass
from cachedlrm.model.dense_settings import DenseSettings
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.features import FeatureVectors
from cachedlrm.model.interaction import DotInteraction, InteractionKind
from cachedlrm.model.losses import make_loss
from cachedlrm.model.tables import Embedding, Table
from support.models import plain_features

CPU = torch.device("cpu")
KINDS = {
    "dot": InteractionKind("dot"),
    "itself": InteractionKind("dot", itself=True),
    "cat": InteractionKind("cat"),
    "dcn": InteractionKind("dcn", cross_layers=3, cross_rank=6),
    "one cross layer": InteractionKind("dcn", cross_layers=1, cross_rank=2),
    "projection": InteractionKind("projection", branches=((9, 10), (15,))),
}
TORCH_OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
}


def mixed_features(operation: str) -> FeatureVectors:
    """A plain feature, one of quotients and remainders, and a narrow one that is projected."""
    dim = 4
    embeddings = [Embedding(0, 9, dim), Embedding(1, 20, dim, collisions=4), Embedding(2, 30, 2, mixed=True)]
    by_dim: dict[int, list[Table]] = {}
    for embedding in embeddings:
        for table in embedding.tables:
            by_dim.setdefault(table.dim, []).append(table)
    return FeatureVectors(embeddings, list(by_dim.values()), dim, operation)


def batch(samples: int, model: Dlrm, groups: list[tuple[int, int]], seed: int) -> tuple:
    """Dense features, pooled vectors of each group (tables, dim), and labels of 0, 1 and between."""
    random = torch.Generator().manual_seed(seed)
    dense = torch.randn(samples, model.bot_l[0].in_features, generator=random)
    pooled = [torch.randn(samples * tables, dim, generator=random) for tables, dim in groups]
    labels = torch.randint(0, 3, (samples,), generator=random) / 2
    return dense, pooled, labels


def assert_same_bits(model: Dlrm, groups: list[tuple[int, int]], loss_name: str, samples: int) -> None:
    """Two passes whose gradients are added, against autograd's."""
    loss = make_loss(loss_name, (0.3, 2.0), CPU)
    optimizer = DenseOptimizer(DenseSettings("sgd"), model)
    dense_pass = DensePass(model, optimizer.grads, loss)
    for number in range(2):
        dense, pooled, labels = batch(samples, model, groups, seed=number)
        leaves = [group.clone().requires_grad_() for group in pooled]
        expected = model(dense, leaves)
        expected_loss = loss(expected, labels)
        expected_loss.backward()
        prediction = dense_pass.forward(dense, pooled)
        assert torch.equal(prediction, expected)
        assert torch.equal(dense_pass.loss(prediction, labels), expected_loss)
        dense_pass.backward(prediction, labels, adds=number > 0)
        for grad, leaf in zip(pooled, leaves, strict=True):
            assert torch.equal(grad, leaf.grad)
        for name, parameter in model.named_parameters():
            assert torch.equal(optimizer.grads[name], parameter.grad), name
            assert parameter.grad.any()


@pytest.mark.parametrize("samples", [1, 33])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "sigmoid"])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_of_every_activation_and_interaction(kind, activation, samples):
    model = Dlrm(plain_features(3, 5), (7, 24, 5), (17, 1), KINDS[kind], activation=activation)
    assert_same_bits(model, [(3, 5)], "bce", samples)


@pytest.mark.parametrize("itself", [False, True])
@pytest.mark.parametrize(("features", "dim"), [(3, 5), (26, 16), (4, 64)])
def test_interaction_in_parts_has_the_bits_of_the_whole(monkeypatch, features, dim, itself):
    interaction, random = DotInteraction(features, dim, itself), torch.Generator().manual_seed(4)
    dense, vectors = torch.randn(50, dim, generator=random), torch.randn(50, features, dim, generator=random)
    results = []
    for samples in (50, 7, 1):
        monkeypatch.setattr(interaction_module, "_PART_BYTES", {"cpu": samples * 4 * (features + 1) * dim})
        vectors_grad = vectors.clone()
        inputs = interaction(dense, vectors_grad)
        grad = torch.sin(torch.arange(inputs.numel())).view(inputs.shape)
        results.append((inputs, interaction.backward(dense, vectors_grad, grad), vectors_grad))
    leaves = dense.requires_grad_(), vectors.requires_grad_()
    together = torch.cat([dense.unsqueeze(1), vectors], dim=1)
    lower = torch.tril_indices(features + 1, features + 1, offset=0 if itself else -1)
    whole = torch.cat([dense, together.bmm(together.mT)[:, lower[0], lower[1]]], dim=1)
    expected = whole, *torch.autograd.grad(whole, leaves, grad)
    for found in results:
        assert all(itertools.starmap(torch.equal, zip(found, expected, strict=True)))


@pytest.mark.parametrize(("loss_name", "kind"), [("mse", "dot"), ("bce", "dcn"), ("wbce", "projection")])
def test_shares_of_a_mini_batch_add_up(loss_name, kind):
    interaction = replace(KINDS[kind], branches=((9, 16), (8,))) if kind == "projection" else KINDS[kind]
    model = Dlrm(plain_features(3, 8), (7, 32, 8), (17, 1), interaction)
    loss, optimizer = make_loss(loss_name, (0.3, 2.0), CPU), DenseOptimizer(DenseSettings("sgd"), model)
    dense_pass = DensePass(model, optimizer.grads, loss)
    totals, grads = [], []
    for bounds in ((0, 40), (0, 25, 40)):
        dense, (pooled,), labels = batch(40, model, [(3, 8)], seed=1)
        total = torch.zeros(())
        for first, last in itertools.pairwise(bounds):
            share = (last - first) / 40
            prediction = dense_pass.forward(dense[first:last], [pooled[3 * first : 3 * last]])
            total += dense_pass.loss(prediction, labels[first:last], share)
            dense_pass.backward(prediction, labels[first:last], adds=first > 0, share=share)
        totals.append(total)
        grads.append([pooled, *(grad.clone() for grad in optimizer.grads.values())])
    torch.testing.assert_close(totals[1], totals[0])
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("kind", ["dot", "cat", "dcn", "projection"])
def test_passes_in_bfloat16_are_near_and_keep_32_bits_outside(kind):
    interaction = replace(KINDS[kind], branches=((9, 16), (8,))) if kind == "projection" else KINDS[kind]
    model = Dlrm(plain_features(3, 8), (7, 32, 8), (17, 1), interaction)
    loss, optimizer = make_loss("bce", (), CPU), DenseOptimizer(DenseSettings("sgd"), model)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        dense_pass = DensePass(model, optimizer.grads, loss, dtype)
        for number in range(2):
            dense, pooled, labels = batch(64, model, [(3, 8)], seed=number)
            prediction = dense_pass.forward(dense, pooled)
            dense_pass.backward(prediction, labels, adds=number > 0)
        results[dtype] = [prediction, *pooled, *(grad.clone() for grad in optimizer.grads.values())]
    assert all(result.dtype == torch.float32 for result in results[torch.bfloat16])
    for near, exact in zip(results[torch.bfloat16], results[torch.float32], strict=True):
        assert not torch.equal(near, exact)
        assert torch.linalg.vector_norm(near - exact) < 0.1 * torch.linalg.vector_norm(exact)
    with torch.no_grad():
        model.top_l[0].weight.mul_(2)  # copies are those of the parameters as they are now
    assert not torch.allclose(dense_pass.forward(dense, pooled), prediction, rtol=0.01)


@pytest.mark.parametrize("threshold", [0.0, 0.45])
@pytest.mark.parametrize("loss", ["mse", "bce", "wbce"])
def test_passes_of_every_loss(loss, threshold):
    model = Dlrm(plain_features(2, 4), (3, 4), (8, 1), loss_threshold=threshold)
    assert_same_bits(model, [(2, 4)], loss, 50)


@pytest.mark.parametrize("operation", ["mult", "add"])
def test_passes_of_combined_and_projected_features(operation):
    model = Dlrm(mixed_features(operation), (3, 4), (8, 1))
    assert_same_bits(model, [(3, 4), (1, 2)], "mse", 20)


def test_layers_of_one_column():
    assert_same_bits(Dlrm(plain_features(1, 1), (1, 1), (1,)), [(1, 1)], "mse", 9)


@pytest.mark.parametrize("optimizer", TORCH_OPTIMIZERS)
def test_optimizers_have_the_bits_and_the_state_of_torch(optimizer):
    sizes = (13, 37, 5), (29, 1)
    model, other = Dlrm(plain_features(2, 5), *sizes), Dlrm(plain_features(2, 5), *sizes)
    ours = DenseOptimizer(DenseSettings(optimizer), model)
    theirs = TORCH_OPTIMIZERS[optimizer](other.parameters(), lr=0.01)
    random = torch.Generator().manual_seed(3)
    for step in range(30):
        for name, parameter in other.named_parameters():
            scale = torch.exp(torch.randn(parameter.shape, generator=random) * 20)  # up to infinity when squared
            parameter.grad = torch.randn(parameter.shape, generator=random) * scale * (step % 7 != 0)
            ours.grads[name].copy_(parameter.grad)
        rate = 0.01 / (1 + step)
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        ours.step(rate)
        for mine, parameter in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(torch.nan_to_num(mine, 7.0), torch.nan_to_num(parameter, 7.0))
    state = ours.state()
    assert len(state) == len(theirs.state)
    for name, parameter in other.named_parameters():
        for key, value in theirs.state.get(parameter, {}).items():
            assert torch.equal(state[name][key], value)
    if state:
        again = DenseOptimizer(DenseSettings(optimizer), Dlrm(plain_features(2, 5), *sizes))
        numbers = {name: {key: value.numpy() for key, value in entry.items()} for name, entry in state.items()}
        again.load_state(numbers)
        pairs = itertools.product(state, next(iter(state.values())))
        assert all(torch.equal(again.state()[name][key], state[name][key]) for name, key in pairs)
