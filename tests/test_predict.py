"""``python -m cachedlrm.predict``: the run's own numbers, on any samples, in bounded memory."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from cachedlrm import predict as predict_module
from cachedlrm.predict import main
from cachedlrm.train import main as train_main
from support.runs import SMALL, one_line, report, train


def predicted(run: Path, out: Path, *arguments: str) -> np.ndarray:
    assert main([str(run), f"--out={out}", *arguments]) == 0
    return np.load(out)


KINDS = {
    "plain": [],
    "cached": ["--gpu-cache-ratio=0.1", "--prefetch-depth=2", "--test-mini-batch-size=33"],
    "learned": ["--weighted-pooling=learned", "--optimizer=adam"],
    "qr": ["--qr-flag", "--qr-threshold=100"],
    "md": ["--md-flag", "--md-threshold=100"],
    "mean": ["--pooling=mean", "--data=zipf:samples=2000,hot=3"],
    "dcn": ["--arch-interaction-op=dcn", "--dcn-num-layers=2", "--dcn-low-rank-dim=4"],
    "best": ["--keep-best", "--optimizer=adam", "--learning-rate=0.05", "--test-freq=2"],
    "reference": ["--init=reference"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_runs_own_samples_have_the_runs_own_predictions(tmp_path, capsys, kind):
    run = tmp_path / "run"
    assert train(run, "--save-predictions", *KINDS[kind]) == 0
    capsys.readouterr()
    assert np.array_equal(predicted(run, tmp_path / "p.npy"), np.load(run / "predictions.npy"))
    made, said = report(run), capsys.readouterr().out
    assert f"{made['auc']:.4f}\n" in said
    assert f"{made['logloss']:.5f}\n" in said
    assert "250 predictions: " in said


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    """A folder of samples in two files, and what a run predicts of them."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for prefix in ("day_0", "day_1"):
        np.save(folder / f"{prefix}_dense.npy", rng.standard_normal((300, 3)).astype(np.float32))
        np.save(folder / f"{prefix}_sparse.npy", rng.integers(0, (400, 30, 900, 5), (300, 4)).astype(np.int32))
        np.save(folder / f"{prefix}_labels.npy", rng.integers(0, 2, (300, 1)).astype(np.int32))
    run = tmp_path_factory.mktemp("run") / "run"
    data = [f"--data=npy:{folder}", f"--test-data=npy:{folder}", "--test-freq=6", "--gauc-table=3"]
    assert train(run, *data, "--save-predictions", "--arch-embedding-size=400-30-900-5") == 0
    return run


def data_of(run: Path) -> str:
    return "npy:" + (run / "config.toml").read_text().split('data = "npy:')[1].split('"')[0]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_given_samples_and_other_files(samples, tmp_path, capsys, suffix):
    out = tmp_path / f"p.{suffix}"
    assert main([str(samples), f"--data={data_of(samples)}", f"--out={out}", "--gauc-table=3"]) == 0
    expected = np.load(samples / "predictions.npy")
    if suffix == "csv":
        lines = [line.split(",") for line in out.read_text().splitlines()]
        assert lines[0] == ["prediction", "label"]
        assert (np.array([line[0] for line in lines[1:]], np.float32) == expected).all()
    else:
        assert (pyarrow.parquet.read_table(out)["prediction"].to_numpy() == expected).all()
    assert f"{report(samples)['gauc']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("bits", [("8", "32"), ("32", "4"), ("16", "8")])
def test_fewer_bits_as_inference_only_has_them(tmp_path, samples, bits):
    """A model file of the run, served by training's --inference-only, has the same numbers."""
    model, again = tmp_path / "m.pt", tmp_path / "again"
    data = [f"--data={data_of(samples)}", f"--test-data={data_of(samples)}"]
    assert train(again, *data, "--test-freq=6", f"--save-model={model}", "--arch-embedding-size=400-30-900-5") == 0
    quantized = [f"--quantize-mlp-with-bit={bits[0]}", f"--quantize-emb-with-bit={bits[1]}"]
    serve = [f"--load-model={model}", "--inference-only", "--save-predictions", f"--run-dir={tmp_path / 'served'}"]
    small = [argument for argument in SMALL if not argument.startswith("--data")]
    assert train_main([*small, *data, *serve, *quantized]) == 0
    served = np.load(tmp_path / "served" / "predictions.npy")
    assert np.array_equal(predicted(samples, tmp_path / "p.npy", *quantized, "--ui=off"), served)
    assert not np.array_equal(served, np.load(samples / "predictions.npy"))


