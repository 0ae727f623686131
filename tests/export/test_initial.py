"""Where training begins: drawn by counter, as the reference draws, or from a model file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cachedlrm.export.initial import InitialParameters, initial_parameters
from cachedlrm.model.reference_init import reference_parameters
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.store.init import CounterInit
from cachedlrm.store.records import RecordLayout
from support.options import resolved
from support.runs import MODEL, train

CPU = torch.device("cpu")


def initial(*arguments: str) -> tuple[InitialParameters, Architecture]:
    options = resolved("--data=zipf:samples=200", *MODEL, *arguments)
    architecture = build_architecture(options.model, options.optimisation)
    return initial_parameters(options, architecture, CPU), architecture


def filled(init, rows: list[int], width: int) -> np.ndarray:
    out = np.empty((len(rows), width), np.float32)
    init.fill(np.array(rows), out)
    return out


def test_rows_are_drawn_by_counter_and_the_model_draws_the_rest():
    found, _ = initial("--numpy-rand-seed=7")
    (rows,) = found.rows
    expected = CounterInit(7, (400, 30, 900, 5), RecordLayout(8, "sgd"))
    assert (filled(rows, [0, 399, 400, 1334], 8) == filled(expected, [0, 399, 400, 1334], 8)).all()
    assert (found.dense, found.dense_state, found.note) == ({}, {}, None)


def test_groups_draw_different_weights_from_the_same_seed():
    found, architecture = initial("--md-flag", "--md-threshold=100", "--numpy-rand-seed=7")
    first, second = architecture.shapes[:2]
    expected = CounterInit(7, second.table_rows, second.layout, None, first.num_rows * first.layout.dim)
    width = second.layout.width
    assert (filled(found.rows[1], [0, 1], width) == filled(expected, [0, 1], width)).all()


def test_the_reference_draws_whole_tables():
    found, architecture = initial("--init=reference", "--numpy-rand-seed=7", "--optimizer=adagrad")
    bot, top = architecture.mlp_bot, architecture.mlp_top
    parameters = dict(reference_parameters(7, architecture.embeddings, bot[-1], bot, top))
    record = filled(found.rows[0], [400], 16)[0]
    assert record.tolist() == [*parameters["emb_l.1.weight"][0].tolist(), *[0] * 8]
    assert (found.dense["bot_l.0.weight"] == parameters["bot_l.0.weight"]).all()
    assert not any(name.startswith("emb_l") for name in found.dense)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert train(folder / "run", "--steps=3", "--optimizer=adagrad", f"--save-model={folder / 'm.pt'}") == 0
    return folder / "m.pt"


def test_a_model_file_has_weights_and_state(model):
    found, _ = initial(f"--load-model={model}", "--optimizer=adagrad")
    content = torch.load(model, weights_only=True)
    weights, optimizer = content["state_dict"], content["opt_state_dict"]["state"]
    record = filled(found.rows[0], [401], 16)[0]
    assert record[:8].tolist() == weights["emb_l.1.weight"][1].tolist()
    assert any(
        (record[8:] == entry["sum"][1].numpy()).all() for entry in optimizer.values() if entry["sum"].shape == (30, 8)
    )
    assert found.dense.keys() == found.dense_state.keys() == {name for name in weights if not name.startswith("emb_l")}
    assert found.note == f"parameters and the state of adagrad of {model}"


@pytest.mark.parametrize(
    ("optimizer", "note"),
    [
        ("sgd", "parameters of {model}"),
        ("adam", "parameters of {model}; the state of adam starts at zero, for the file holds none"),
    ],
)
def test_state_of_another_optimizer_is_not_taken(model, optimizer, note):
    found, architecture = initial(f"--load-model={model}", f"--optimizer={optimizer}")
    assert (found.note, found.dense_state) == (note.format(model=model), {})
    record = filled(found.rows[0], [401], architecture.layouts[0].width)[0]
    assert not record[8:].any()
