"""``--save-onnx``: onnxruntime predicts what torch does, for every kind of model, batch size and bag."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

from cachedlrm.base.kernels import table_offsets  # noqa: E402
from cachedlrm.data.batch import Batch  # noqa: E402
from cachedlrm.export.formats import onnx as onnx_format  # noqa: E402 - needs the optional package
from cachedlrm.export.formats.model_file import parameter_shapes  # noqa: E402
from cachedlrm.options.architecture import Architecture, build_architecture  # noqa: E402
from cachedlrm.options.command_line import parse_command_line  # noqa: E402
from cachedlrm.options.config import ModelOptions  # noqa: E402
from cachedlrm.train import main  # noqa: E402

ROWS = (30, 7, 90)
MODEL = [
    "--arch-sparse-feature-size=8",
    "--arch-embedding-size=30-7-90",
    "--arch-mlp-bot=5-16-8",
    "--arch-mlp-top=16-1",
]
KINDS = {
    "dot": [],
    "itself": ["--arch-interaction-itself"],
    "cat": ["--arch-interaction-op=cat"],
    "dcn": ["--arch-interaction-op=dcn", "--dcn-num-layers=2", "--dcn-low-rank-dim=5"],
    "projection": [
        "--arch-interaction-op=projection",
        "--interaction-branch1-layer-sizes=9-16",
        "--interaction-branch2-layer-sizes=24",
    ],
    "qr mult": ["--qr-flag", "--qr-threshold=20"],
    "qr add": ["--qr-flag", "--qr-threshold=5", "--qr-operation=add", "--qr-collisions=3"],
    "qr concat": ["--qr-flag", "--qr-threshold=5", "--qr-operation=concat", "--arch-mlp-bot=5-16-16"],
    "md": ["--md-flag", "--md-threshold=20", "--md-temperature=0.6"],
    "learned": ["--weighted-pooling=learned"],
    "fixed": ["--weighted-pooling=fixed"],
    "gelu": ["--activation-function=gelu"],
    "silu": ["--activation-function=silu"],
    "tanh": ["--activation-function=tanh"],
    "sigmoid": ["--activation-function=sigmoid"],
    "threshold": ["--loss-threshold=0.3"],
    "mean": ["--pooling=mean"],
    "qr mean": ["--pooling=mean", "--qr-flag", "--qr-threshold=20"],
}


SCALED = ("top", "crossnet", "branch")  # or predictions would all be 0 or 1


def options_of(*arguments: str) -> list[str]:
    given = {argument.split("=")[0] for argument in arguments}
    return [*(one for one in MODEL if one.split("=")[0] not in given), *arguments]


def architecture_of(*arguments: str) -> Architecture:
    options = parse_command_line(options_of(*arguments, "--optimizer=sgd"))
    model: ModelOptions = options.model
    return build_architecture(model, options.optimisation)


def random_model(path: Path, *arguments: str) -> None:
    """A model file of normal parameters, so that nothing in a model is the same as anything else."""
    rng = np.random.default_rng(7)
    shapes = parameter_shapes(architecture_of(*arguments))
    parameters = {
        name: torch.from_numpy((rng.normal(size=shape) * (0.2 if name.startswith(SCALED) else 1.0)).astype(np.float32))
        for name, shape in shapes.items()
    }
    torch.save({"state_dict": parameters}, path)


def batch_of(num_samples: int, most: int, rng: np.random.Generator) -> tuple[Batch, dict[str, np.ndarray]]:
    """Bags of up to ``most`` lookups, and the same as inputs of the graph."""
    counts = rng.integers(0, most + 1, (num_samples, len(ROWS)))
    ids = [[rng.integers(0, ROWS[table], count) for table, count in enumerate(sample)] for sample in counts]
    dense = rng.normal(size=(num_samples, 5)).astype(np.float32)
    rows = [table_offsets(ROWS)[table] + part for sample in ids for table, part in enumerate(sample)]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    batch = Batch(dense, np.concatenate(rows).astype(np.int64), offsets, np.zeros(num_samples, np.float32))
    feeds = {"dense_x": dense}
    for table in range(len(ROWS)):
        feeds[f"indices_{table}"] = np.concatenate([sample[table] for sample in ids]).astype(np.int64)
        feeds[f"offsets_{table}"] = np.cumsum([0, *counts[:-1, table]]).astype(np.int64)
    return batch, feeds


def by_torch(architecture: Architecture, path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """Predictions by torch's operators on whole tables, as facebookresearch/dlrm computes them."""
    parameters = torch.load(path)["state_dict"]
    model = architecture.dlrm(0)
    model.load_state_dict({name: parameters[name] for name in model.state_dict()})
    pooled = []
    for group in architecture.groups:
        vectors = []
        for table in group:
            number = table.name.split(".")[1]
            indices, offsets = (torch.from_numpy(feeds[f"{kind}_{number}"]) for kind in ("indices", "offsets"))
            factors = parameters[f"v_W_l.{number}"][indices] if f"v_W_l.{number}" in parameters else None
            collisions = architecture.embeddings[int(number)].collisions
            if collisions:
                indices = indices % collisions if table.name.endswith("_r") else indices // collisions
            weight = parameters[table.name]
            vectors.append(
                torch.nn.functional.embedding_bag(
                    indices, weight, offsets, mode=architecture.options.pooling, per_sample_weights=factors
                )
            )
        pooled.append(torch.stack(vectors, dim=1).flatten(0, 1))
    with torch.no_grad():
        return model(torch.from_numpy(feeds["dense_x"]), pooled).numpy()


