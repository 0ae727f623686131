"""One function parses for all commands: what it takes, and what it says of the rest."""

from typing import Annotated

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options.parsing import mistake, nearest, parse
from cachedlrm.options.types import Count


def copy(source: str, /, *, steps: Count = 3) -> tuple[str, int]:
    return source, steps


def parsed(*arguments: str) -> tuple[str, int]:
    return parse(arguments, "program", "Copies.", copy, refused={"save-onnx": "it is a command"})


def test_arguments_and_options():
    assert parsed("x") == ("x", 3)
    assert parsed("x", "--steps=7") == parsed("--steps", "7", "x") == ("x", 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--steps="], "--steps needs a value, not an empty one"),
        (["x", "--steps", ""], "--steps needs a value, not an empty one"),
        (["x", "--stepps=1"], "unknown option --stepps; did you mean --steps?"),
        (["x", "--zzz"], "unknown option --zzz; --help lists the options"),
        ([], "SOURCE is missing; --help says what the command needs"),
        (["x", "y"], "unexpected argument 'y'; options start with two dashes"),
        (["x", "--save-onnx"], "--save-onnx of facebookresearch/dlrm is not carried over: it is a command"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError) as refused:
        parsed(*arguments)
    assert str(refused.value) == message


def test_a_value_outside_its_range_names_the_option():
    with pytest.raises(UserError, match=r"--steps.*0 or more"):
        parsed("x", "--steps=-2")


def test_several_commands():
    def count(number: Annotated[int, "how many"]) -> int:
        return number

    assert parse(["count", "5"], "program", "Does two things.", copy, count) == 5
    assert parse(["copy", "x"], "program", "Does two things.", copy, count) == ("x", 3)


def test_help_ends_the_program(capsys):
    with pytest.raises(SystemExit) as ended:
        parsed("--help")
    assert ended.value.code == 0
    assert "--steps" in capsys.readouterr().out


def test_the_nearest_name_and_one_line():
    assert nearest("--polcy=lru", ["--policy", "--steps"], "--") == "did you mean --policy?"
    assert nearest("--xyz", ["--policy"]) == ""
    assert str(mistake("two\n  lines")) == "two lines"
