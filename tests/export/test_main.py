"""Export writes where it may, or says in one line why not."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from cachedlrm.export.__main__ import main
from support.runs import one_line, train


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
def test_a_place_that_is_no_file_is_refused(run, tmp_path, monkeypatch, refusal, out, words):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("text")
    os.mkfifo("pipe")
    Path("link-to-pipe").symlink_to("pipe")
    Path("loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    message = refusal(run, out)
    assert words in message
    assert "free space" not in message
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("name", ["final.safetensors", "config.toml", "metrics.jsonl", "model.onnx", "run.lock"])
def test_the_runs_own_files_are_not_overwritten(run, tmp_path, refusal, name):
    (tmp_path / "link").symlink_to(run / name)
    (tmp_path / "folder").symlink_to(run)
    before = {path: path.read_bytes() for path in run.iterdir()}
    for out in (run / name, tmp_path / "link", tmp_path / "folder" / name, run / ".." / "run" / name):
        assert f"is {name} of the run itself" in refusal(run, out)
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
def test_what_the_system_refuses_has_its_own_advice(run, tmp_path, monkeypatch, refusal, number, words):
    def refuse(file: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert words in refusal(run, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_the_old_file(run, tmp_path, monkeypatch, capsys, number):
    (tmp_path / "out").write_text("old")
    monkeypatch.setattr(os, "fsync", lambda file: signal.raise_signal(number))
    assert main([str(run), str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "interrupted; OUT is as it was before\n"
    assert (tmp_path / "out").read_text() == "old"
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


@pytest.mark.parametrize(
    ("options", "dtypes"),
    [
        (["--row-dtype=bf16"], (torch.bfloat16, torch.float32)),
        (["--row-dtype=fp16", "--row-state-dtype=bf16", "--weighted-pooling=learned"], (torch.float16, torch.bfloat16)),
        ([], (torch.float32, torch.float32)),
    ],
)
def test_rows_are_written_in_32_bits_or_as_they_are_kept(tmp_path, options, dtypes):
    run, wide, kept = tmp_path / "run", tmp_path / "wide", tmp_path / "kept"
    assert train(run, "--steps=3", "--optimizer=rwsadagrad", *options) == 0
    assert main([str(run), str(wide), "--with-optimizer-state"]) == 0
    assert main([str(run), str(kept), "--with-optimizer-state", "--as-kept"]) == 0
    ours, theirs = load_torch(wide), load_torch(kept)
    assert ours.keys() == theirs.keys()
    found = {name: theirs[name].dtype for name in theirs if name.startswith(("emb_l", "v_W_l"))}
    of_parameter, of_state = dtypes
    assert found == {name: of_state if name.endswith("state") else of_parameter for name in found}
    assert ("v_W_l.3" in found) == ("--weighted-pooling=learned" in options)
    for name, values in ours.items():
        assert values.dtype == torch.float32
        assert torch.equal(values, theirs[name].float()), name
        assert not name.endswith("state") or values.any()


def test_torchrec_takes_no_rows_as_kept(finished, tmp_path, capsys):
    arguments = [str(finished), str(tmp_path / "out"), "--format=torchrec", "--as-kept"]
    assert "--as-kept is for --format safetensors" in one_line(capsys, main(arguments))
    assert not (tmp_path / "out").exists()


def test_help_and_mistakes_in_the_call(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "Usage: python -m cachedlrm.export [OPTIONS] RUN_DIR OUT" in capsys.readouterr().out
    for arguments in ([], ["a"], ["a", "b", "c"], ["--bogus", "a", "b"], ["", "b"], ["a\nb\x1b[2J", "b"]):
        one_line(capsys, main(arguments))
