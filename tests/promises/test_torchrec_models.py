"""TorchRec's own models over our collection, unchanged, beside the same over its EmbeddingBagCollection.

They run where TorchRec is: ``pip install torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0`` beside torch 2.13.
"""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from cachedlrm import CachedEmbeddingBagCollection, CachedEmbeddingCollection
from support.documents import all_blocks

torchrec = pytest.importorskip("torchrec")

deepfm = pytest.importorskip("torchrec.models.deepfm")
dlrm = pytest.importorskip("torchrec.models.dlrm")

DIM, BATCH, STEPS, RATE, NUM_DENSE = 8, 24, 40, 0.1, 5
TABLES = {"a": (300, ["user", "friend"], "SUM"), "b": (40, ["place"], "MEAN"), "c": (500, ["item"], "SUM")}
FEATURES = [feature for _, features, _ in TABLES.values() for feature in features]

MODELS = {
    "DLRM": lambda ebc: dlrm.DLRM(ebc, NUM_DENSE, [16, DIM], [16, 1]),
    "DLRM_DCN": lambda ebc: dlrm.DLRM_DCN(ebc, NUM_DENSE, [16, DIM], [16, 1], 2, 4),
    "DLRM_Projection": lambda ebc: dlrm.DLRM_Projection(
        ebc, NUM_DENSE, [16, DIM], [16, 1], [16, 2 * DIM], [16, 2 * DIM]
    ),
    "SimpleDeepFMNN": lambda ebc: deepfm.SimpleDeepFMNN(NUM_DENSE, ebc, hidden_layer_size=16, deep_fm_dimension=4),
}


def configs() -> list:
    return [
        torchrec.EmbeddingBagConfig(
            name=name, num_embeddings=rows, embedding_dim=DIM, feature_names=features,
            pooling=torchrec.PoolingType[pooling],
        )
        for name, (rows, features, pooling) in TABLES.items()
    ]  # fmt: skip


@functools.cache
def batches() -> list:
    rng = np.random.default_rng(3)
    made = []
    for _ in range(STEPS):
        lengths = rng.integers(0, 4, (len(FEATURES), BATCH))
        rows = {feature: rows for rows, features, _ in TABLES.values() for feature in features}
        values = [rng.zipf(1.3, count) % rows[name] for name, count in zip(FEATURES, lengths.sum(1), strict=True)]
        order = rng.permutation(len(FEATURES))  # keys may come in any order
        features = torchrec.KeyedJaggedTensor(
            keys=[FEATURES[number] for number in order],
            values=torch.from_numpy(np.concatenate([values[number] for number in order])),
            lengths=torch.from_numpy(lengths[order].reshape(-1)),
        )
        dense = torch.from_numpy(rng.standard_normal((BATCH, NUM_DENSE)).astype(np.float32))
        made.append((dense, features, torch.from_numpy((rng.random((BATCH, 1)) < 0.4).astype(np.float32))))
    return made


def losses_of(model: nn.Module, optimizer: torch.optim.Optimizer, stream, after=lambda: None) -> list[float]:
    losses = []
    for dense, features, labels in stream:
        logits = model(dense, features)
        loss = (
            nn.functional.binary_cross_entropy(logits, labels)
            if isinstance(model, deepfm.SimpleDeepFMNN)
            else nn.functional.binary_cross_entropy_with_logits(logits, labels)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_by_changing_its_constructor(name):
    torch.manual_seed(0)
    theirs = MODELS[name](torchrec.EmbeddingBagCollection(tables=configs()))
    initial = {key: value.clone() for key, value in theirs.state_dict().items()}
    plain = losses_of(theirs, torch.optim.SGD(theirs.parameters(), lr=RATE), batches())
    ebc = CachedEmbeddingBagCollection(configs(), optimizer="sgd", learning_rate=RATE, cache_rows=160)
    with ebc:
        ours = MODELS[name](ebc)
        ours.load_state_dict(initial)  # the same names
        optimizer = torch.optim.SGD(ours.parameters(), lr=RATE)
        losses = losses_of(ours, optimizer, ebc.prefetch(batches(), lambda batch: batch[1]), ebc.step)
        assert ebc.counters.evicted_rows > 100
        assert ebc.counters.fetched_rows > 100
        np.testing.assert_allclose(losses, plain, rtol=0, atol=2e-6)
        found, expected = ours.state_dict(), theirs.state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key].numpy(), value.numpy(), rtol=0, atol=2e-6, err_msg=key)
            assert not torch.equal(value, initial[key])


@pytest.mark.filterwarnings("ignore")
def test_results_are_torchrecs_own():
    _, features, _ = batches()[0]
    with CachedEmbeddingBagCollection(configs(), cache_rows=200) as ebc:
        found = ebc(features)
        assert type(found) is torchrec.KeyedTensor
        theirs = torchrec.EmbeddingBagCollection(tables=configs())
        theirs.load_state_dict(ebc.state_dict())
        expected = theirs(features)
        assert found.keys() == expected.keys()
        assert found.length_per_key() == expected.length_per_key()
        torch.testing.assert_close(found.values(), expected.values(), rtol=0, atol=1e-6)
        assert ebc.device == torch.device("cpu")
        assert [config.name for config in ebc.embedding_bag_configs()] == list(TABLES)
    tables = [torchrec.EmbeddingConfig(name="t", num_embeddings=300, embedding_dim=4, feature_names=["user", "friend"])]
    with CachedEmbeddingCollection(tables, cache_rows=200) as ec:
        found = ec(features)
        theirs = torchrec.EmbeddingCollection(tables=tables)
        theirs.load_state_dict(ec.state_dict())
        for name, expected in theirs(features).items():
            assert type(found[name]) is type(expected)
            assert torch.equal(found[name].values(), expected.values())
            assert torch.equal(found[name].lengths(), expected.lengths())


@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = [block for block in all_blocks("python") if "from torchrec.models.dlrm import DLRM" in block.text]
    exec(compile(example.text, example.document, "exec"), {})
    assert "slots" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "for_torchrec").iterdir()) == ["model.safetensors", "torchrec.json"]
