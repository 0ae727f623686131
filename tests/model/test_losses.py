"""Losses by hand, and their gradients as autograd has them."""

import math

import pytest
import torch

from cachedlrm.model.losses import make_loss

CPU = torch.device("cpu")
PREDICTION, LABELS = torch.tensor([0.25, 0.5, 0.75]), torch.tensor([0.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("mse", (), (0.25**2 + 0.5**2 + 0.25**2) / 3),
        ("bce", (), -(math.log(0.75) + math.log(0.5) + math.log(0.75)) / 3),
        ("wbce", (2.0, 0.5), -(2 * math.log(0.75) + 0.5 * math.log(0.5) + 0.5 * math.log(0.75)) / 3),
    ],
)
def test_values_and_gradients(name, weights, expected):
    loss = make_loss(name, weights, CPU)
    assert loss(PREDICTION, LABELS).item() == pytest.approx(expected, rel=1e-6)
    leaf = PREDICTION.clone().requires_grad_()
    loss(leaf, LABELS).backward()
    assert torch.equal(loss.grad(PREDICTION, LABELS), leaf.grad)


@pytest.mark.parametrize("name", ["mse", "bce", "wbce"])
def test_a_nan_is_a_nan_loss(name):
    prediction = torch.tensor([0.25, math.nan, 0.75])
    assert make_loss(name, (1.0, 1.0), CPU)(prediction, LABELS).isnan()
