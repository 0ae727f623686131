"""The one exception that means: the user's input, not our code, is wrong."""


class UserError(Exception):
    """A mistake the user can correct.

    The message is one line: what is wrong, where (option, file, sample, table), and what to change.
    Programs print it on stderr without a traceback and exit with status 2.
    """
