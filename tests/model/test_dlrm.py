"""The dense part against its own layers, one after the other."""

import torch

from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.interaction import InteractionKind
from support.models import plain_features


def small_model(**options: object) -> Dlrm:
    return Dlrm(plain_features(2, 4), (3, 8, 4), (6, 1), **options)


def test_names_shapes_and_seeds():
    shapes = {name: list(parameter.shape) for name, parameter in small_model().named_parameters()}
    assert shapes == {
        "bot_l.0.weight": [8, 3], "bot_l.0.bias": [8], "bot_l.2.weight": [4, 8], "bot_l.2.bias": [4],
        "top_l.0.weight": [6, 4 + 3], "top_l.0.bias": [6], "top_l.2.weight": [1, 6], "top_l.2.bias": [1],
    }  # fmt: skip
    again, other = small_model().state_dict(), small_model(seed=7).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in small_model().state_dict().items())
    assert not torch.equal(again["top_l.0.weight"], other["top_l.0.weight"])


def test_parameters_of_an_interaction_are_named_as_in_model_files():
    def shapes(kind: InteractionKind) -> dict[str, list[int]]:
        of_all = {name: list(tensor.shape) for name, tensor in small_model(interaction=kind).state_dict().items()}
        return {name: shape for name, shape in of_all.items() if not name.startswith(("bot_l", "top_l.2"))}

    assert shapes(InteractionKind("dcn", cross_layers=1, cross_rank=5)) == {
        "crossnet.W_kernels.0": [12, 5], "crossnet.V_kernels.0": [5, 12], "crossnet.bias.0": [12],
        "top_l.0.weight": [6, 12], "top_l.0.bias": [6],
    }  # fmt: skip
    assert shapes(InteractionKind("projection", branches=((8,), (3, 12)))) == {
        "branch1_l.0.weight": [8, 12], "branch1_l.0.bias": [8], "branch2_l.0.weight": [3, 12],
        "branch2_l.0.bias": [3], "branch2_l.2.weight": [12, 3], "branch2_l.2.bias": [12],
        "top_l.0.weight": [6, 4 + 2 * 3], "top_l.0.bias": [6],
    }  # fmt: skip


def test_layers_in_their_order():
    model = small_model(activation="tanh")
    dense, pooled = torch.rand(5, 3), torch.rand(10, 4)
    bottom = torch.tanh(model.bot_l[2](torch.tanh(model.bot_l[0](dense))))
    top = model.top_l[2](torch.tanh(model.top_l[0](model.interaction(bottom, pooled.view(5, 2, 4)))))
    assert torch.equal(model(dense, [pooled]), torch.sigmoid(top).squeeze(1))


def test_predictions_keep_to_the_threshold():
    model = small_model(loss_threshold=0.4)
    extreme = torch.tensor([0.0, 0.5, 1.0])
    assert model.bounded(extreme).tolist() == torch.tensor([0.4, 0.5, 0.6]).tolist()
    assert small_model().bounded(extreme) is extreme
