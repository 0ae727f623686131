"""Interactions with parameters: one sample by hand. Their gradients are compared in test_dense_pass.py."""

import torch
from torch import nn

from cachedlrm.model.learned_interaction import CrossInteraction, CrossNet, ProjectionInteraction

DENSE, VECTORS = torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 4.0]]])


def test_two_cross_layers_by_hand():
    w, v = torch.tensor([[1.0], [0.0], [2.0], [0.0]]), torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    net = CrossNet([(w, v), (w, v)])
    with torch.no_grad():
        net.bias[1].copy_(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    # V x0 = 1 - 4 = -3; x1 = x0 * (-3, 0, -6, 0) + x0
    first = [1 - 3, 2, 3 - 18, 4]
    # V x1 = -2 - 4 = -6; x2 = x0 * (-6, 1, -12, 0) + x1
    second = [first[0] - 6, first[1] + 2, first[2] - 36, first[3]]
    assert CrossInteraction(net)(DENSE, VECTORS).tolist() == [second]
    assert {name: list(parameter.shape) for name, parameter in net.named_parameters()} == {
        "W_kernels.0": [4, 1], "W_kernels.1": [4, 1], "V_kernels.0": [1, 4], "V_kernels.1": [1, 4],
        "bias.0": [4], "bias.1": [4],
    }  # fmt: skip


def test_a_projection_by_hand():
    first, second = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with torch.no_grad():
        for branch in (first, second):
            branch[0].bias.zero_()
        first[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 1.0, 0]]))
        second[0].weight.copy_(torch.eye(4))
    interaction = ProjectionInteraction((first, second), 2)
    assert list(interaction.layers) == ["branch1_l", "branch2_l"]
    # [1, 3] times [[1, 2], [3, 4]], after the dense vector
    assert interaction(DENSE, VECTORS).tolist() == [[1.0, 2.0, 1.0 + 9.0, 2.0 + 12.0]]
