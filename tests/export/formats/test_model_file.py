"""Model files of facebookresearch/dlrm, both ways; what is wrong with a file is one line.

``golden_inference/NAME.pt`` was written by its ``dlrm_s_pytorch.py`` (commit 090956e, torch 2.13 CPU, one thread):
``python dlrm_s_pytorch.py ARGS --test-freq=10 --save-model=NAME.pt``, where ARGS are ``args`` in ``predictions.json``.
"""

import json
import os
import pickle
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cachedlrm.export import full_tables
from cachedlrm.export.__main__ import main as export_main
from cachedlrm.export.formats import model_file
from cachedlrm.train import main
from support.documents import TESTS

HERE = TESTS / "golden_inference"
GOLDEN = json.loads((HERE / "predictions.json").read_text())
SMALL = [
    "--data=reference",
    "--arch-sparse-feature-size=4",
    "--arch-embedding-size=30-7-50",
    "--arch-mlp-bot=3-8-4",
    "--arch-mlp-top=8-1",
    "--num-indices-per-lookup=3",
    "--mini-batch-size=10",
    "--num-batches=6",
    "--learning-rate=0.1",
    "--print-freq=1",
    "--ui=off",
]
MODELS = {
    "plain": [],
    "learned": ["--weighted-pooling=learned"],
    "qr": ["--qr-flag", "--qr-threshold=20"],
    "md": ["--md-flag", "--md-threshold=20", "--md-temperature=0.6"],
}
OPTIMIZERS = ["sgd", "adagrad", "rwsadagrad", "adam"]


def run(directory: Path, *arguments: str) -> dict:
    """A run's report; later arguments take the place of `SMALL`'s."""
    given = {argument.split("=")[0] for argument in arguments}
    base = [argument for argument in SMALL if argument.split("=")[0] not in given]
    assert main([*base, *arguments, f"--run-dir={directory}"]) == 0
    return json.loads((directory / "report.json").read_text())


def exported(directory: Path) -> dict[str, np.ndarray]:
    out = directory / "out.safetensors"
    assert export_main([str(directory), str(out), "--with-optimizer-state"]) == 0
    return load_file(out)


