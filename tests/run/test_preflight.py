"""What is refused or warned of before training, and the numbers beside a model file."""

import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from cachedlrm import train as train_module
from cachedlrm.base.errors import UserError
from cachedlrm.run.preflight import check_outputs, short_of_space
from cachedlrm.store.spool import TEMPORARY_FILE
from support.options import resolved
from support.runs import MODEL, one_line, train

DATA = ["--data=zipf:samples=200", *MODEL]


def test_a_place_that_cannot_be_written_shows_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_module, "build_job", lambda *_: pytest.fail("a job was built"))
    message = one_line(capsys, train(tmp_path / "run", f"--save-model={tmp_path}"))
    assert f"--save-model {tmp_path} is a directory; name a file" in message
    message = one_line(capsys, train(tmp_path / "run", f"--save-model={tmp_path / 'none' / 'm.pt'}"))
    assert f"cannot write into {tmp_path / 'none'}" in message


def test_the_run_directory_is_made_and_any_folder_will_do(tmp_path):
    check_outputs(resolved(*DATA, f"--run-dir={tmp_path / 'run'}", f"--save-model={tmp_path / 'run' / 'm.pt'}"))
    check_outputs(resolved(*DATA, f"--run-dir={tmp_path / 'run'}", f"--save-model={tmp_path / 'm.pt'}"))


@pytest.mark.parametrize("option", ["--save-onnx", "--tensorboard"])
def test_a_package_that_is_missing_is_named(monkeypatch, option):
    name = {"--save-onnx": "onnx", "--tensorboard": "tensorboard"}[option]
    options = resolved(*DATA, option)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"{option} needs the package {name}: pip install 'cachedlrm\[{name}\]'"):
        check_outputs(options)


Usage = namedtuple("Usage", ["free"])


def test_files_on_one_disk_need_room_together(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100))
    first, second, temporary = tmp_path / "a", tmp_path / "b", tmp_path / TEMPORARY_FILE
    assert list(short_of_space({first: 60, second: 40})) == []
    assert list(short_of_space({first: 60, second: 41})) == [
        f"{first} and {second} may take up to 101 B and 100 B are free there; free space before the run ends, or "
        "choose another --run-dir"
    ]
    (warning,) = short_of_space({first: 60, temporary: 41})
    assert warning.endswith("choose another --run-dir or --store-path")


def test_disks_are_looked_at_one_by_one(monkeypatch):
    class File:
        def __init__(self, name: str, device: int) -> None:
            self.name = name
            self.parent = self
            self.st_dev = device

        def stat(self) -> "File":
            return self

        def __str__(self) -> str:
            return self.name

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage({1: 100, 2: 10}[folder.st_dev]))
    warnings = list(short_of_space({File("a", 1): 100, File("b", 2): 11}))
    assert [warning.split(" may ")[0] for warning in warnings] == ["b"]


def test_the_numbers_beside_a_model_are_those_the_reference_writes(tmp_path):
    # 250 samples are held out.
    path = Path(tmp_path / "m.pt")
    assert train(tmp_path / "run", "--steps=4", "--test-mini-batch-size=70", f"--save-model={path}") == 0
    saved = torch.load(path)
    assert {name: saved[name] for name in ("nepochs", "nbatches", "nbatches_test", "epoch", "iter", "total_loss")} == {
        "nepochs": 1, "nbatches": 20, "nbatches_test": 4, "epoch": 0, "iter": 4, "total_loss": 0.0,
    }  # fmt: skip
