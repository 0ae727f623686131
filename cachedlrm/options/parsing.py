"""How every command reads its command line: one function, by `cyclopts`, whose errors become one line."""

import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TextIO, TypeVar, cast

import cyclopts
import rich.console

from cachedlrm import __version__
from cachedlrm.base.errors import UserError
from cachedlrm.base.output import SafeStream

_Request = TypeVar("_Request")


def parse(
    arguments: Sequence[str],
    program: str,
    help_text: str,
    *commands: Callable[..., _Request],
    refused: Mapping[str, str] = MappingProxyType({}),
) -> _Request:
    """What the command line asks for.

    Args:
        arguments: of the command line.
        program: the command as a user types it.
        help_text: above the options.
        commands: a function whose parameters are the command line, and which returns what they ask for; several:
            the first argument names one of them.
        refused: options that are known but not taken, without dashes before them, and why.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name = argument.rstrip("=") if argument else before
        if name.startswith("--") and "=" not in name and (not argument or argument.endswith("=")):
            raise mistake(f"{name} needs a value, not an empty one")  # usually a shell variable that is not set
    app = cyclopts.App(
        name=program,
        help=help_text,
        version=__version__,
        result_action="return_value",
        console=rich.console.Console(file=cast("TextIO", SafeStream(sys.stdout))),  # a pipe may be closed
        suppress_keyboard_interrupt=False,
    )
    for command in commands:
        if len(commands) == 1:
            app.default(command)
        else:
            app.command(command, name=command.__name__)
    try:
        request = app(list(arguments), exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise mistake(_reason(error, refused)) from error
    if request is None:
        raise SystemExit(0)  # --help or --version was printed
    return cast("_Request", request)


def _reason(error: cyclopts.CycloptsError, refused: Mapping[str, str]) -> str:
    """The mistake, and its remedy."""
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"unexpected argument {(error.unused_tokens or ['?'])[0]!r}; options start with two dashes"
    if isinstance(error, cyclopts.UnknownOptionError):
        name = error.token.keyword or error.token.value
        if why := refused.get(name.split("=")[0].lstrip("-").replace("_", "-")):
            return f"{name} of facebookresearch/dlrm is not carried over: {why}"
        known = [known for argument in error.argument_collection for known in argument.names]
        return f"unknown option {name}; {nearest(name, known, '--') or '--help lists the options'}"
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument and error.argument.name[0] != "-":
        return f"{error.argument.name} is missing; --help says what the command needs"
    is_unnamed = isinstance(error, cyclopts.CoercionError) and error.token and error.token.keyword is None
    return f"{error.argument.name} {error}" if is_unnamed and error.argument else str(error)


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``did you mean --steps?``, or nothing."""
    word = name.split("=", maxsplit=1)[0].lstrip("-").replace("_", "-").lower()
    matches = difflib.get_close_matches(word, [one.lstrip("-") for one in known], 1, cutoff=0.7)
    return f"did you mean {prefix}{matches[0]}?" if matches else ""


def mistake(message: str) -> UserError:
    """One line, whatever was quoted in it."""
    return UserError(" ".join(message.split()))