def tensors(content: object, place: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dictionaries, by their places."""
    if isinstance(content, torch.Tensor):
        return {place: content}
    if not isinstance(content, dict):
        return {}
    return {name: tensor for key in content for name, tensor in tensors(content[key], f"{place}/{key}").items()}


def equal(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_reference_writes_the_same_file(name, tmp_path):
    arguments = [*GOLDEN[name]["args"], "--data=reference", "--ui=off", f"--run-dir={tmp_path / 'run'}"]
    assert main([*arguments, "--test-freq=10", f"--save-model={tmp_path / 'm.pt'}"]) == 0
    theirs = torch.load(HERE / f"{name}.pt", weights_only=False)
    ours = torch.load(tmp_path / "m.pt", weights_only=True)  # as the reference loads it, with torch's defaults
    assert ours.keys() == theirs.keys()
    assert list(ours["state_dict"]) == list(theirs["state_dict"])
    for key in ("nepochs", "nbatches", "nbatches_test", "epoch", "iter", "total_loss"):
        assert ours[key] == theirs[key]
    assert ours["test_acc"] == theirs["test_acc"]
    assert ours["opt_state_dict"]["param_groups"] == theirs["opt_state_dict"]["param_groups"]
    ours_tensors, theirs_tensors = tensors(ours), tensors(theirs)
    assert list(ours_tensors) == list(theirs_tensors)
    for place, tensor in theirs_tensors.items():
        torch.testing.assert_close(ours_tensors[place], tensor, rtol=1e-5, atol=1e-6)
    for number, entry in theirs["opt_state_dict"]["state"].items():
        assert type(entry["step"]) is type(ours["opt_state_dict"]["state"][number]["step"])
        assert ours["opt_state_dict"]["state"][number]["step"] == entry["step"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_saving_and_loading_keeps_every_bit(model, optimizer, tmp_path):
    arguments = [*MODELS[model], f"--optimizer={optimizer}"]
    first, second = tmp_path / "1.pt", tmp_path / "2.pt"
    run(tmp_path / "trained", *arguments, f"--save-model={first}")
    run(tmp_path / "loaded", *arguments, "--steps=0", f"--load-model={first}", f"--save-model={second}")
    first_content, second_content = torch.load(first), torch.load(second)
    assert equal(tensors(first_content), tensors(second_content))
    names = ("state_dict", "opt_state_dict")
    assert list(first_content["state_dict"]) == list(second_content["state_dict"])
    assert all(len(tensors(first_content[name])) > 0 for name in names if optimizer != "sgd")
    first.unlink()
    second.unlink()  # the run directory is enough for export
    assert equal(exported(tmp_path / "trained"), exported(tmp_path / "loaded"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_a_warm_start_goes_on_with_the_bits_of_an_uninterrupted_run(model, optimizer, tmp_path):
    arguments = [*MODELS[model], f"--optimizer={optimizer}"]
    whole = run(tmp_path / "whole", *arguments, "--nepochs=2")
    run(tmp_path / "first", *arguments, f"--save-model={tmp_path / 'm.pt'}", "--gpu-cache-rows=20")
    cached = ["--gpu-cache-rows=25", "--policy=lru", "--prefetch-depth=3"]
    second = run(tmp_path / "second", *arguments, f"--load-model={tmp_path / 'm.pt'}", *cached)
    assert second["losses"] == whole["losses"][6:]
    assert equal(exported(tmp_path / "second"), exported(tmp_path / "whole"))


APART = {
    "adagrad, adam": ["--optimizer=adagrad", "--dense-optimizer=adam", "--eps=1e-4", "--weight-decay=0.1"],
    "adam, momentum": ["--optimizer=adam", "--dense-optimizer=sgd", "--dense-momentum=0.9"],
    "sgd, adamw": ["--optimizer=sgd", "--dense-optimizer=adamw", "--dense-learning-rate=0.01"],
    "rwsadagrad, sgd": ["--optimizer=rwsadagrad", "--dense-optimizer=sgd"],
}


@pytest.mark.parametrize(("name", "model"), list(zip(APART, ["md", "learned", "qr", "plain"], strict=True)))
def test_optimizers_apart_go_on_from_a_file(name, model, tmp_path):
    arguments = [*MODELS[model], *APART[name], "--clip-grad-norm=0.3"]
    whole = run(tmp_path / "whole", *arguments, "--nepochs=2")
    run(tmp_path / "first", *arguments, f"--save-model={tmp_path / 'm.pt'}", "--gpu-cache-rows=20")
    second = run(tmp_path / "second", *arguments, f"--load-model={tmp_path / 'm.pt'}", "--gpu-cache-rows=25")
    assert second["losses"] == whole["losses"][6:]
    assert equal(exported(tmp_path / "second"), exported(tmp_path / "whole"))
    rows, layers = torch.load(tmp_path / "m.pt")["opt_state_dict"]["param_groups"]
    names = list(torch.load(tmp_path / "m.pt")["state_dict"])
    assert sorted(rows["params"] + layers["params"]) == list(range(len(names)))
    assert all(names[number].startswith(("emb_l", "v_W_l")) for number in rows["params"])
    assert not any(names[number].endswith("proj.weight") for number in rows["params"])
    assert rows["weight_decay"] == (0.1 if "--weight-decay=0.1" in arguments else 0)
    assert rows.get("decoupled_weight_decay", False) is (rows["weight_decay"] > 0)
    assert rows.get("eps") == {"adagrad, adam": 1e-4, "adam, momentum": 1e-8, "rwsadagrad, sgd": 1e-10}.get(name)
    assert layers.get("momentum") == {"adam, momentum": 0.9, "rwsadagrad, sgd": 0.0}.get(name)
    assert layers["lr"] == (0.01 if name == "sgd, adamw" else 0.1)


def test_a_file_may_be_loaded_and_written_over(tmp_path, monkeypatch):
    monkeypatch.setattr(full_tables, "_CHUNK_BYTES", 500)
    path = tmp_path / "m.pt"
    run(tmp_path / "first", "--optimizer=adagrad", f"--save-model={path}")
    before = torch.load(path)["state_dict"]["emb_l.2.weight"]
    run(tmp_path / "second", "--optimizer=adagrad", f"--load-model={path}", f"--save-model={path}", "--steps=1")
    content = exported(tmp_path / "second")
    after = torch.load(path)["state_dict"]
    assert all(np.array_equal(content[name], tensor) for name, tensor in after.items())
    assert 0 < (before == after["emb_l.2.weight"]).all(dim=1).sum() < 50


def test_state_of_another_optimizer_starts_at_zero_and_a_line_says_so(tmp_path, capsys):
    path = tmp_path / "m.pt"
    run(tmp_path / "first", "--optimizer=adagrad", f"--save-model={path}")
    run(tmp_path / "other", "--optimizer=rwsadagrad", "--steps=0", f"--load-model={path}", "--ui=plain")
    assert f"parameters of {path}; the state of rwsadagrad starts at zero" in capsys.readouterr().out
    content = exported(tmp_path / "other")
    assert not content["emb_l.0.state"].any()
    assert np.array_equal(content["emb_l.0.weight"], torch.load(path)["state_dict"]["emb_l.0.weight"])
    run(tmp_path / "same", "--optimizer=adagrad", "--steps=0", f"--load-model={path}", "--ui=plain")
    assert f"parameters and the state of adagrad of {path}" in capsys.readouterr().out


def test_a_later_epoch_is_written_as_a_start(tmp_path):
    """The reference never leaves its loop for a file of a later epoch than the first."""
    path = tmp_path / "m.pt"
    run(tmp_path / "one", "--steps=4", f"--save-model={path}")
    assert [torch.load(path)[key] for key in ("epoch", "iter", "nbatches")] == [0, 4, 6]
    run(tmp_path / "two", "--nepochs=2", f"--save-model={path}")
    assert [torch.load(path)[key] for key in ("epoch", "iter", "nepochs")] == [0, 0, 2]


def test_the_rate_of_the_next_step_is_written(tmp_path):
    schedule = ["--lr-num-warmup-steps=2", "--lr-decay-start-step=3", "--lr-num-decay-steps=20"]
    run(tmp_path / "run", *schedule, f"--save-model={tmp_path / 'm.pt'}")
    group = torch.load(tmp_path / "m.pt")["opt_state_dict"]["param_groups"][0]
    assert group["initial_lr"] == 0.1
    assert group["lr"] == pytest.approx(0.1 * (16 / 20) ** 2)


def content_of(tmp_path: Path) -> dict:
    path = tmp_path / "good.pt"
    run(tmp_path / "good", "--optimizer=adagrad", f"--save-model={path}")
    return torch.load(path)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def change(content: dict, name: str, value: object) -> dict:
    return {**content, "state_dict": {**content["state_dict"], name: value}}


MISTAKES = {
    "shape": (lambda c: change(c, "emb_l.1.weight", torch.zeros(8, 4)), ["emb_l.1.weight is 8 x 4", "7 x 4"]),
    "top": (lambda c: change(c, "top_l.2.bias", torch.zeros(3)), ["top_l.2.bias is 3 in", "--arch-mlp-top"]),
    "number": (lambda c: change(c, "bot_l.0.bias", torch.tensor(1.0)), ["bot_l.0.bias is a number", "--arch-mlp-bot"]),
    "extra": (lambda c: change(c, "v_W_l.0", torch.ones(30)), ["v_W_l.0", "lacks", "--weighted-pooling"]),
    "odd name": (lambda c: change(c, 5, torch.ones(30)), ["parameter 5", "lacks"]),
    "type": (lambda c: change(c, "bot_l.0.bias", torch.zeros(8).half()), ["bot_l.0.bias is torch.float16", "float32"]),
    "no tensor": (lambda c: change(c, "bot_l.0.bias", "text"), ["bot_l.0.bias is str"]),
    "sparse": (lambda c: change(c, "emb_l.1.weight", torch.zeros(7, 4).to_sparse()), ["emb_l.1.weight"]),
    "missing": (lambda c: {**c, "state_dict": {}}, ["lacks parameter emb_l.0.weight", "30 x 4"]),
    "no model": (lambda c: {"epoch": 1}, ["state_dict"]),
    "no parameters": (lambda c: {"state_dict": [1]}, ["state_dict"]),
    "list": (lambda c: [1, 2], ["state_dict"]),
    "code": (lambda c: {**c, "x": Evil()}, ["more than tensors and numbers"]),
    "state": (
        lambda c: {**c, "opt_state_dict": {**c["opt_state_dict"], "state": {
            **c["opt_state_dict"]["state"], 1: {"step": 1, "sum": torch.ones(7, 3)}}}},
        ["sum of emb_l.1.weight is 7 x 3", "7 x 4"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict:
    return content_of(tmp_path_factory.mktemp("good"))


def refused(capsys, *arguments: str) -> str:
    """The one line of a run that ends with status 2."""
    given = {argument.split("=")[0] for argument in arguments}
    assert main([*(one for one in SMALL if one.split("=")[0] not in given), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", MISTAKES)
def test_a_wrong_file_is_one_line(name, good, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = MISTAKES[name]
    path = tmp_path / "bad.pt"
    torch.save(make(good), path)
    message = refused(capsys, "--optimizer=adagrad", f"--load-model={path}", f"--run-dir={tmp_path / 'run'}")
    assert str(path) in message
    assert all(word in message for word in words), message
    assert {entry.name for entry in tmp_path.iterdir()} == {"bad.pt"}, "no run directory, and no code was run"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--arch-embedding-size=30-7-51"], ["emb_l.2.weight is 50 x 4", "51 x 4", "--arch-embedding-size"]),
        (["--arch-embedding-size=30-7-50-9"], ["lacks parameter emb_l.3.weight, 9 x 4"]),
        (["--arch-embedding-size=30-7"], ["emb_l.2.weight", "this model lacks"]),
        (["--arch-mlp-bot=3-8-8-4"], ["bot_l.4.weight"]),
        (["--arch-interaction-op=cat"], ["top_l.0.weight", "--arch-interaction-op"]),
        (["--weighted-pooling=learned"], ["lacks parameter v_W_l.0", "--weighted-pooling"]),
        (["--qr-flag", "--qr-threshold=20"], ["lacks parameter emb_l.0.weight_q", "--qr-flag"]),
        (["--md-flag", "--md-threshold=20"], ["lacks parameter emb_l.0.embs.weight", "--md-flag"]),
    ],
)
def test_a_file_of_another_model_is_one_line(options, words, good, tmp_path, capsys):
    torch.save(good, tmp_path / "m.pt")
    message = refused(capsys, *options, f"--load-model={tmp_path / 'm.pt'}", f"--run-dir={tmp_path / 'run'}")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["No such file"]),
        (lambda path: path.mkdir(), ["Is a directory"]),
        (lambda path: path.write_bytes(b""), ["no model file"]),
        (lambda path: path.write_bytes(b"text"), ["no model file"]),
        (lambda path: path.write_bytes(pickle.dumps({"state_dict": 1})), ["no model file"]),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(500)), ["no model file"]),
        (lambda path: path.write_bytes((HERE / "adagrad.pt").read_bytes()[:-700]), ["no model file"]),
        (lambda path: zipfile.ZipFile(path, "w").close(), ["no model file"]),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(make, words, tmp_path, capsys):
    path = tmp_path / "m.pt"
    make(path)
    message = refused(capsys, f"--load-model={path}", f"--run-dir={tmp_path / 'run'}")
    assert str(path) in message
    assert "--load-model" in message
    assert all(word in message for word in words), message


def test_files_before_torch_1_6_are_read(good, tmp_path):
    torch.save(good, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    run(tmp_path / "run", "--optimizer=adagrad", "--steps=0", f"--load-model={tmp_path / 'old.pt'}")
    assert np.array_equal(exported(tmp_path / "run")["top_l.0.weight"], good["state_dict"]["top_l.0.weight"])


def test_the_run_directory_is_a_place_for_the_model(tmp_path):
    run(tmp_path / "run", "--steps=1", f"--save-model={tmp_path / 'run' / 'm.pt'}")
    assert "state_dict" in torch.load(tmp_path / "run" / "m.pt")


def test_a_full_disk_leaves_the_old_file_and_one_line(good, tmp_path, capsys):
    path = tmp_path / "m.pt"
    torch.save(good, path)
    before = path.read_bytes()
    tables = ["--arch-embedding-size=3000-7-50"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))  # enough for touched rows
    try:
        message = refused(capsys, "--steps=1", *tables, f"--save-model={path}", f"--run-dir={tmp_path / 'run'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"cannot write {path}" in message
    assert path.read_bytes() == before
    assert not any("partial" in entry.name for entry in tmp_path.rglob("*"))


def test_a_model_file_is_mapped_not_read(tmp_path, monkeypatch):
    mapped = []
    load = torch.load
    monkeypatch.setattr(
        model_file.torch, "load", lambda *args, **kwargs: mapped.append(kwargs) or load(*args, **kwargs)
    )
    run(tmp_path / "first", f"--save-model={tmp_path / 'm.pt'}")
    run(tmp_path / "second", "--steps=0", f"--load-model={tmp_path / 'm.pt'}")
    assert [kwargs["mmap"] for kwargs in mapped] == [True]
    assert [kwargs["weights_only"] for kwargs in mapped] == [True]
