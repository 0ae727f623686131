"""The directory a run leaves behind. Whole files or none; whole lines or none; one run at a time."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cachedlrm.errors import UserError

_RESULTS = ("config.toml", "metrics.jsonl", "report.json")
_LOCK = "run.lock"
_ADVICE = {
    errno.ENOSPC: "free space there or choose another --run-dir",
    errno.EDQUOT: "free space within your quota or choose another --run-dir",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or choose another --run-dir",
    errno.EIO: "look at the disk or choose another --run-dir",
}


class RunDirectory:
    """A directory this process alone writes to, until `close`. Use `create`."""

    def __init__(self, directory: Path, lock: FileLock) -> None:
        self._directory = directory
        self._lock = lock

    @classmethod
    def create(cls, directory: Path | None) -> "RunDirectory":
        """Makes and locks a directory for a new run.

        Args:
            directory: where; None: ``runs/DATE-TIME``, with a number behind it if that is taken.

        Raises:
            UserError: another process uses it, it holds a run, or it cannot be written.
        """
        if directory is None:
            directory = _fresh_directory()
        with _explained(directory):
            if directory.exists() and not directory.is_dir():
                raise UserError(f"{directory} is a file, not a directory; choose another --run-dir")
            directory.mkdir(parents=True, exist_ok=True)
            # The lock is the operating system's and dies with its owner; the file may stay behind.
            lock = FileLock(directory / _LOCK, mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                owner = _owner(directory / _LOCK)
                raise UserError(f"{directory} is in use by {owner}; choose another --run-dir") from error
        try:
            for name in _RESULTS:
                if (directory / name).exists():
                    raise UserError(f"{directory} already holds a run ({name}); choose another --run-dir")
            with suppress(OSError):  # only for the message to others
                (directory / _LOCK).write_text(f"{os.getpid()}\n", encoding="ascii")
        except BaseException:
            lock.release()
            raise
        return cls(directory, lock)

    def path(self, name: str) -> Path:
        """The path of a file in the directory."""
        return self._directory / name

    def write_text(self, name: str, text: str) -> None:
        """Writes a file that appears only when complete."""
        with self._replacing(name) as partial:
            partial.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Mapping[str, object]) -> None:
        """The same as indented JSON; NaN and infinities are an error."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_array(self, name: str, array: NDArray[np.generic]) -> None:
        """The same as a ``.npy`` file."""
        with self._replacing(name) as partial, partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    def append_metrics(self, row: Mapping[str, object]) -> None:
        """Appends one line to ``metrics.jsonl``; a line that cannot be written whole is taken back."""
        path = self.path("metrics.jsonl")
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with _explained(path), path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                rest = memoryview(line)
                while rest:  # a disk that fills up takes a part first; the next write says why
                    rest = rest[file.write(rest) :]
            except BaseException:  # an interrupt leaves whole lines too
                file.truncate(end)
                raise

    @contextmanager
    def _replacing(self, name: str) -> Iterator[Path]:
        path = self.path(name)
        partial = path.with_name(f".{name}.partial")
        with _explained(path):
            try:
                yield partial
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets other processes use the directory."""
        self._lock.release()

    def _discard(self) -> None:
        """Takes back the directory of a run that measured nothing, so that the corrected command can use it."""
        for name in ("config.toml", _LOCK):
            with suppress(OSError):  # what went wrong before matters more
                self.path(name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty: it was there before
            self._directory.rmdir()

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and not self.path("metrics.jsonl").exists():
                self._discard()
        finally:
            self.close()


def _fresh_directory() -> Path:
    """Makes ``runs/DATE-TIME``; two runs of one second get two directories, as only one of them can make the first."""
    base = Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory, number = base, 1
    with _explained(base):
        base.parent.mkdir(exist_ok=True)
        while True:
            try:
                directory.mkdir()
                return directory
            except FileExistsError:
                number += 1
                directory = base.with_name(f"{base.name}-{number}")


def _owner(lock: Path) -> str:
    """Who holds a lock, as its file tells; in the moment before the owner has written its number, just someone."""
    try:
        return f"process {int(lock.read_text(encoding='ascii'))}"
    except (OSError, ValueError):
        return "another process"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into the user's one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0, "choose another --run-dir")
        raise UserError(f"cannot write {path}: {reason}; {advice}") from error
