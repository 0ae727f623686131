"""Tables of few bits against the rows they were made of."""

import numpy as np
import pytest
import torch

from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.interaction import InteractionKind
from cachedlrm.model.quantized import QuantizedTables, mlp_bytes, quantize_mlps
from support.models import plain_features


@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_is_off_by_at_most_half_a_step(bits):
    rng = np.random.default_rng(0)
    weights, factors = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=50).astype(np.float32)
    tables = QuantizedTables([weights[:20], weights[20:]], 50, 6, bits, factors)
    rows, offsets = torch.arange(50), torch.arange(51)
    pooled = tables.pool(rows, offsets).numpy()
    steps = (weights.max(axis=1) - weights.min(axis=1)) / (2**bits - 1)
    allowed = steps * np.abs(factors) * (0.51 if bits == 8 else 0.65) + 1e-6  # float16 scales of 4 bits round too
    assert (np.abs(pooled - weights * factors[:, None]).max(axis=1) <= allowed).all()
    empty = tables.pool(rows[:2], torch.tensor([0, 0, 2, 2])).numpy()
    assert not empty[0].any()
    assert not empty[2].any()
    assert empty[1] == pytest.approx(pooled[:2].sum(axis=0), abs=1e-6)
    means = tables.pool(rows[:2], torch.tensor([0, 0, 2, 2]), averages=True).numpy()
    assert (means == empty / [[1], [2], [1]]).all()


@pytest.mark.parametrize(("bits", "near"), [(8, 0.02), (16, 1e-3)])
@pytest.mark.parametrize(
    "kind",
    [
        InteractionKind("dcn", cross_layers=2, cross_rank=6),
        InteractionKind("projection", branches=((9, 10), (15,))),
    ],
    ids=lambda kind: kind.op,
)
def test_layers_of_an_interaction_are_quantized_too(kind, bits, near):
    model = Dlrm(plain_features(3, 5), (7, 24, 5), (17, 1), kind)
    random = torch.Generator().manual_seed(1)
    dense, pooled = torch.rand(40, 7, generator=random), torch.rand(120, 5, generator=random)
    before = {name: values.clone() for name, values in model.state_dict().items()}
    quantized = quantize_mlps(model, bits)
    assert not any(isinstance(part, (torch.nn.Linear, torch.nn.ParameterList)) for part in quantized.modules())
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    with torch.inference_mode():
        expected, predictions = model(dense, [pooled]), quantized(dense, [pooled])
    assert not torch.equal(predictions, expected)
    torch.testing.assert_close(predictions, expected, atol=near, rtol=0)
    weights = sum(values.numel() for values in before.values() if values.dim() == 2)
    assert mlp_bytes(model) - mlp_bytes(model, bits) == weights * (32 - bits) // 8
