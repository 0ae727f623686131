"""Which value each row of the tables stands for: a vocabulary has a fingerprint, and rows of two are never mixed.

`cachedlrm.prepare` makes vocabularies and records their fingerprints in ``prepared.json``. An extended one
(``--extend``) has the rows of its base first, table by table, so that what was trained on the base goes on with it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown

PREPARED_FILE = "prepared.json"
"""Facts that `cachedlrm.prepare` records about the samples beside it."""
VOCABULARY_FILE = "vocabulary.npy"
"""The value of each row as a number, table after table [rows of all tables] uint64; 0 for row 0 of each."""
TEST_FOLDER = "test"
"""Folder of the held-out samples, whose vocabulary is that of the folder above."""

IDS_AS_THEY_ARE = "ids-as-they-are"
"""Stands for a fingerprint where ids in files are rows, or folded into rows, without a vocabulary."""

_DIGITS = 16
_PIECE_KEYS = 1 << 17


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary.

    Attributes:
        fingerprint: of the names of the tables and the value of every row.
        bases: fingerprints of the vocabularies that it extends.
    """

    fingerprint: str
    bases: tuple[str, ...] = ()

    def continues(self, other: "Vocabulary") -> bool:
        """Whether every row of ``other`` stands for the same value here."""
        return other.fingerprint == self.fingerprint or self.extends(other)

    def extends(self, other: "Vocabulary | None") -> bool:
        """Whether rows were added to those of ``other``; None: not on record."""
        return other is not None and other.fingerprint in self.bases

    def folded(self, max_ind_range: int) -> "Vocabulary":
        """Of rows that are taken modulo ``max_ind_range``, if that is positive."""
        if max_ind_range <= 0:
            return self
        return Vocabulary(f"{self.fingerprint}-modulo-{max_ind_range}")


def make_fingerprint(
    names: Sequence[str], table_rows: Sequence[int], max_ind_range: int, keys: Iterable[bytes | memoryview]
) -> str:
    """The fingerprint of a vocabulary, 16 hexadecimal digits; two of them share one with probability 2^-64.

    Args:
        names: of the tables.
        table_rows: rows of each.
        max_ind_range: by which values were folded before they were counted; -1: as they are.
        keys: bytes of the content of ``vocabulary.npy``, in pieces of any size.
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    digest.update(json.dumps([list(names), list(table_rows), max_ind_range]).encode())
    for piece in keys:
        digest.update(piece)
    return digest.hexdigest()


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """The vocabulary of the samples in a folder that `cachedlrm.prepare` wrote, or of those that it held out there.

    Returns:
        None for samples that were not prepared. Releases before the first fingerprints recorded none; theirs is
        computed from ``vocabulary.npy``, and unknown without that file.

    Raises:
        UserError: ``prepared.json`` or ``vocabulary.npy`` is garbled or cannot be read.
    """
    folder, summary = _read_summary_of(folder)
    if summary is None:
        return None
    try:
        said = summary.get("vocabulary")
        if said is not None:
            return Vocabulary(str(said["fingerprint"]), tuple(map(str, said["bases"])))
        names = [str(table["name"]) for table in summary["tables"]]
        rows, fold = [int(count) for count in summary["table_rows"]], int(summary["command"]["max_ind_range"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise garbled(folder / PREPARED_FILE) from error
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return None
    try:
        keys = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{shown(path)} is garbled; prepare the data again, or remove it") from error
    pieces = (np.array(keys[start : start + _PIECE_KEYS]).data for start in range(0, len(keys), _PIECE_KEYS))
    return Vocabulary(make_fingerprint(names, rows, fold, pieces))


def read_table_names(folder: Path) -> tuple[str, ...] | None:
    """The names that the user gave the columns of the tables, where `cachedlrm.prepare` recorded them."""
    _, summary = _read_summary_of(folder)
    try:
        return tuple(str(table["name"]) for table in summary["tables"]) if summary else None
    except (KeyError, TypeError):
        return None


def _read_summary_of(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The prepared folder that samples in ``folder`` belong to, and its ``prepared.json``."""
    summary = read_summary(folder)
    if summary is None and folder.name == TEST_FOLDER:
        folder = folder.parent
        summary = read_summary(folder)
    return folder, summary


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The object in a folder's ``prepared.json``; None without the file.

    Raises:
        UserError: it is garbled or cannot be read.
    """
    path = folder / PREPARED_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError) as error:
        raise garbled(path) from error
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"{shown(path)} cannot be read: {reason}; change that, or remove it") from error
    if not isinstance(summary, dict):
        raise garbled(path)
    return summary


def garbled(path: Path) -> UserError:
    """A ``prepared.json`` that does not read."""
    return UserError(f"{shown(path)} is garbled; prepare the data again, or remove it")


def common_vocabulary(
    data: Vocabulary | None, words: str, model: Vocabulary | None, model_words: str
) -> tuple[Vocabulary | None, str | None]:
    """The vocabulary that data and what was trained have in common: that of one of them, which may extend the other's.

    Args:
        data: of the data; None: not on record.
        words: what the data is, as in ``--data npy:DIR``.
        model: of what was trained; None: not on record.
        model_words: what that is, as in ``--load-model FILE``.

    Returns:
        The vocabulary, None if neither is on record; and what a user should know where only one of them is, so that
        nothing could be checked, else None.

    Raises:
        UserError: rows of one would stand for other values in the other; names both.
    """
    if data is None or model is None:
        found = model if data is None else data
        if found is None or found.fingerprint.startswith(IDS_AS_THEY_ARE):
            return found, None
        known, unknown = (model_words, words) if data is None else (words, model_words)
        return found, (
            f"{known} has vocabulary {found.fingerprint}; {unknown} does not say which it has, and is taken to have "
            "the same"
        )
    if data.continues(model):
        return data, None
    if model.continues(data):
        return model, None
    raise UserError(
        f"{words} has vocabulary {data.fingerprint} and {model_words} has {model.fingerprint}, in which a row stands "
        "for another value; name data prepared with --vocabulary DIR, where DIR is the prepared data that has the "
        "other one"
    )
