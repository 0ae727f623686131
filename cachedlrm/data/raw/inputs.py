"""Which files a command reads."""

import re
from collections.abc import Sequence
from pathlib import Path

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown

_PARTITION = re.compile(r"[^=]+=.*", re.DOTALL)
"""Name of a folder that Spark, Hive and others write for one value of a column: ``day=1``."""


def find_inputs(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those of the folders that are, in natural order (day_2 before day_10).

    Files of partition folders (``day=1/``) are among those of the folder. Names that begin with a dot or an underscore
    (``_SUCCESS``, ``_temporary``) are a writer's notes and passed over.

    Raises:
        UserError: a path leads to no file.
    """
    files: list[Path] = []
    for path in paths:
        try:
            found = _files(path) if path.is_dir() else [path]
        except OSError as error:
            raise UserError(f"{shown(path)} cannot be read: {(error.strerror or str(error)).lower()}") from error
        if not found:
            folders = any(entry.is_dir() for entry in path.iterdir())
            instead = "name the folders in it" if folders else "name another one"
            raise UserError(f"{shown(path)}: no files in this folder; {instead}")
        for file in found:
            if not file.is_file():
                what = "not a regular file" if file.exists() else "no such file or folder"
                raise UserError(f"{shown(file)}: {what}; name another path")
        files += found
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("a file is named twice; name each once")
    return files


def _files(folder: Path) -> list[Path]:
    """Those of a folder and of the partition folders in it."""
    found: list[Path] = []
    for entry in sorted(folder.iterdir(), key=lambda entry: natural_order(entry.name)):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_file():
            found.append(entry)
        elif entry.is_dir() and _PARTITION.fullmatch(entry.name):
            found += _files(entry)
    return found


def natural_order(name: str) -> list[tuple[int, str]]:
    """day_2 before day_10."""
    parts = re.split("([0-9]+)", name)  # digits at odd places
    return [(int(part), part) if place % 2 else (-1, part) for place, part in enumerate(parts)]
