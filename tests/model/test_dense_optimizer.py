"""Parameters move as torch.optim moves them, to the last bit, and state goes from one run to the next."""

import pytest
import torch
from torch import nn

from cachedlrm.model.dense_optimizer import ALIGNMENT, DenseOptimizer

TORCH = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rwsadagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
}


def layers() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 1))


def steps(optimizer: DenseOptimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for number, grad in enumerate(optimizer.grads.values()):
            torch.manual_seed(10 * step + number)
            grad.copy_(torch.randn(grad.shape))
        optimizer.step(0.1 / step)


@pytest.mark.parametrize("name", TORCH)
def test_as_torch(name):
    ours, theirs = layers(), layers()
    optimizer, reference = DenseOptimizer(name, ours), TORCH[name](theirs.parameters(), lr=0.1)
    for step in range(1, 6):
        steps(optimizer, step, step + 1)
        for parameter, grad in zip(theirs.parameters(), optimizer.grads.values(), strict=True):
            parameter.grad = grad.clone()
        reference.param_groups[0]["lr"] = 0.1 / step
        reference.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    state = optimizer.state()
    if name == "sgd":
        assert state == {}
    for parameter, found in zip(theirs.parameters(), state.values(), strict=False):
        assert all(torch.equal(found[key], value) for key, value in reference.state[parameter].items())


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_a_loaded_state_goes_on(name):
    whole, first, second = layers(), layers(), layers()
    steps(DenseOptimizer(name, whole), 1, 6)
    before = DenseOptimizer(name, first)
    steps(before, 1, 4)
    after = DenseOptimizer(name, second)
    second.load_state_dict(first.state_dict())
    saved = {key: {name: value.numpy() for name, value in entry.items()} for key, entry in before.state().items()}
    assert after.load_state(saved) == 3
    steps(after, 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_every_parameter_is_aligned():
    model = layers()
    DenseOptimizer("sgd", model)
    start = next(model.parameters()).data_ptr()
    assert all((parameter.data_ptr() - start) % (4 * ALIGNMENT) == 0 for parameter in model.parameters())
