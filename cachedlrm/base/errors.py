"""The one exception that means: the user's input, not our code, is wrong."""

import importlib.util


class UserError(Exception):
    """A mistake the user can correct.

    The message is one line: what is wrong, where (option, file, sample, table), and what to change.
    Programs print it on stderr without a traceback and exit with status 2.
    """


def check_package(words: str, package: str, extra: str) -> None:
    """Refuses what needs an optional package that is not installed.

    Args:
        words: what needs it, for the message.
        package: that is needed.
        extra: of cachedlrm, that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{words} needs the package {package}: pip install 'cachedlrm[{extra}]'")
