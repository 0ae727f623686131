"""The folder of an unfinished preparation, ``DIR/.prepare``: one process at a time, one command at a time.

Everything in it is either on record in ``state.json`` up to a number of samples, or has its name only when complete. So
a process may be killed at any time, and the next one goes on.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write, lock, make_folders, remove_folders, whole_file
from cachedlrm.base.text import shown
from cachedlrm.data.raw.samples import Position
from cachedlrm.data.vocabulary import PREPARED_FILE

LOCK_FILE = "prepare.lock"
OTHER_OUT = "choose another --out"
_OTHERWISE = f"{OTHER_OUT}; then repeat the command"
_FOLDER, _STATE = ".prepare", "state.json"


@dataclass(frozen=True)
class ReadSoFar:
    """Progress through the raw files, which is what the spool holds.

    Attributes:
        file: number of the file that is being read.
        offset: where in it (`cachedlrm.data.raw.samples.Position`).
        lines: lines or rows of it before that.
        samples: good ones of each file up to this one.
        skipped: bad ones of each file up to this one.
        done: whether all files are read.
        written: whether all outputs are complete.
    """

    file: int = 0
    offset: int = 0
    lines: int = 0
    samples: list[int] = field(default_factory=lambda: [0])
    skipped: list[int] = field(default_factory=lambda: [0])
    done: bool = False
    written: bool = False

    @property
    def num_samples(self) -> int:
        """Good ones of all files so far."""
        return sum(self.samples)

    def after(self, end: Position, good: int, bad: int) -> "ReadSoFar":
        """With a block that ends at a place."""
        samples, skipped = [*self.samples], [*self.skipped]
        samples[-1] += good
        skipped[-1] += bad
        return replace(self, offset=end.offset, lines=end.lines, samples=samples, skipped=skipped)

    def next_file(self) -> "ReadSoFar":
        """At the beginning of the next file."""
        samples, skipped = [*self.samples, 0], [*self.skipped, 0]
        return replace(self, file=self.file + 1, offset=0, lines=0, samples=samples, skipped=skipped)


class Work:
    """A locked output folder with its working folder. Use `open_work`.

    Attributes:
        out: the output folder.
        folder: the working folder; missing if the output is complete.
        command: everything that the output depends on.
        read: as on record.
        resumed: whether an earlier process began.
        restarted: whether an earlier process began with files that have changed since.
    """

    def __init__(self, out: Path, command: Mapping[str, Any]) -> None:
        self.out, self.folder = out, out / _FOLDER
        self.command = command
        self.read = ReadSoFar()
        self.resumed = self.restarted = False
        self._began = False

    @property
    def holds_nothing(self) -> bool:
        """Whether nothing is on record, so that nothing is lost when the working folder goes."""
        return self.read == ReadSoFar()

    def leaves_nothing(self) -> bool:
        """Removes the working folder if this process began it and nothing is on record; whether it did so."""
        leaves = self._began and self.holds_nothing
        if leaves:
            shutil.rmtree(self.folder, ignore_errors=True)
        return leaves

    def record(self, read: ReadSoFar) -> None:
        """Records what the spool holds; the record is never half-written."""
        self.read = read
        state = {"command": self.command, "read": asdict(read)}
        write_json(self.folder / _STATE, state)

    def publish(self, names: list[str]) -> None:
        """Moves finished outputs to their names, the last of ``names`` last, and removes the working folder.

        Readers look first for the file that is moved last: until then they find nothing, or a set that lacks a file.
        """
        for name in names:
            if (self.folder / "out" / name).exists():  # else it was moved before an interruption
                os.replace(self.folder / "out" / name, self.out / name)
        shutil.rmtree(self.folder)

    def _open(self) -> bool:
        """Goes on where a process with the same command stopped, or begins; False if nothing is left to do."""
        finished, state_file = self.out / PREPARED_FILE, self.folder / _STATE
        if state_file.exists():
            state = _read_json(state_file)
            self.read = ReadSoFar(**state["read"])
            changes = _differences(state["command"], self.command)
            self.resumed = not changes
            if self.resumed:
                return True
            if self.holds_nothing:
                shutil.rmtree(self.folder)
                return self._open()
            if changes != ["inputs"] or self.read.written:
                what = " and ".join(_words(name, state["command"]) for name in changes)
                raise UserError(
                    f"{shown(self.out)} holds an interrupted preparation of another command ({what}); repeat "
                    f"that one, remove {shown(self.folder)}, or {OTHER_OUT}"
                )
            state_file.unlink()  # first: without it nothing else in the folder counts
            shutil.rmtree(self.folder)
            self.restarted = True
        if finished.exists():
            if _read_json(finished).get("command") == self.command:
                if self.folder.exists():
                    shutil.rmtree(self.folder)  # killed while that was done
                return False
            raise UserError(f"{shown(self.out)} already holds data prepared by another command; {OTHER_OUT}")
        others = [path.name for path in (*self.out.glob("*.npy"), *self.out.glob("test"))]
        if others:
            raise UserError(
                f"{shown(self.out)} already holds {shown(others[0])}, which this command did not write; {OTHER_OUT}"
            )
        self.folder.mkdir(exist_ok=True)
        self._began = True
        self.record(ReadSoFar())
        return True


@contextmanager
def open_work(out: Path, command: Mapping[str, Any]) -> Iterator[Work | None]:
    """Locks an output folder, which is made if need be; None if this command has finished there before.

    Args:
        out: the folder.
        command: everything that the output depends on, as JSON has it.

    Raises:
        UserError: another process prepares into it, it holds something else, or it cannot be written.
    """
    try:
        made = make_folders(out, OTHER_OUT)
        is_lock_new = not (out / LOCK_FILE).exists()
        held = lock(out / LOCK_FILE, shown(out), f"wait for it, or {OTHER_OUT}")
        work = Work(out, command)
        try:
            yield work if work._open() else None
        except UserError:
            if work.leaves_nothing() and is_lock_new:
                with suppress(PermissionError):  # Windows, where its release removes it
                    (out / LOCK_FILE).unlink()
            raise
        finally:
            held.release()
            remove_folders(made)  # those that hold nothing
    except OSError as error:
        raise cannot_write(Path(shown(error.filename or out)), error, _OTHERWISE) from error


def write_json(path: Path, value: object) -> None:
    """Writes a file that appears only when complete and on the disk."""
    with whole_file(path, _OTHERWISE) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{shown(path)} is garbled; remove its folder, or {OTHER_OUT}") from error
    return value if isinstance(value, dict) else {}


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The differences between two commands; ``inputs`` alone: the same files have changed."""
    changes = [name for name, value in other.items() if one.get(name) != value]
    if "inputs" in changes and _paths(one) != _paths(other):
        changes[changes.index("inputs")] = "files"
    return changes


def _paths(command: Mapping[str, Any]) -> list[str]:
    return [file["path"] for file in command.get("inputs", [])]


def _words(name: str, command: Mapping[str, Any]) -> str:
    if name in ("files", "inputs"):
        return "its files were different or have changed"
    if name == "rules":
        return "an earlier release began it, with other rules for values"
    return f"its {name} was {shown(command.get(name))}"
