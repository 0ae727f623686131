"""Which files a command reads."""

import re
from collections.abc import Sequence
from pathlib import Path

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of the folders that are, in natural order (day_2 before day_10).

    Raises:
        UserError: a path leads to no file.
    """
    files: list[Path] = []
    for path in paths:
        try:
            found = [path]
            if path.is_dir():
                inside = [file for file in path.iterdir() if file.is_file() and not file.name.startswith(".")]
                found = sorted(inside, key=lambda file: natural_order(file.name))
        except OSError as error:
            raise UserError(f"{shown(path)} cannot be read: {(error.strerror or str(error)).lower()}") from error
        if not found:
            raise UserError(f"{shown(path)}: no files in this folder; name another one")
        for file in found:
            if not file.is_file():
                what = "not a regular file" if file.exists() else "no such file or folder"
                raise UserError(f"{shown(file)}: {what}; name another path")
        files += found
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("a file is named twice; name each once")
    return files


def natural_order(name: str) -> list[tuple[int, str]]:
    """day_2 before day_10."""
    parts = re.split("([0-9]+)", name)  # digits at odd places
    return [(int(part), part) if place % 2 else (-1, part) for place, part in enumerate(parts)]
