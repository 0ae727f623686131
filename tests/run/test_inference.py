"""``--inference-only``: facebookresearch/dlrm's predictions, also in fewer bits, and what the report says of them.

``golden_inference/predictions.json``: of each model file there (see test_model_file.py) every third prediction and the
accuracy of ``python dlrm_s_pytorch.py ARGS QUANTISATION --inference-only --load-model=NAME.pt``, where ARGS are
``args`` of the model and QUANTISATION is ``args`` of the way it is served.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import main as export_main
from cachedlrm.run import inference
from cachedlrm.train import main
from support.documents import TESTS
from support.runs import MODEL

HERE = TESTS / "golden_inference"
GOLDEN = json.loads((HERE / "predictions.json").read_text())
ZIPF = [
    "--data=zipf:samples=8000",
    *MODEL,
    "--mini-batch-size=100",
    "--ui=off",
]
DEFAULT = ["--data=reference", "--ui=off", "--inference-only"]


def served(directory: Path, *arguments: str) -> tuple[dict, np.ndarray]:
    """The report and the predictions of a run that serves a model."""
    assert main([*arguments, "--inference-only", "--save-predictions", f"--run-dir={directory}"]) == 0
    report = json.loads((directory / "report.json").read_text())
    return report, np.load(directory / "predictions.npy")


def write_ones(folder: Path, samples: int) -> None:
    """Samples that are all alike, labels 1."""
    np.save(folder / "day_dense.npy", np.ones((samples, 2), np.float32))
    np.save(folder / "day_sparse.npy", np.zeros((samples, 2), np.int32))
    np.save(folder / "day_labels.npy", np.ones((samples, 1), np.int32))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in GOLDEN for kind in GOLDEN[name]["served"]])
def test_the_reference_predicts_the_same(name, kind, tmp_path):
    golden = GOLDEN[name]["served"][kind]
    arguments = [*GOLDEN[name]["args"], *golden["args"], "--data=reference", "--ui=off"]
    report, predictions = served(tmp_path / "run", *arguments, f"--load-model={HERE / f'{name}.pt'}")
    assert predictions.dtype == np.float32
    assert predictions[::3] == pytest.approx(np.array(golden["predictions"]), abs=1e-6, rel=0)
    assert report["accuracy"] == pytest.approx(golden["accuracy"], abs=1e-12)
    section = report["inference"]
    assert section["samples"] == len(predictions) == 120
    assert (section["after"] is None) == (kind == "float")
    last = section["after"] or section["before"]
    assert last["accuracy"] == report["accuracy"]
    assert last["auc"] == report["auc"] is not None
    assert last["loss"] > 0
    assert last["samples_per_s"] > 0


def test_the_references_generators_know_one_size_of_batches(tmp_path):
    """int8 MLPs scale their inputs batch by batch, and the reference tests generated data in training's batches."""
    arguments = [*GOLDEN["sgd"]["args"], "--data=reference", "--ui=off", f"--load-model={HERE / 'sgd.pt'}"]
    quantized = ["--quantize-mlp-with-bit=8", "--test-mini-batch-size=7"]
    _, predictions = served(tmp_path / "run", *arguments, *quantized)
    expected = GOLDEN["sgd"]["served"]["mlp8"]["predictions"]
    assert predictions[::3] == pytest.approx(np.array(expected), abs=1e-6, rel=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A model file of a model that has learned something."""
    directory = tmp_path_factory.mktemp("trained")
    path = directory / "m.pt"
    assert main([*ZIPF, f"--save-model={path}", f"--run-dir={directory / 'run'}", "--save-predictions"]) == 0
    return path


@pytest.mark.parametrize(
    ("arguments", "embedding_bytes", "mlp_bytes"),
    [
        (["--quantize-emb-with-bit=8"], 1335 * (8 + 8), None),
        (["--quantize-emb-with-bit=4"], 1335 * (4 + 4), None),
        (["--quantize-mlp-with-bit=8"], None, (1, 4)),
        (["--quantize-mlp-with-bit=16"], None, (2, 4)),
        (["--quantize-emb-with-bit=4", "--quantize-mlp-with-bit=8"], 1335 * (4 + 4), (1, 4)),
    ],
)
def test_the_report_has_both_models(arguments, embedding_bytes, mlp_bytes, trained, tmp_path):
    report, predictions = served(tmp_path / "run", *ZIPF, f"--load-model={trained}", *arguments)
    section = report["inference"]
    before, after = section["before"], section["after"]
    weights, biases = 3 * 16 + 16 * 8 + 18 * 16 + 16, 16 + 8 + 16 + 1
    assert before["embedding_bytes"] == 1335 * 8 * 4
    assert before["mlp_bytes"] == 4 * (weights + biases)
    assert after["embedding_bytes"] == (embedding_bytes or before["embedding_bytes"])
    weight_bytes, bias_bytes = mlp_bytes or (4, 4)
    assert after["mlp_bytes"] == weight_bytes * weights + bias_bytes * biases
    assert before["auc"] > 0.6
    assert 0 < abs(after["auc"] - before["auc"]) < 0.01
    assert report["auc"] == after["auc"]
    assert report["steps"] == report["samples"] == 0
    assert not np.array_equal(predictions, np.load(trained.parent / "run" / "predictions.npy"))
    text = (tmp_path / "run" / "report.md").read_text()
    assert text.startswith("# Inference report")
    assert f"| AUC | {before['auc']:.5f} | {after['auc']:.5f} |" in text


def test_a_loaded_model_predicts_the_same_bits_and_can_be_exported(trained, tmp_path):
    report, predictions = served(tmp_path / "run", *ZIPF, f"--load-model={trained}", "--gpu-cache-ratio=0.5")
    assert np.array_equal(predictions, np.load(trained.parent / "run" / "predictions.npy"))
    assert report["inference"]["after"] is None
    assert report["auc"] == json.loads((trained.parent / "run" / "report.json").read_text())["auc"]
    assert report["device_bytes_breakdown"]["slab"] < 1335 * 8 * 4 / 50, "rows are read where they are"
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.toml", "report.json", "report.md", "predictions.npy", "final.safetensors"}
    assert 'load-model = "' in (tmp_path / "run" / "config.toml").read_text()
    out = tmp_path / "out.safetensors"
    assert export_main([str(tmp_path / "run"), str(out)]) == 0
    parameters = torch.load(trained)["state_dict"]
    exported = load_file(out)
    assert exported.keys() == parameters.keys()
    assert all(np.array_equal(exported[name], parameters[name]) for name in parameters)


def test_an_untrained_model_and_a_display(tmp_path, capsys):
    arguments = [argument for argument in ZIPF if argument != "--ui=off"]
    report, _ = served(tmp_path / "run", *arguments, "--ui=plain")
    assert report["inference"]["before"]["auc"] == report["auc"]
    text = capsys.readouterr().out
    assert "rows are read where they are" in text
    assert "1,000 held-out samples" in text
    assert f"accuracy {report['accuracy']:.3%}" in text


def test_labels_of_one_kind_have_no_auc(tmp_path):
    write_ones(tmp_path, 40)
    arguments = ["--arch-embedding-size=5-5", "--arch-mlp-bot=2-4", "--arch-sparse-feature-size=4", "--ui=off"]
    data = [f"--data=npy:{tmp_path}", f"--test-data=npy:{tmp_path}"]
    report, predictions = served(tmp_path / "run", *arguments, *data)
    assert report["auc"] is report["inference"]["before"]["auc"] is None
    assert report["accuracy"] == float(np.mean(np.round(predictions) == 1))
    assert report["inference"]["before"]["loss"] == pytest.approx(float(np.mean(-np.log(predictions))))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantize-mlp-with-bit=7"], ["--quantize-mlp-with-bit", "8, 16 or 32"]),
        (["--quantize-emb-with-bit=7"], ["--quantize-emb-with-bit", "4, 8 or 32"]),
        (["--quantize-emb-with-bit=8", "--qr-flag"], ["--qr-flag"]),
        (["--quantize-emb-with-bit=8", "--md-flag"], ["--md-flag"]),
        (
            ["--quantize-emb-with-bit=4", "--arch-sparse-feature-size=3", "--arch-mlp-bot=4-3"],
            ["--quantize-emb-with-bit 4", "--arch-sparse-feature-size is 3"],
        ),
        (["--steps=3"], ["--steps 3", "--inference-only"]),
        (["--gpu-budget=1KB"], ["--gpu-budget 1000 B"]),  # an evaluation has to fit
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, tmp_path, capsys):
    assert main([*DEFAULT, *arguments, f"--run-dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_no_held_out_samples_is_one_line(tmp_path, capsys):
    write_ones(tmp_path, 4)
    arguments = [f"--data=npy:{tmp_path}", "--arch-embedding-size=5-5", "--ui=off", "--inference-only"]
    assert main([*arguments, f"--run-dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--inference-only" in error
    assert "--test-data" in error


def test_quantised_models_run_on_the_cpu_only(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inference, "choose_device", lambda _: torch.device("cuda"))
    for option in ("--quantize-mlp-with-bit=8", "--quantize-emb-with-bit=8"):
        assert main([*DEFAULT, option, f"--run-dir={tmp_path / 'run'}"]) == 2
        error = capsys.readouterr().err
        assert option.replace("=", " ") in error
        assert "--device cpu" in error
