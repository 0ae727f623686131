"""What the command lines that `cyclopts` reads share."""

import sys
from collections.abc import Sequence
from typing import TextIO, TypeVar, cast

import cyclopts
import rich.console

from cachedlrm import __version__
from cachedlrm.base.errors import UserError
from cachedlrm.base.output import Output

_Request = TypeVar("_Request")


def make_app(program: str, help_text: str) -> cyclopts.App:
    """An app whose default or commands return what the command line asks for.

    Args:
        program: as a user calls it.
        help_text: above the options.
    """
    return cyclopts.App(
        name=program,
        help=help_text,
        version=__version__,
        result_action="return_value",
        console=rich.console.Console(file=cast("TextIO", Output(sys.stdout))),  # a pipe may be closed
        suppress_keyboard_interrupt=False,
    )


def read_arguments(app: cyclopts.App, arguments: Sequence[str], kind: type[_Request]) -> _Request:
    """What the app returns, of ``kind``.

    Raises:
        CycloptsError: an option or value is wrong.
        SystemExit: after ``--help`` or ``--version``.
    """
    request = app(list(arguments), exit_on_error=False, print_error=False)
    if not isinstance(request, kind):
        raise SystemExit(0)  # --help or --version was printed
    return request


def mistake(message: str) -> UserError:
    """One line, whatever was quoted in it."""
    return UserError(" ".join(message.split()))
