"""A small run for tests of the commands, and everything it leaves."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import export
from cachedlrm.train import main

MODEL = ["--arch-embedding-size=400-30-900-5", "--arch-mlp-bot=3-16-8", "--arch-mlp-top=16-1"]
SMALL = [
    "--data=zipf:samples=2000",
    *MODEL,
    "--mini-batch-size=100",
    "--threads=1",
    "--ui=off",
]
FEW_EVALUATIONS = "--test-freq=10"  # of 20 steps; by default they would take as long as the rest


def train(directory: Path, *arguments: str) -> int:
    """The exit status of a small run; ``arguments`` go before those of `SMALL`."""
    given = {argument.split("=")[0] for argument in arguments}
    usual = SMALL if "--data" in given else [*SMALL, FEW_EVALUATIONS]  # other data may hold out no samples
    small = [argument for argument in usual if argument.split("=")[0] not in given]
    return main([*small, f"--run-dir={directory}", *arguments])


def report(directory: Path) -> dict:
    return json.loads((directory / "report.json").read_text())


def parameters(directory: Path, with_optimizer_state: bool = False) -> dict[str, np.ndarray]:
    """The final ones, by name."""
    out = directory / "out.safetensors"
    export(directory, out, with_optimizer_state=with_optimizer_state)
    return load_file(out)


def one_line(capsys, status: int) -> str:
    """The message of a command that refused its input."""
    captured = capsys.readouterr()
    error = captured.err
    assert status == 2, error
    assert error.startswith("error: ")
    assert error.endswith("\n")
    assert error[:-1].isprintable(), error
    assert captured.out == ""
    return error
