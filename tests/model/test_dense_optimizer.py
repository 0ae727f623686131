"""Parameters move as torch.optim moves them, to the last bit, and state goes from one run to the next."""

import pytest
import torch
from torch import nn

from cachedlrm.model.dense_optimizer import ALIGNMENT, DenseOptimizer
from cachedlrm.model.dense_settings import DenseSettings

TORCH = {
    DenseSettings("sgd"): lambda p: torch.optim.SGD(p, lr=0.1),
    DenseSettings("sgd", weight_decay=0.2): lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2),
    DenseSettings("sgd", momentum=0.9): lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    DenseSettings("sgd", momentum=0.5, weight_decay=0.2): lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.5, weight_decay=0.2
    ),
    DenseSettings("adagrad"): lambda p: torch.optim.Adagrad(p, lr=0.1),
    DenseSettings("adagrad", 1e-3, weight_decay=0.2): lambda p: torch.optim.Adagrad(
        p, lr=0.1, eps=1e-3, weight_decay=0.2
    ),
    DenseSettings("adam"): lambda p: torch.optim.Adam(p, lr=0.1),
    DenseSettings("adam", 1e-3, weight_decay=0.2): lambda p: torch.optim.Adam(p, lr=0.1, eps=1e-3, weight_decay=0.2),
    DenseSettings("adamw"): lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0),
    DenseSettings("adamw", 1e-3, weight_decay=0.5): lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-3, weight_decay=0.5),
}
ALL = pytest.mark.parametrize("settings", TORCH, ids=str)


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))


def fill(optimizer: DenseOptimizer, step: int) -> None:
    for number, grad in enumerate(optimizer.grads.values()):
        torch.manual_seed(10 * step + number)
        grad.copy_(torch.randn(grad.shape))


def steps(optimizer: DenseOptimizer, first: int, last: int) -> None:
    for step in range(first, last):
        fill(optimizer, step)
        optimizer.step(0.1 / step)


@ALL
def test_as_torch(settings):
    ours, theirs = layers(), layers()
    optimizer, reference = DenseOptimizer(settings, ours), TORCH[settings](theirs.parameters())
    for step in range(1, 6):
        fill(optimizer, step)
        for parameter, grad in zip(theirs.parameters(), optimizer.grads.values(), strict=True):
            parameter.grad = grad.clone()
        reference.param_groups[0]["lr"] = 0.1 / step
        reference.step()
        optimizer.step(0.1 / step)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    state = optimizer.state()
    if not settings.state_keys:
        assert state == {}
    for parameter, found in zip(theirs.parameters(), state.values(), strict=False):
        assert found.keys() == reference.state[parameter].keys()
        assert all(torch.equal(found[key], value) for key, value in reference.state[parameter].items())


@pytest.mark.parametrize("settings", [settings for settings in TORCH if settings.state_keys], ids=str)
def test_a_loaded_state_goes_on(settings):
    whole, first, second = layers(), layers(), layers()
    steps(DenseOptimizer(settings, whole), 1, 6)
    before = DenseOptimizer(settings, first)
    steps(before, 1, 4)
    after = DenseOptimizer(settings, second)
    second.load_state_dict(first.state_dict())
    saved = {key: {name: value.numpy() for name, value in entry.items()} for key, entry in before.state().items()}
    after.load_state(saved)
    steps(after, 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


@ALL
def test_what_lies_between_parameters_stays_zero(settings):
    optimizer = DenseOptimizer(settings, layers())
    steps(optimizer, 1, 4)
    used = sum(grad.numel() for grad in optimizer.grads.values())
    assert (optimizer.all_grads != 0).sum() <= used
    assert (optimizer._parameters != 0).sum() <= used
    assert optimizer._parameters.isfinite().all()


def test_every_parameter_is_aligned():
    model = layers()
    DenseOptimizer(DenseSettings("sgd"), model)
    start = next(model.parameters()).data_ptr()
    assert all((parameter.data_ptr() - start) % (4 * ALIGNMENT) == 0 for parameter in model.parameters())
