"""One way of parsing for every command: mistakes are one line that names the argument and what it takes."""

import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.parsing import mistake, nearest, parse
from cachedlrm.options.types import Flag, GivenPath, Positive


def copy(source: GivenPath, out: GivenPath, /, *, times: Positive = 1, fast: Flag = False):
    """A command of two paths."""
    return str(source), str(out), times, fast


def join(*path: GivenPath, times: Positive = 1):
    """A command of any number of paths."""
    return "join", [str(one) for one in path], times


def parsed(*arguments: str):
    return parse(arguments, "python -m copy", "Copies.", copy, refused={"slow": "everything is fast"})


def test_what_the_command_returns():
    assert parsed("a", "b", "--times=3", "--fast") == ("a", "b", 3, True)
    assert parsed("--times", "3", "a", "--", "-b") == ("a", "-b", 3, False)


def test_several_commands_are_chosen_by_name():
    def both(*arguments: str):
        return parse(arguments, "python -m files", "Files.", copy, join)

    assert both("join", "a", "b", "--times=2") == ("join", ["a", "b"], 2)
    assert both("copy", "a", "b") == ("a", "b", 1, False)
    with pytest.raises(UserError, match='Unknown command "move"'):
        both("move", "a", "b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "SOURCE requires an argument"),
        (["a"], "OUT requires an argument"),
        (["a", ""], "OUT needs a value, not an empty one"),
        (["a", "b", "c"], "unexpected argument 'c'; options start with two dashes"),
        (["a", "b", "--times"], "--times requires an argument"),
        (["a", "b", "--times="], "--times needs a value, not an empty one"),
        (["a", "b", "--times", ""], "--times needs a value, not an empty one"),
        (["a", "b", "--times=0"], "--times. Must be 1 or more"),
        (["a", "b", "--times=1", "--times=2"], "--times specified multiple times"),
        (["a", "b", "--tims=2"], "unknown option --tims; did you mean --times?"),
        (["a", "b", "--zzz"], "unknown option --zzz; --help lists the options"),
        (["a", "b", "--no-fast"], "unknown option --no-fast"),
        (["a", "b", "--slow"], "--slow of facebookresearch/dlrm is not carried over: everything is fast"),
    ],
)
def test_a_mistake_is_one_line(arguments, words):
    with pytest.raises(UserError) as refused:
        parsed(*arguments)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("argument", ["--help", "-h", "--version"])
def test_help_and_version_end_with_success(argument, capsys):
    with pytest.raises(SystemExit, match="0"):
        parsed(argument)
    text = capsys.readouterr().out
    assert text.strip()
    assert ("Usage: python -m copy [OPTIONS] SOURCE OUT" in text) == (argument != "--version")


def test_a_suggestion_is_near_or_absent():
    with pytest.raises(UserError, match="did you mean --learning-rate"):
        parse_command_line(["--learning-rte=1"])
    with pytest.raises(UserError) as refused:
        parse_command_line(["--zzz=random"])
    assert "did you mean" not in str(refused.value)


def test_the_nearest_word():
    assert nearest("--Times=3", ["--times", "--fast"], "--") == "did you mean --times?"
    assert nearest("policys", ["policy"]) == "did you mean policy?"
    assert nearest("x", ["policy"]) == ""


def test_a_quoted_line_break_stays_in_the_line():
    assert str(mistake("cannot read a\nb;\n rename it")) == "cannot read a b; rename it"
