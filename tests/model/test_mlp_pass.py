"""Layers' passes by hand: gradients that replace and that add, and copies in another type."""

import torch
from torch import nn

from cachedlrm.model.mlp_pass import MlpPass, PassParameters


def layers() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """One layer, y = relu(2 x1 - x2 + 1), and places of gradients."""
    model = nn.Module()
    model.bot_l = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        model.bot_l[0].weight.copy_(torch.tensor([[2.0, -1.0]]))
        model.bot_l[0].bias.fill_(1.0)
    return model, {name: torch.full_like(parameter, 100.0) for name, parameter in model.named_parameters()}


def test_a_layer_by_hand():
    model, grads = layers()
    parameters = PassParameters(model, grads, torch.float32)
    mlp = MlpPass(model.bot_l, parameters, "bot_l")
    for adds in (False, True):
        parameters.adds = adds
        assert mlp.forward(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tolist() == [[1.0], [0.0]]
        assert mlp.backward(torch.tensor([[10.0], [7.0]])).tolist() == [[20.0, -10.0], [0.0, 0.0]]
        times = 2 if adds else 1
        assert grads["bot_l.0.weight"].tolist() == [[10.0 * times, 20.0 * times]]
        assert grads["bot_l.0.bias"].tolist() == [10.0 * times]
    mlp.forward(torch.ones(1, 2))
    assert mlp.backward(torch.ones(1, 1), wants_inputs=False).numel() == 0
    projection = torch.ones(1)
    for adds, expected in ((False, 3.0), (True, 6.0)):
        parameters.adds = adds
        parameters.store(torch.tensor([3.0]), projection)
        assert projection.item() == expected


def test_copies_follow_the_parameters_and_gradients_stay_in_32_bits():
    model, grads = layers()
    parameters = PassParameters(model, grads, torch.bfloat16)
    mlp, inputs = MlpPass(model.bot_l, parameters, "bot_l"), torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    parameters.refresh()
    assert mlp.forward(inputs).dtype == torch.bfloat16
    with torch.no_grad():
        model.bot_l[0].bias.fill_(5.0)
    parameters.refresh()
    assert mlp.forward(inputs).item() == 5.0
    mlp.backward(torch.full((1, 1), 3.0, dtype=torch.bfloat16))
    assert grads["bot_l.0.weight"].tolist() == [[3.0, 6.0]]