@pytest.mark.parametrize(("kind", "beside"), [*((kind, False) for kind in KINDS), ("md", True), ("learned", True)])
def test_onnxruntime_agrees_with_torch(kind, beside, tmp_path, monkeypatch):
    if beside:
        monkeypatch.setattr(onnx_format, "_MOST_BYTES_INSIDE", 1000)
    random_model(tmp_path / "m.pt", *KINDS[kind])
    arguments = [*options_of(*KINDS[kind]), "--data=reference", "--ui=off", f"--load-model={tmp_path / 'm.pt'}"]
    assert main([*arguments, "--steps=0", "--save-onnx", f"--run-dir={tmp_path / 'run'}"]) == 0
    path = tmp_path / "run" / "model.onnx"
    assert (tmp_path / "run" / "model.onnx.data").exists() == beside
    if beside:
        stored = onnx.load(path, load_external_data=False).graph.initializer
        places = [int(entry.value) for one in stored for entry in one.external_data if entry.key == "offset"]
        assert len(set(places)) == len(parameter_shapes(architecture_of(*KINDS[kind])))
        assert all(place % 4096 == 0 for place in places), "runtimes map what begins at a page"
    onnx.checker.check_model(path, full_check=True)
    session = runtime.InferenceSession(path)
    rng, seen = np.random.default_rng(1), []
    for num_samples, most in [(1, 0), (1, 3), (2, 1), (3, 5), (17, 2), (64, 9), (5, 0)]:
        _, feeds = batch_of(num_samples, most, rng)
        (predictions,) = session.run(["pred"], feeds)
        assert predictions.shape == (num_samples, 1)
        expected = by_torch(architecture_of(*KINDS[kind]), tmp_path / "m.pt", feeds)
        assert predictions[:, 0] == pytest.approx(expected, abs=1e-5, rel=0)
        seen.append(expected)
    assert np.concatenate(seen).std() > 0.03, "predictions differ between samples"


def test_inputs_have_the_references_names(tmp_path):
    arguments = [*MODEL, "--data=reference", "--ui=off", "--steps=0", "--save-onnx", f"--run-dir={tmp_path / 'run'}"]
    assert main(arguments) == 0
    session = runtime.InferenceSession(tmp_path / "run" / "model.onnx")
    shapes = {value.name: value.shape for value in session.get_inputs()}
    assert shapes == {
        "dense_x": ["batch_size", 5],
        **{f"offsets_{table}": ["batch_size"] for table in range(3)},
        **{f"indices_{table}": [f"num_indices_{table}"] for table in range(3)},
    }
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("pred", ["batch_size", 1])]
    names = {tensor.name for tensor in onnx.load(tmp_path / "run" / "model.onnx").graph.initializer}
    assert names >= set(parameter_shapes(architecture_of()))


def test_a_trained_run_predicts_by_onnx_what_it_reported(tmp_path):
    rng = np.random.default_rng(2)
    sparse = rng.integers(0, ROWS, (300, 3)).astype(np.int32)
    dense = rng.normal(size=(300, 5)).astype(np.float32)
    for name, array in {"dense": dense, "sparse": sparse, "labels": sparse[:, :1] % 2}.items():
        np.save(tmp_path / f"day_{name}.npy", array)
    data = [f"--data=npy:{tmp_path}", f"--test-data=npy:{tmp_path}", "--ui=off", "--mini-batch-size=30"]
    saving = ["--save-onnx", "--save-predictions", "--gpu-cache-rows=60", "--policy=lru"]
    directory = tmp_path / "run"
    assert main([*MODEL, *data, *saving, f"--run-dir={directory}"]) == 0
    feeds = {"dense_x": dense}
    for table in range(3):
        feeds |= {f"indices_{table}": sparse[:, table].astype(np.int64), f"offsets_{table}": np.arange(300)}
    (predictions,) = runtime.InferenceSession(directory / "model.onnx").run(["pred"], feeds)
    assert predictions[:, 0] == pytest.approx(np.load(directory / "predictions.npy"), abs=1e-5, rel=0)


def test_without_the_package_one_line_says_so_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr("cachedlrm.train.build_job", lambda *_: pytest.fail("a job was built"))
    assert main(["--data=reference", "--save-onnx", "--ui=off", f"--run-dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error == "error: --save-onnx needs the package onnx: pip install 'cachedlrm[onnx]'\n"
    assert not (tmp_path / "run").exists()


def test_no_other_command_needs_the_package():
    code = "import sys, cachedlrm.train, cachedlrm.export; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
