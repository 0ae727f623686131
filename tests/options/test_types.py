"""Values on a command line: sizes in bytes, lists of numbers, and what each type refuses."""

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.base.units import LARGEST
from cachedlrm.options.command_line import parse_command_line


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("512 MiB", 512 << 20),
        ("1GB", 10**9),
        ("3kb", 3000),
        ("1000", 1000),
        ("9007199254740993", 2**53 + 1),
        (str(LARGEST), LARGEST),
    ],
)
def test_sizes(text, size):
    assert parse_command_line(["--host-budget", text]).store.host_budget == size


@pytest.mark.parametrize(
    ("argument", "group", "value"),
    [
        ("--arch-mlp-bot=13-512-16", "model", (13, 512, 16)),
        ("--arch-mlp-bot=0-16", "model", (0, 16)),
        ("--arch-mlp-top=16-1", "model", (16, 1)),
        ("--gpu-budget=auto", "cache", "auto"),
        ("--test-freq=-1", "batches", -1),
        ("--test-freq=epoch", "batches", "epoch"),
        ("--learning-rate=1e-3", "optimisation", 0.001),
        ("--round-targets=True", "model", True),
        ("--profile-trace=1000", "run", 1000),
    ],
)
def test_values_are_typed(argument, group, value):
    options = getattr(parse_command_line([argument]), group)
    assert getattr(options, argument.split("=")[0][2:].replace("-", "_")) == value


def test_weights_belong_to_one_loss():
    arguments = ["--loss-function=wbce", "--loss-weights=0.5-1.5"]
    assert parse_command_line(arguments).model.loss_weights == (0.5, 1.5)
    with pytest.raises(UserError, match="two or more numbers, joined by dashes"):
        parse_command_line(["--loss-weights=0.5"])
