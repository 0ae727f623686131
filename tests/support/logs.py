"""A small log of records whose values say which they are, for tests of the log and of what stands on it."""

from pathlib import Path

import numpy as np
import pytest

from cachedlrm.cache.working_set import AddressBook
from cachedlrm.store import database as database_module
from cachedlrm.store import record_log as record_log_module
from cachedlrm.store.database import Database, open_database
from cachedlrm.store.host import Store
from cachedlrm.store.record_log import RecordLog

WIDTH, NUM_ROWS, CAPACITY = 3, 500, 16
SHAPES = [(NUM_ROWS, WIDTH)]


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments are written, and moved, all the time."""
    monkeypatch.setattr(database_module, "_GATHERED_BYTES", 1)
    monkeypatch.setattr(record_log_module, "SPARE_SEGMENTS", 1)


def opened(path: Path, resumes: bool = False, map_bytes: int = 1 << 20, **identity: str) -> Database:
    return open_database(path, identity or {"model": "a"}, SHAPES, 1 << 20, resumes=resumes, map_bytes=map_bytes)


def new_log(database: Database, book: AddressBook | None = None) -> RecordLog:
    """Without a ``book`` the address of a row is its number."""
    if book is None:
        book = AddressBook(NUM_ROWS)
        book.register(np.arange(NUM_ROWS))
    return RecordLog(database, 0, WIDTH, book, NUM_ROWS, capacity=CAPACITY)


def records(addresses: np.ndarray, version: int) -> np.ndarray:
    """Of ``addresses`` [n], which their first column repeats; the others are ``version``."""
    values = np.full((len(addresses), WIDTH), version, np.float32)
    values[:, 0] = addresses
    return values


def scanned(source: RecordLog | Store) -> dict[int, float]:
    """The version of each address that ``source`` holds."""
    found: dict[int, float] = {}
    for addresses, values in source.scan():
        assert values[:, 0].tolist() == addresses.tolist()
        versions = dict(zip(addresses.tolist(), values[:, 1].tolist(), strict=True))
        assert len(versions) == len(addresses)
        assert not found.keys() & versions.keys(), "each once"
        found |= versions
    return found