def test_samples_without_labels_are_predicted(samples, tmp_path, capsys):
    for path in Path(data_of(samples).removeprefix("npy:")).glob("*.npy"):
        if "labels" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    out = tmp_path / "p.csv"
    assert main([str(samples), f"--data=npy:{tmp_path}", f"--out={out}"]) == 0
    lines = out.read_text().splitlines()
    assert lines[0] == "prediction"
    assert (np.array(lines[1:], np.float32) == np.load(samples / "predictions.npy")).all()
    assert "AUC" not in capsys.readouterr().out
    out.unlink()
    message = one_line(capsys, main([str(samples), f"--data=npy:{tmp_path}", f"--out={out}", "--gauc-table=3"]))
    assert message.startswith(f"error: --gauc-table 3 measures by labels, which --data npy:{tmp_path} does not have")
    assert not out.exists()


def test_each_note_on_the_data_has_a_line_of_its_own(samples, tmp_path, capsys, monkeypatch):
    opened = predict_module.open_samples
    monkeypatch.setattr(predict_module, "open_samples", lambda *given: opened(*given)._replace(notes=("one", "two")))
    monkeypatch.setattr(predict_module, "common_vocabulary", lambda *given: (None, "three"))
    predicted(samples, tmp_path / "p.npy", f"--data={data_of(samples)}")
    assert capsys.readouterr().out.startswith("one\ntwo\nthree\n")
    predicted(samples, tmp_path / "p.npy")
    assert capsys.readouterr().out.startswith("three\n")


def test_progress_is_shown(samples, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cachedlrm.prepare.progress._LINE_S", 0.0)
    predicted(samples, tmp_path / "p.npy", "--ui=plain")
    assert "predicting: 100 samples, " in capsys.readouterr().out
    predicted(samples, tmp_path / "p.npy", "--ui=off")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out=p.txt"], "end its name in .npy, .parquet or .csv"),
        (["--out=p.npy", "--data=nothing"], "--data nothing: unknown source"),
        (["--out=p.npy", "--data=npy:/nothing"], "no such folder"),
        (["--out=p.npy", "--gauc-table=7"], "there is no such column; give a number from 0 to 3"),
        (["--out=p.npy", "--quantize-emb-with-bit=5"], "4, 8 or 32"),
    ],
)
def test_a_mistake_is_one_line(samples, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in one_line(capsys, main([str(samples), *arguments]))
    assert list(tmp_path.iterdir()) == []


def test_the_runs_own_files_stay(samples, capsys):
    message = one_line(capsys, main([str(samples), f"--out={samples / 'predictions.npy'}"]))
    assert "of the run itself" in message


def test_other_columns_and_an_unfinished_run_are_refused(samples, tmp_path, capsys):
    np.save(tmp_path / "dense.npy", np.ones((2, 2), np.float32))
    np.save(tmp_path / "sparse.npy", np.ones((2, 4), np.int32))
    np.save(tmp_path / "labels.npy", np.ones((2, 1), np.int32))
    arguments = [f"--out={tmp_path / 'p.npy'}", f"--data=npy:{tmp_path}"]
    assert "has 2 dense features and the model 3" in one_line(capsys, main([str(samples), *arguments]))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "config.toml").write_bytes((samples / "config.toml").read_bytes())
    message = one_line(capsys, main([str(unfinished), f"--out={tmp_path / 'p.npy'}"]))
    assert message.endswith("holds no finished run (final.safetensors is missing); let the run end first\n")


def test_an_interrupt_leaves_nothing(samples, tmp_path, capsys, monkeypatch):
    def interrupted(*arguments: object, **options: object):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(predict_module, "predict", interrupted)
    assert main([str(samples), f"--out={tmp_path / 'p.npy'}", "--ui=off"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []


def test_json_of_the_record_is_of_the_same_evaluation(samples):
    made = json.loads((samples / "report.json").read_text())
    assert made["evaluated_step"] == 6
