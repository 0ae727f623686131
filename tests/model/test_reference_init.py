"""The reference's initial parameters: by its modules' construction, by its golden runs, by values copied from it."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cachedlrm.base.errors import UserError
from cachedlrm.model import reference_init
from cachedlrm.model.reference_init import reference_parameters
from cachedlrm.model.tables import Embedding
from support.golden import GOLDEN


def slow_parameters(seed, embeddings, base_dim, mlp_bot, mlp_top):
    """As the reference does it: modules whose construction draws, and one call of numpy for each array."""
    numpy_rng = np.random.RandomState(seed)
    parameters = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for embedding in embeddings:
            rows, name = embedding.num_ids, f"emb_l.{embedding.number}"
            if embedding.collisions:
                for part, count in (("q", -(-rows // embedding.collisions)), ("r", embedding.collisions)):
                    weight = nn.init.uniform_(torch.empty(count, embedding.dim), np.sqrt(1 / rows))
                    parameters[f"{name}.weight_{part}"] = weight.numpy()
                continue
            bag = nn.EmbeddingBag(rows, embedding.dim)
            table_name = f"{name}.weight"
            if embedding.mixed:
                table_name = f"{name}.embs.weight"
                nn.init.xavier_uniform_(bag.weight)
            weight = numpy_rng.uniform(-np.sqrt(1 / rows), np.sqrt(1 / rows), (rows, embedding.dim))
            parameters[table_name] = weight.astype(np.float32)
            if embedding.mixed and embedding.dim < base_dim:
                linear = nn.Linear(embedding.dim, base_dim, bias=False)
                parameters[f"{name}.proj.weight"] = nn.init.xavier_uniform_(linear.weight).detach().numpy()
    for name, sizes in (("bot_l", mlp_bot), ("top_l", mlp_top)):
        for layer in range(len(sizes) - 1):
            inputs, outputs = sizes[layer : layer + 2]
            weight = numpy_rng.normal(0.0, np.sqrt(2 / (inputs + outputs)), (outputs, inputs))
            parameters[f"{name}.{2 * layer}.weight"] = weight.astype(np.float32)
            parameters[f"{name}.{2 * layer}.bias"] = numpy_rng.normal(0.0, np.sqrt(1 / outputs), outputs).astype("f4")
    return parameters


def equal(one, other):
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype == np.float32 and np.array_equal(one[name], other[name]) for name in one
    )


@st.composite
def models(draw):
    base_dim = draw(st.integers(1, 20))
    embeddings = []
    for number in range(draw(st.integers(1, 5))):
        num_ids = draw(st.integers(1, 60))
        kind = draw(st.sampled_from(["plain", "quotient-remainder", "mixed"]))
        collisions = draw(st.integers(1, 9)) if kind == "quotient-remainder" else 0
        dim = draw(st.integers(1, base_dim)) if kind == "mixed" else base_dim
        embeddings.append(Embedding(number, num_ids, dim, collisions, kind == "mixed"))
    sizes = st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple)
    return draw(st.integers(0, 2**32 - 1)), embeddings, base_dim, draw(sizes), draw(sizes)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(model=models(), piece=st.sampled_from([1, 7, 16, 1 << 20]))
def test_pieces_equal_the_construction_of_the_references_modules(model, piece):
    expected = slow_parameters(*model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_init, "_PIECE", piece)
        assert equal(reference_parameters(*model), expected)


def test_tables_larger_than_a_piece():
    embeddings = [Embedding(0, 70_001, 16), Embedding(1, 70_003, 16, 0, True), Embedding(2, 35_001, 7, 0, True)]
    model = (5, embeddings, 16, (13, 90_000, 16), (3, 1))
    assert equal(reference_parameters(*model), slow_parameters(*model))


def test_generators_of_the_program_do_not_move():
    np.random.seed(1)
    torch.manual_seed(1)
    numbers = np.random.random_sample(), torch.rand(1)
    np.random.seed(1)
    torch.manual_seed(1)
    reference_parameters(3, [Embedding(0, 50, 4, 3), Embedding(1, 50, 2, 0, True)], 4, (2, 4), (5, 1))
    assert (np.random.random_sample(), torch.rand(1)) == numbers


def test_torch_draws_nothing_that_is_not_needed(monkeypatch):
    def no_draw(*_, **__):
        raise AssertionError

    monkeypatch.setattr(torch.Tensor, "normal_", no_draw)
    monkeypatch.setattr(torch.Tensor, "uniform_", no_draw)
    reference_parameters(3, [Embedding(0, 50, 4), Embedding(1, 50, 4, 0, True)], 4, (2, 4), (5, 1))


def test_a_seed_that_numpy_refuses():
    with pytest.raises(UserError, match=r"^--numpy-rand-seed is 4294967296; the reference's is 0 to 4294967295$"):
        reference_parameters(2**32, [Embedding(0, 5, 2)], 2, (2, 2), (3, 1))


# First values of DLRM_Net's state dict in the reference at its defaults, also in the golden run default_random.json:
#   python dlrm_s_pytorch.py --mini-batch-size=2 --data-size=6
DEFAULT_MODEL = {
    "emb_l.0.weight": [0.19646918773651123, -0.2138606607913971, -0.2731485366821289],
    "emb_l.2.weight": [-0.14418719708919525, 0.33657634258270264, -0.449024498462677],
    "bot_l.0.weight": [1.1791192293167114, 1.1688863039016724, 0.5366894006729126],
    "bot_l.2.bias": [0.48664695024490356, -0.6219261288642883],
    "top_l.0.weight": [0.11579036712646484, -0.32878950238227844, -0.7053180932998657],
    "top_l.4.bias": [-1.212523102760315],
}
# Printed with the reference's modules (commit 090956e), in its folder:
#   torch.manual_seed(123)
#   for module in nn.EmbeddingBag(5, 3), QREmbeddingBag(10, 3, 4), PrEmbeddingBag(6, 2, 3), PrEmbeddingBag(20, 2, 3):
#       print({name: weight.flatten()[:3].tolist() for name, weight in module.named_parameters()})
TORCH_VALUES = {
    "emb_l.1.weight_q": [0.807096540927887, 0.7988597750663757, 0.9423234462738037],
    "emb_l.1.weight_r": [0.47473129630088806, 0.6270291209220886, 0.9820180535316467],
    "emb_l.2.proj.weight": [0.2322309911251068, 1.0695734024047852, 0.7368612289428711],
    "emb_l.3.proj.weight": [-0.3873637914657593, -0.8488121032714844, 0.007363161537796259],
}


def test_first_values_of_the_default_model():
    embeddings = [Embedding(number, rows, 2) for number, rows in enumerate((4, 3, 2))]
    parameters = reference_parameters(123, embeddings, 2, (4, 3, 2), (8, 4, 2, 1))
    for name, values in DEFAULT_MODEL.items():
        assert parameters[name].flatten()[:3].tolist() == values


def test_first_values_of_torchs_draws():
    embeddings = [
        Embedding(0, 5, 3),
        Embedding(1, 10, 3, collisions=4),
        Embedding(2, 6, 2, mixed=True),
        Embedding(3, 20, 2, mixed=True),
    ]
    parameters = reference_parameters(123, embeddings, 3, (4, 3), (9, 1))
    for name, values in TORCH_VALUES.items():
        assert parameters[name].flatten()[:3].tolist() == values


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_runs_begin_with_these_parameters(path):
    run = json.loads(path.read_text())
    options = dict(argument.partition("=")[::2] for argument in run["args"])
    initial = {name: value for name, value in run["initial"].items() if not name.startswith("v_W_l")}

    def sizes(option, default):
        return tuple(map(int, options.get(option, default).split("-")))

    dim = int(options.get("--arch-sparse-feature-size", 2))
    threshold = int(options.get("--qr-threshold", 200)) if "--qr-flag" in options else 2**63
    collisions = int(options.get("--qr-collisions", 4))
    embeddings = [
        Embedding(number, rows, dim, collisions if rows > threshold else 0)
        for number, rows in enumerate(sizes("--arch-embedding-size", "4-3-2"))
    ]
    mlp_bot = sizes("--arch-mlp-bot", "4-3-2")
    mlp_top = (initial["top_l.0.weight"]["shape"][1], *sizes("--arch-mlp-top", "4-2-1"))
    seed = int(options.get("--numpy-rand-seed", 123))
    parameters = reference_parameters(seed, embeddings, mlp_bot[-1], mlp_bot, mlp_top)
    assert set(parameters) == set(initial)
    for name, expected in initial.items():
        weight = parameters[name].astype(np.float64)
        assert list(weight.shape) == expected["shape"]
        assert weight.flatten()[:3].tolist() == expected["first"]
        magnitude = np.abs(weight).sum()
        assert magnitude == pytest.approx(expected["abs_sum"], rel=1e-12)
        assert weight.sum() == pytest.approx(expected["sum"], abs=1e-12 * magnitude)
