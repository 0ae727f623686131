"""Gradients are clipped as by torch.nn.utils.clip_grad_norm_, without waiting for the device."""

import math

import pytest
import torch

from cachedlrm.model.clipping import clip_grad_norm


def gradients() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=random) for shape in ((300,), (40, 8), (7, 1), (0, 8))]


@pytest.mark.parametrize("most", [1e-3, 0.5, 20.0, 1e6])
def test_as_torch(most):
    ours, theirs = gradients(), [torch.nn.Parameter(grad.clone()) for grad in gradients()]
    for parameter in theirs:
        parameter.grad = parameter.detach().clone()
    torch.nn.utils.clip_grad_norm_(theirs, most)
    clip_grad_norm(ours, most)
    for grad, parameter in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-6, atol=0)
    norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in ours))
    before = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients()))
    assert norm == pytest.approx(min(most, before), rel=1e-5)
    if most > before:
        assert all(torch.equal(grad, same) for grad, same in zip(ours, gradients(), strict=True))


def test_by_hand():
    ours = [torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])]
    clip_grad_norm(ours, 2.5)
    assert ours[0].tolist() == pytest.approx([1.5])
    assert ours[1].tolist() == [pytest.approx([0.0, 2.0])]


@pytest.mark.parametrize("odd", [torch.inf, torch.nan])
def test_a_norm_that_is_not_finite_leaves_none_that_is(odd):
    ours = [torch.tensor([1.0, odd]), torch.ones(3)]
    clip_grad_norm(ours, 1.0)
    assert not ours[0].isfinite().all()
