"""The directory a run leaves: whole files or none, whole lines or none, one run at a time."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import lock, make_folders, remove_folders, whole_file, writing
from cachedlrm.options.run_files import CUT_METRICS_FILE, LOCK_FILE, OTHER_RUN_DIR, RUN_FILES, STORE_FOLDER
from cachedlrm.report.metrics import MetricsRow, parse_metrics_row


class RunDirectory:
    """A directory this process alone writes to, until `close`. Use `create`.

    Args:
        directory: where.
        held: its lock.
        made: folders that were made for the run, the innermost first.
        keeps: whether an error leaves everything in place.
    """

    def __init__(self, directory: Path, held: FileLock, made: list[Path], keeps: bool = False) -> None:
        self._directory = directory
        self._lock = held
        self._made = made
        self._keeps = keeps

    @classmethod
    def create(cls, directory: Path | None) -> "RunDirectory":
        """Makes and locks a directory for a new run.

        Args:
            directory: where; None: ``runs/DATE-TIME``, with a number appended if that is taken.

        Raises:
            UserError: another process uses it, it holds a run, or it cannot be written.
        """
        made = _make_fresh() if directory is None else make_folders(directory, OTHER_RUN_DIR)
        directory = directory or made[0]
        with writing(directory, OTHER_RUN_DIR):
            is_lock_new = not (directory / LOCK_FILE).exists()
            try:
                held = _lock(directory)
            except BaseException:
                remove_folders(made)
                raise
            files = [name for name in RUN_FILES if (directory / name).exists()]
            if files:
                if is_lock_new:
                    with suppress(PermissionError):  # Windows, where its release removes it
                        (directory / LOCK_FILE).unlink()
                held.release()
                raise UserError(f"{directory} already holds a run ({files[0]}); {OTHER_RUN_DIR}")
        return cls(directory, held, made)

    @classmethod
    def reopen(cls, directory: Path) -> "RunDirectory":
        """Locks the directory of a run that goes on; whatever happens, what is there stays.

        Raises:
            UserError: another process uses it, or it cannot be written.
        """
        with writing(directory, OTHER_RUN_DIR):
            return cls(directory, _lock(directory), [], keeps=True)

    def path(self, name: str) -> Path:
        """The path of a file in the directory."""
        return self._directory / name

    def write_text(self, name: str, text: str) -> None:
        """Writes a file that appears only when complete."""
        with whole_file(self.path(name), OTHER_RUN_DIR) as file:
            file.write(text.encode())

    def write_array(self, name: str, array: NDArray[np.generic]) -> None:
        """The same as a ``.npy`` file."""
        with whole_file(self.path(name), OTHER_RUN_DIR) as file:
            np.save(file, array, allow_pickle=False)

    def append_metrics(self, row: Mapping[str, object], replaces_last: bool = False) -> None:
        """Appends one line to ``metrics.jsonl``; a line that cannot be written whole is taken back.

        Args:
            row: the line.
            replaces_last: whether it takes the place of the last one.
        """
        path = self.path("metrics.jsonl")
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with writing(path, OTHER_RUN_DIR), path.open("ab", buffering=0) as file:
            end = file.tell()
            if replaces_last:
                end = path.read_bytes().rfind(b"\n", 0, end - 1) + 1
                file.truncate(end)
            try:
                rest = memoryview(line)
                while rest:  # a disk that fills up takes a part first; the next write says why
                    rest = rest[file.write(rest) :]
            except BaseException:  # an interrupt leaves whole lines too
                file.truncate(end)
                raise

    def read_metrics(self, last_step: int) -> tuple[list[MetricsRow], int]:
        """The lines of ``metrics.jsonl`` up to step ``last_step``, and how many later ones there were.

        Those are moved to the end of `CUT_METRICS_FILE`: their steps are trained again.

        Raises:
            UserError: it cannot be read or cut, or is a symbolic link.
        """
        path = self.path("metrics.jsonl")
        rows: list[MetricsRow] = []
        later: list[bytes] = []
        with writing(path, OTHER_RUN_DIR):
            if path.is_symlink():  # a file elsewhere would be cut short
                raise UserError(f"{path} is a symbolic link; put the file itself there, or remove it")
            if not path.exists():
                return rows, 0
            end = 0
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    row = parse_metrics_row(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):  # a torn one
                    break
                if later or (row["step"] or 0) > last_step:
                    later.append(line)
                else:
                    rows.append(row)
                    end += len(line)
            if later:
                with self.path(CUT_METRICS_FILE).open("ab") as file:
                    file.writelines(later)
            os.truncate(path, end)
        return rows, len(later)

    @property
    def keeps(self) -> bool:
        """Whether there is a checkpoint, or was one when the run went on."""
        return self._keeps

    def keep(self) -> None:
        """There is a checkpoint: from now on an error leaves everything in place."""
        self._keeps = True

    @property
    def has_results(self) -> bool:
        """Whether anything measured is there: a line of metrics or a report."""
        metrics = self.path("metrics.jsonl")
        return self.path("report.md").exists() or (metrics.exists() and metrics.stat().st_size > 0)

    def abandon(self) -> None:
        """Takes back what was made, as if the run had not begun."""
        self._discard()
        self.close()
        remove_folders(self._made)

    def close(self) -> None:
        """Lets other processes use the directory."""
        self._lock.release()

    def _discard(self) -> None:
        """Takes back what a run wrote that measured nothing, so that the corrected command can use the directory."""
        for name in (*RUN_FILES, LOCK_FILE):
            with suppress(OSError):  # what went wrong before matters more
                self.path(name).unlink(missing_ok=True)
        shutil.rmtree(self.path(STORE_FOLDER), ignore_errors=True)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not self.has_results and not self._keeps:
            self.abandon()
        else:
            self.close()


def _make_fresh() -> list[Path]:
    """Makes ``runs/DATE-TIME``; two runs of one second get two directories, as only one of them can make the first."""
    base = Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    directory, number = base, 1
    above = make_folders(base.parent, OTHER_RUN_DIR)
    with writing(base, OTHER_RUN_DIR):
        while True:
            try:
                directory.mkdir()
                return [directory, *above]
            except FileExistsError:
                number += 1
                directory = base.with_name(f"{base.name}-{number}")


def _lock(directory: Path) -> FileLock:
    return lock(directory / LOCK_FILE, str(directory), OTHER_RUN_DIR)
