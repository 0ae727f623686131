"""Text from outside, such as paths: for a terminal, for a UTF-8 file, and back from one."""

import os
from collections.abc import Sequence


def printable(text: str) -> str:
    """The text on one line and without control characters, which would move the cursor: a path may hold any."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shown(text: object) -> str:
    """Text from outside for a message of one line: characters that do not print are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def as_utf8(argument: str) -> str:
    """The text of an argument or a path. Where the locale is not UTF-8, Python holds other bytes as half surrogates.

    Raises:
        UnicodeError: its bytes are not UTF-8.
    """
    return os.fsencode(argument).decode("utf-8")


def as_argument(text: str) -> str:
    """The inverse: text as Python would have read it from the command line, so that paths in it find their files."""
    return os.fsdecode(text.encode("utf-8"))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table in plain text: the first column flush left, the last as it is, those between flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
        ]
        lines.append("  ".join([*cells, row[-1]]))
    return "\n".join(lines)
