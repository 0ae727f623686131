"""Files that are whole or not there, folders that are made all or none, and locks that die with their owner."""

import errno
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import psutil
from filelock import FileLock, Timeout

from cachedlrm.base.errors import UserError

_OTHERWISE = "choose another place"
_ADVICE = {
    errno.ENOSPC: "free space there or ",
    errno.EDQUOT: "free space within your quota or ",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or ",
    errno.EIO: "look at the disk or ",
    errno.ENOENT: "make the folder or ",
}


def cannot_write(path: Path, error: OSError, otherwise: str = _OTHERWISE) -> UserError:
    """Turns a refusal by the operating system into the user's one line.

    Args:
        path: what was written.
        error: the refusal.
        otherwise: what a user can do about any refusal.
    """
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; {_ADVICE.get(error.errno or 0, '')}{otherwise}")


@contextmanager
def writing(path: Path, otherwise: str = _OTHERWISE) -> Iterator[None]:
    """Turns what the operating system refuses inside into `cannot_write`; the arguments are its own.

    Raises:
        UserError: the operating system refused.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, otherwise) from error


def without_links(path: Path) -> Path:
    """Where ``path`` leads.

    Raises:
        RuntimeError: to itself. Python 3.13 no longer says so.
    """
    target = path.resolve()
    if target.is_symlink():
        raise RuntimeError(f"{path} leads to itself")
    return target


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
        target = without_links(path)
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
def replacing(path: Path, otherwise: str = _OTHERWISE) -> Iterator[Path]:
    """Where to write a file that takes the place of ``path`` when the block ends without an error.

    Args:
        path: the file.
        otherwise: what a user can do if it cannot be written.

    Raises:
        UserError: the file could not be written (disk full, no permission); names it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, otherwise):
        _remove_left_over(path)
        try:
            yield partial
            with partial.open("r+b") as file:  # Windows syncs none that is open for reading alone
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):  # a place that cannot be written cannot be cleaned either
                partial.unlink(missing_ok=True)


def _remove_left_over(path: Path) -> None:
    """Removes what processes that were killed left of writing ``path``: kill by kill it would fill the disk."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        process = partial.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            with suppress(OSError):
                partial.unlink()


@contextmanager
def whole_file(path: Path, otherwise: str = _OTHERWISE) -> Iterator[BinaryIO]:
    """`replacing`, with the file open for writing."""
    with replacing(path, otherwise) as partial, partial.open("wb") as file:
        yield file


def make_folders(folder: Path, otherwise: str = _OTHERWISE) -> list[Path]:
    """Makes a folder and the missing ones above it, all or none; returns those it made, the innermost first.

    Args:
        folder: the innermost.
        otherwise: what a user can do if it cannot be made.

    Raises:
        UserError: it cannot be made.
    """
    made: list[Path] = []
    with writing(folder, otherwise):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, not a directory; {otherwise}")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                try:
                    path.mkdir()
                    made.insert(0, path)
                except FileExistsError:
                    if not path.is_dir():  # another process may have made it meanwhile
                        raise
        except BaseException:
            remove_folders(made)
            raise
    return made


def remove_folders(folders: Sequence[Path]) -> None:
    """Removes folders, the innermost first; one that others have put something into stays."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def lock(path: Path, what: str, otherwise: str) -> FileLock:
    """Takes a lock, which is the operating system's: it dies with its owner, and only the file stays.

    Args:
        path: the lock's file. It holds the owner's number, for the message to others.
        what: is locked, as the message calls it.
        otherwise: what a user can do if another process holds it.

    Raises:
        UserError: another process holds it.
        OSError: the file cannot be made.
    """
    taken = FileLock(path)
    try:
        taken.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"{what} is in use by {_owner(path)}; {otherwise}") from error
    with suppress(OSError):  # only the message to others lacks the number
        path.write_text(f"{os.getpid()}\n", encoding="ascii")
    return taken


def _owner(path: Path) -> str:
    """Who holds a lock; "another process" in the moment before the owner has written its number."""
    try:
        return f"process {int(path.read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        return "another process"
