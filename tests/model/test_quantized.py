"""Tables of few bits against the rows they were made of."""

import numpy as np
import pytest
import torch

from cachedlrm.model.quantized import QuantizedTables


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
