"""Interactions of one sample by hand, and part by part the same bits as all at once."""

import pytest
import torch

from cachedlrm.model import interaction
from cachedlrm.model.interaction import CatInteraction, DotInteraction, InteractionKind, samples_multiplied

DENSE = torch.tensor([[1.0, 2.0]])
VECTORS = torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])


@pytest.mark.parametrize(
    ("op", "itself", "expected"),
    [
        ("dot", False, [1, 2, 11, 17, 39]),  # v1 . dense, v2 . dense, v2 . v1
        ("dot", True, [1, 2, 5, 11, 25, 17, 39, 61]),
        ("cat", False, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_one_sample(op, itself, expected):
    layer = CatInteraction() if op == "cat" else DotInteraction(2, 2, itself)
    assert layer(DENSE, VECTORS).tolist() == [expected]
    assert InteractionKind(op, itself=itself).num_outputs(3, 2) == len(expected)


@pytest.mark.parametrize("part_bytes", [1, 4 * 4 * 8 * 3, 1 << 20])
def test_parts_change_no_bit_and_gradients_are_autograd_s(monkeypatch, part_bytes):
    monkeypatch.setattr(interaction, "_PART_BYTES", {"cpu": part_bytes})
    random = torch.Generator().manual_seed(1)
    dense, vectors = torch.randn(7, 8, generator=random), torch.randn(7, 3, 8, generator=random)
    layer = DotInteraction(3, 8, itself=False)
    leaves = dense.clone().requires_grad_(), vectors.clone().requires_grad_()
    result = layer(*leaves)
    together = torch.cat([dense.unsqueeze(1), vectors], dim=1)
    products = torch.bmm(together, together.mT).flatten(1)[:, layer.pairs]
    assert torch.equal(result, torch.cat([dense, products], dim=1))
    grad = torch.randn(result.shape, generator=random)
    result.backward(grad)
    dense_grad = layer.backward(dense, vectors, grad)  # overwrites `vectors`
    torch.testing.assert_close(dense_grad, leaves[0].grad)
    torch.testing.assert_close(vectors, leaves[1].grad)


def test_a_part_has_a_sample_at_least():
    assert samples_multiplied(27, 16, torch.device("cpu")) == (2 << 20) // (4 * 27 * 16)
    assert samples_multiplied(10**6, 10**3, torch.device("cpu")) == 1


def test_sizes_of_every_kind():
    """27 vectors of 128, as in MLPerf's DLRM-DCNv2, and its matrices."""
    assert InteractionKind("dot").num_outputs(27, 128) == 128 + 27 * 26 // 2
    assert InteractionKind("dot").multiplications(27, 128) == 128 * 27 * 26 // 2
    assert InteractionKind("cat").num_outputs(27, 128) == 3456
    assert InteractionKind("cat").multiplications(27, 128) == 0
    cross = InteractionKind("dcn", cross_layers=3, cross_rank=512)
    assert cross.num_outputs(27, 128) == 3456
    assert cross.matrices(27, 128) == ((3456, 512), (512, 3456)) * 3
    assert cross.biases(27, 128) == (3456,) * 3
    assert cross.multiplications(27, 128) == 6 * 3456 * 512
    projection = InteractionKind("projection", branches=((64, 2 * 128), (32, 3 * 128)))
    assert projection.num_outputs(27, 128) == 128 + 2 * 3
    assert projection.matrices(27, 128) == ((3456, 64), (64, 256), (3456, 32), (32, 384))
    assert projection.biases(27, 128) == (64, 256, 32, 384)
    layers = 3456 * 64 + 64 * 256 + 3456 * 32 + 32 * 384
    assert projection.multiplications(27, 128) == layers + 2 * 128 * 3
