"""Files that appear under their names only when complete."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cachedlrm.base.errors import UserError

_ADVICE = {
    errno.ENOSPC: "free space there or ",
    errno.EDQUOT: "free space within your quota or ",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or ",
    errno.EIO: "look at the disk or ",
    errno.ENOENT: "make the folder or ",
}


def cannot_write(path: Path, error: OSError, otherwise: str = "choose another place") -> UserError:
    """What the operating system refuses, as the user's one line.

    Args:
        path: what was written.
        error: the refusal.
        otherwise: what helps against any refusal.
    """
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; {_ADVICE.get(error.errno or 0, '')}{otherwise}")


def writable_file(path: Path, name: str, runs: Sequence[Path], of_runs: Sequence[str]) -> Path:
    """Where ``path`` leads through symbolic links, if a file may be written there.

    Writing replaces what is there: a device, or the very run that is read, would be lost.

    Args:
        path: what a user asks for.
        name: what the command line calls it.
        runs: directories that are read.
        of_runs: names of files there that must stay.

    Raises:
        UserError: no file may be written there; says why.
    """
    try:
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else stat.S_IFREG
        is_in_run = any(target.parent == run.resolve() for run in runs)
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # a loop of symbolic links
        raise UserError(f"{name} {path} is a symbolic link that leads to itself; name another file") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{name} {path} is a directory; name a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{name} {path} is not a regular file; name another one")
    if is_in_run and target.name in of_runs:
        raise UserError(f"{name} {path} is {target.name} of the run itself; name another file")
    if not target.parent.is_dir():
        raise UserError(f"{name} {path}: {target.parent} is not a folder; make it or name another file")
    return target


@contextmanager
def whole_file(path: Path, otherwise: str = "choose another place") -> Iterator[BinaryIO]:
    """A file open for writing; it takes the place of ``path`` when the block ends without an error.

    Args:
        path: the file.
        otherwise: what a user can do if it cannot be written.

    Raises:
        UserError: the file could not be written (disk full, no permission); names it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error, otherwise) from error
    finally:
        with suppress(OSError):  # a place that cannot be written cannot be cleaned either
            partial.unlink(missing_ok=True)
