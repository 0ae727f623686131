"""A small store with reclaimed segments and a checkpoint, made without training."""

from collections.abc import Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import lmdb
import numpy as np

from cachedlrm.cache.working_set import AddressBook
from cachedlrm.store.checkpoint_value import Checkpoint
from cachedlrm.store.database import Meta, open_database
from cachedlrm.store.environment import CHECKPOINT, group_name, segment_key
from cachedlrm.store.record_log import RecordLog

ROWS, WIDTH, CAPACITY = 1335, 16, 100
TOUCHED = 600
IDENTITY = {"arch-embedding-size": "400-30-900-5", "arch-sparse-feature-size": "8", "optimizer": "adagrad"}


def make_store(path: Path, identity: Mapping[str, str] = IDENTITY, has_checkpoint: bool = True, later: int = 0) -> None:
    """A store of `TOUCHED` rows that were each written several times, some segments reclaimed."""
    random = np.random.default_rng(3)
    with closing(open_database(path, identity, [(ROWS, WIDTH)], 1 << 20, resumes=False)) as database:
        book = AddressBook(ROWS)
        addresses = book.register(random.permutation(ROWS)[:TOUCHED])
        log = RecordLog(database, 0, WIDTH, book, ROWS, capacity=CAPACITY)
        log.append(addresses, records(TOUCHED))
        for _ in range(40):
            log.append(random.choice(addresses, 90, replace=False), records(90))
        boundary = log.begin_checkpoint()
        if has_checkpoint:
            dense = {"bot_l.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
            checkpoint = Checkpoint(
                7, ((boundary, log.fingerprint()),), dense, {"bot_l.0.weight": {"sum": dense["bot_l.0.weight"]}}
            )
            database.write(Meta(CHECKPOINT, checkpoint.encode()))
            log.end_checkpoint()
        for number in range(later):
            log.append(addresses[CAPACITY * number :][:CAPACITY], records(CAPACITY))
        database.wait()
        assert log.reclaimed_records > 0


def records(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, WIDTH)).astype(np.float32)


@contextmanager
def changing(path: Path, database: bytes):
    """A transaction on a database of a store."""
    environment = lmdb.open(str(path), map_size=1 << 28, max_dbs=9)
    with closing(environment), environment.begin(write=True) as transaction:
        yield transaction, environment.open_db(database, transaction)


def read_segments(path: Path, group: int = 0) -> dict[int, bytes]:
    with changing(path, group_name(group)) as (transaction, handle):
        return {int.from_bytes(key, "big"): bytes(value) for key, value in transaction.cursor(handle)}


def write_segment(path: Path, sequence: int, value: bytes, group: int = 0) -> None:
    with changing(path, group_name(group)) as (transaction, handle):
        transaction.put(segment_key(sequence), value, db=handle)


def flip(value: bytes, place: int) -> bytes:
    return value[:place] + bytes([value[place] ^ 16]) + value[place + 1 :]
