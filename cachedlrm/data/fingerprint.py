"""What the data of a run are, in a few numbers: whether ``--resume`` finds the samples that the run began with.

Of each file the name, the bytes and a checksum of its content: of all of it up to 1 MiB, else of pieces from its
beginning to its end. So appended samples, exchanged columns and files written anew are noticed, in a millisecond a
file; a few values changed in a large file may not be.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown

_PIECES, _PIECE_BYTES = 32, 1 << 15
_MOST_NAMED = 3


class Contents(NamedTuple):
    """Samples that a run reads.

    Attributes:
        words: option and value that name them.
        num_samples: how many.
        files: that hold them, in order; none: they are generated.
    """

    words: str
    num_samples: int
    files: tuple[Path, ...]


def take_fingerprint(contents: Sequence[Contents]) -> dict[str, Any]:
    """As JSON has it: by words, the number of samples, and bytes and checksum of each file by name.

    Raises:
        UserError: a file cannot be read.
    """
    return {
        words: {"samples": num_samples, "files": dict(zip(_names(files), map(file_fingerprint, files), strict=True))}
        for words, num_samples, files in contents
    }


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How samples of the same words differ, for the user; None: they do not.

    Args:
        before: of an earlier `take_fingerprint`, of which other words may be named now.
        now: another one.

    Raises:
        ValueError: ``before`` is none.
    """
    try:
        for words in [words for words in now if words in before]:
            then, here = before[words], now[words]
            found = [*_samples(then["samples"], here["samples"]), *_files(then["files"], here["files"])]
            if found:
                more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
                return f"{words} has changed: {', '.join(found[:_MOST_NAMED])}{more}"
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the fingerprint of the data does not read: {error}") from error
    return None


def _samples(then: int, now: int) -> list[str]:
    return [] if then == now else [f"it had {then:,} samples and has {now:,}"]


def _files(then: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> list[str]:
    """What differs, file by file."""
    found = [f"{shown(name)} is gone" for name in then if name not in now]
    found += [f"{shown(name)} is new" for name in now if name not in then]
    for name in then.keys() & now.keys():
        (size, content), (now_size, now_content) = then[name], now[name]
        if size != now_size:
            found.append(f"{shown(name)} had {size:,} bytes and has {now_size:,}")
        elif content != now_content:
            found.append(f"{shown(name)} holds other values")
    if not found and list(then) != list(now):
        found.append("the files come in another order")
    return sorted(found)


def _names(files: Sequence[Path]) -> list[str]:
    """Paths below the folder that all files are in."""
    if not files:
        return []
    folder = os.path.commonpath([file.absolute().parent for file in files])
    return [os.path.relpath(file.absolute(), folder) for file in files]


def file_fingerprint(path: Path) -> list[int]:
    """Bytes of a file, and a CRC-32 of its content: of all of it up to 1 MiB, else of 32 pieces of 32 KiB.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size, checksum = os.fstat(file.fileno()).st_size, 0
            last = max(0, size - _PIECE_BYTES)
            whole = size <= _PIECES * _PIECE_BYTES
            for piece in range(_PIECES):
                file.seek(piece * _PIECE_BYTES if whole else last * piece // (_PIECES - 1))
                checksum = zlib.crc32(file.read(_PIECE_BYTES), checksum)
    except OSError as error:
        raise UserError(
            f"{shown(path)} cannot be read: {(error.strerror or str(error)).lower()}; change that"
        ) from error
    return [size, checksum]
