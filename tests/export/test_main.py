"""Export writes where it may, from files that belong to each other, or says in one line why not."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import main
from cachedlrm.export.formats.safetensors_file import write_tensors
from support.runs import one_line, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert train(directory, "--steps=3") == 0
    return directory


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def refusal(capsys, run: Path | str, out: Path | str) -> str:
    return one_line(capsys, main([str(run), str(out)]))


# --- where it may write


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (".", "is a directory"),
        ("/", "is a directory"),
        ("", "OUT needs a value"),
        ("folder", "is a directory"),
        ("missing/out", "missing is not a folder; make it"),
        ("file/out", "file is not a folder"),
        ("pipe", "is not a regular file"),
        ("link-to-pipe", "is not a regular file"),
        ("loop", "leads to itself"),
        ("n" * 250, "File name too long; choose another place"),
        ("n" * 300, "File name too long; choose another place"),
    ],
)
def test_a_place_that_is_no_file_is_refused(run, tmp_path, monkeypatch, capsys, out, words):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("text")
    os.mkfifo("pipe")
    Path("link-to-pipe").symlink_to("pipe")
    Path("loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    message = refusal(capsys, run, out)
    assert words in message
    assert "free space" not in message
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("name", ["final.safetensors", "config.toml", "metrics.jsonl", "model.onnx", "run.lock"])
def test_the_runs_own_files_are_not_overwritten(run, tmp_path, capsys, name):
    (tmp_path / "link").symlink_to(run / name)
    (tmp_path / "folder").symlink_to(run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    for out in (run / name, tmp_path / "link", tmp_path / "folder" / name, run / ".." / "run" / name):
        assert f"is {name} of the run itself" in refusal(capsys, run, out)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_link_leads_to_the_file_that_is_written(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert main([str(run), str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert load_file(tmp_path / "there")["emb_l.0.weight"].shape == (400, 8)


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "free space there"), (errno.EFBIG, "ulimit -f"), (errno.EACCES, "; choose another place")],
)
def test_what_the_system_refuses_has_its_own_advice(run, tmp_path, monkeypatch, capsys, number, words):
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert words in refusal(capsys, run, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_old_file(run, tmp_path, monkeypatch, capsys, number):
    (tmp_path / "out").write_text("old")
    monkeypatch.setattr(os, "fsync", lambda file: signal.raise_signal(number))
    assert main([str(run), str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted; OUT is as it was before\n"
    assert (tmp_path / "out").read_text() == "old"
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_help_and_mistakes_in_the_call(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Usage: python -m cachedlrm.export [OPTIONS] RUN_DIR OUT" in capsys.readouterr().out
    for arguments in ([], ["a"], ["a", "b", "c"], ["--bogus", "a", "b"], ["", "b"], ["a\nb\x1b[2J", "b"]):
        one_line(capsys, main(arguments))


# --- what it reads


def rewrite(run: Path, **changes: np.ndarray | None) -> None:
    """Replaces tensors of the final state, or takes them away, and keeps the rest."""
    path = run / "final.safetensors"
    with safe_open(str(path), "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path) | {name.replace("__", "."): array for name, array in changes.items()}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    write_tensors(path, {name: (a.dtype, a.shape) for name, a in tensors.items()}, tensors.values(), metadata)


def test_the_header_says_what_the_state_belongs_to(finished):
    with safe_open(str(finished / "final.safetensors"), "numpy") as file:
        metadata = file.metadata()
    assert metadata["numpy-rand-seed"] == "123"
    assert metadata["arch-embedding-size"] == "400-30-900-5"
    assert metadata["rows"] == "touched"
    assert {"optimizer", "init", "qr-flag", "md-flag", "arch-mlp-top"} <= metadata.keys()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("numpy-rand-seed = 123", "numpy-rand-seed = 124", ["--numpy-rand-seed 123", "--numpy-rand-seed 124"]),
        ("400-30-900-5", "400-30-901-5", ["--arch-embedding-size 400-30-900-5", "400-30-901-5"]),
        ('optimizer = "adagrad"', 'optimizer = "rwsadagrad"', ["--optimizer adagrad", "--optimizer rwsadagrad"]),
        ('init = "counter"', 'init = "reference"', ["--init counter", "--init reference"]),
        ('init = "counter"', "", ["[store] lacks init"]),
        ('arch-mlp-top = "16-1"', 'arch-mlp-top = "1"', ["--arch-mlp-top 16-1", "--arch-mlp-top 1"]),
        ("qr-flag = false", "qr-flag = true", ["--qr-flag False", "--qr-flag True"]),
        ("md-flag = false", "md-flag = true", ["--md-flag False", "--md-flag True"]),
        ("[model]", '[model]\nweighted-pooling = "learned"', ["no --weighted-pooling", "--weighted-pooling learned"]),
        ("[inference]", '[inference]\nload-model = "x.pt"', ["no --load-model", "--load-model x.pt"]),
        ('optimizer = "adagrad"', "", ["[optimisation] lacks optimizer"]),
        ('arch-mlp-top = "16-1"', "", ["[model] lacks arch-mlp-top"]),
        ("md-round-dims = false", "md-flag = true", ["config.toml"]),
    ],
)
def test_a_config_of_another_run_is_refused_by_name(run, tmp_path, capsys, old, new, words):
    config = run / "config.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    message = refusal(capsys, run, tmp_path / "out")
    assert all(word in message for word in [str(config), *words]), message
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_matter_may_change(run, tmp_path):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("print-freq = 50", "print-freq = 5"))
    assert main([str(run), str(tmp_path / "out")]) == 0


F4 = np.float32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows__0": None}, "rows.0 is missing"),
        ({"records__0": None}, "records.0 is missing"),
        ({"rows__0": np.array([0, 1])}, "records.0 is F32"),
        ({"rows__0": np.array([0, 0]), "records__0": np.zeros((2, 16), F4)}, "rows.0 are not in order, each once"),
        ({"rows__0": np.array([0, 1335]), "records__0": np.zeros((2, 16), F4)}, "holds row 1335 of 1335"),
        ({"rows__0": np.array([0, -1]), "records__0": np.zeros((2, 16), F4)}, "holds row -1 of 1335"),
        ({"rows__0": np.array([0, 1], np.int32), "records__0": np.zeros((2, 16), F4)}, "rows.0 is I32 [2]"),
        ({"rows__0": np.array([[0, 1]]), "records__0": np.zeros((2, 16), F4)}, "rows.0 is I64 [1, 2]"),
        ({"rows__0": np.array([0, 1]), "records__0": np.zeros((2, 15), F4)}, "records.0 is F32 [2, 15]"),
        ({"rows__0": np.array([0, 1]), "records__0": np.zeros((2, 16), np.int32)}, "records.0 is I32"),
        ({"rows__1": np.array([0])}, "rows.1 does not belong there"),
        ({"bot_l__0__weight": None}, "bot_l.0.weight is missing, not F32 [16, 3]"),
        ({"bot_l__0__weight": np.zeros((3, 16), F4)}, "bot_l.0.weight is F32 [3, 16], not F32 [16, 3]"),
        ({"top_l__0__bias": np.zeros(16, np.int64)}, "top_l.0.bias is I64"),
        ({"more": np.zeros(1, F4)}, "more does not belong there"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(run, tmp_path, capsys, changes, words):
    rewrite(run, **changes)
    message = refusal(capsys, run, tmp_path / "out")
    assert words in message
    assert str(run / "final.safetensors") in message


def test_a_state_without_a_name_is_refused(run, tmp_path, capsys):
    path = run / "final.safetensors"
    tensors = load_file(path)
    write_tensors(path, {name: (a.dtype, a.shape) for name, a in tensors.items()}, tensors.values())
    assert "does not say which run" in refusal(capsys, run, tmp_path / "out")


def test_damage_is_one_line(run, tmp_path, capsys):
    path = run / "final.safetensors"
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    odd = {**header, "rows.0": {**header["rows.0"], "dtype": "BF16"}}
    odd_header = json.dumps(odd).encode()
    odd_header += b" " * (-len(odd_header) % 8)
    damaged = [b"", whole[:4], whole[:100], whole[:-1], whole + b"x", b"\xff" * len(whole), whole[8:],
               len(odd_header).to_bytes(8, "little") + odd_header + whole[8 + int.from_bytes(whole[:8], "little") :],
               whole.replace(b'"rows.0"', b'"rowz.0"'), whole.replace(b'"F32"', b'"F16"'),
               whole.replace(b'"F32"', b'"BF6"')]  # fmt: skip
    for content in damaged:
        path.write_bytes(content)
        assert str(path) in refusal(capsys, run, tmp_path / "out")
    path.unlink()
    assert "holds no finished run" in refusal(capsys, run, tmp_path / "out")
    path.mkdir()
    assert "holds no finished run" in refusal(capsys, run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
