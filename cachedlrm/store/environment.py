"""The LMDB environment of a store: its names and keys, what it says of itself, and opening it.

A store has a database of segments for each group of tables, and one of metadata: what the store is of, the shape of its
groups, the last checkpoint, and what the data of the run are (`cachedlrm.data.fingerprint`; not of earlier releases).
"""

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import cannot_write
from cachedlrm.store.records import OPTIONS_BEFORE

FORMAT = 2
"""Version of the layout; a store of another one is refused."""

LOCK_FILE = "store.lock"
DATA_FILE = "data.mdb"
LMDB_LOCK_FILE = "lock.mdb"
META = b"meta"
"""Name of the database of metadata."""
_IDENTITY, _SHAPES = b"identity", b"shapes"
CHECKPOINT, DATA = b"checkpoint", b"data"
"""Keys of the metadata."""

FIRST_MAP_BYTES = 64 << 20
TRANSACTION_BYTES = 4 << 20
VOCABULARY = "vocabulary"
"""Name in an identity, and in headers of files, of the fingerprint of what the rows stand for; see
`cachedlrm.data.vocabulary`. Earlier releases recorded none."""
SHUFFLE_ORDER = "shuffle-order"
"""Name in an identity of how a shuffled run deals out its samples, `cachedlrm.data.shuffle.ORDER`. Earlier releases
recorded none; theirs was the first."""
_SLACK_PAGES = 64  # pages at the end of the file that were taken and never written
OTHERWISE = "choose another --store-path"
_OTHERWISE = {
    VOCABULARY: "name by --data what the run was started with, prepared as it was then",
    SHUFFLE_ORDER: "go on with the release that began it, or start another run without --resume",
}
"""What to do about a name in an identity, where it is not `OTHERWISE`."""
_MOST = 1 << 32  # rows of a group: those of a segment are uint32
_NO_OPTIONS = {
    "format": "format",
    "byte-order": "byte-order",
    "load-model-file": "a --load-model file",
    "start-from-file": "a --start-from state",
    VOCABULARY: "vocabulary",
    SHUFFLE_ORDER: "order of --shuffle",
}
"""Names in an identity that are not those of options, as messages call them."""

Shapes = Sequence[tuple[int, int]]
"""Rows and float32 columns of a record, of each group of tables."""


class NoShapesError(UserError):
    """A store that an earlier release wrote; it does not say the shape of its groups."""


def segment_key(sequence: int) -> bytes:
    """Big-endian, so that LMDB keeps segments in the order they were written."""
    return sequence.to_bytes(8, "big")


def parse_key(key: bytes) -> int:
    """The inverse of `segment_key`.

    Raises:
        ValueError: it is no such key.
    """
    if len(key) != 8 or key[0] >> 6:  # as a run that lasts for ever would not reach
        raise ValueError(f"{key[:20].hex()} is no segment's key")
    return int.from_bytes(key, "big")


def group_name(group: int) -> bytes:
    """Of the LMDB database that holds the segments of a group of tables."""
    return f"segments.{group}".encode()


def check_exists(path: Path) -> None:
    """Makes sure that a folder holds a store.

    Raises:
        UserError: it does not.
    """
    if not (path / DATA_FILE).is_file():
        raise UserError(f"{path} holds no store ({DATA_FILE} is missing); name it by --store-path, or start a new run")


def open_environment(path: Path, num_groups: int, map_bytes: int, read_only: bool = False, lock: bool = True) -> Any:
    """The LMDB environment in a folder.

    Raises:
        UserError: a file of it is a link or not a regular file.
    """
    data = path / DATA_FILE
    for file in (data, path / LMDB_LOCK_FILE):
        if file.is_symlink() or (file.exists() and not file.is_file()):  # LMDB would write wherever it leads
            raise UserError(f"{file} is not a regular file; a store's files lie in its folder: put back a copy")
    size = data.stat().st_size if data.exists() else 0
    # `claim` writes before anything can grow the map: a few pages, and a list of those that it frees
    needed = size + (size >> 6) + _SLACK_PAGES * 4096 if size else 0
    environment = lmdb.open(
        str(path),
        map_size=max(map_bytes, -(-needed // 4096) * 4096),
        max_dbs=num_groups + 1,
        mode=0o666,  # the user's umask decides
        readonly=read_only,
        create=not read_only,
        lock=lock,
        readahead=False,  # records are read at random
    )
    if not read_only:
        environment.reader_check()  # forgets readers that were killed
    return environment


def claim(
    path: Path,
    environment: Any,
    identity: Mapping[str, str],
    shapes: Shapes,
    *,
    resumes: bool,
    before: Mapping[str, str],
) -> None:
    """Makes sure that a store is of this model; one without a checkpoint holds nothing to lose and is emptied.

    Args:
        path: folder of the store.
        environment: LMDB's.
        identity: what its records belong to; see `cachedlrm.store.database.open_database`.
        shapes: of its groups.
        resumes: whether to go on from the checkpoint there.
        before: values that earlier releases recorded in place of those of ``identity``.

    Raises:
        UserError: it is of another model, or holds a run that is not resumed.
    """
    wanted = {**own_identity(), **identity}
    said = json.dumps([list(shape) for shape in shapes]).encode()
    meta = environment.open_db(META)
    with environment.begin() as transaction:
        value, checkpoint = transaction.get(_IDENTITY, db=meta), transaction.get(CHECKPOINT, db=meta)
        says_shapes = transaction.get(_SHAPES, db=meta) is not None
    if value is None or checkpoint is None:
        groups = [environment.open_db(group_name(group)) for group in range(len(shapes))]
        with environment.begin(write=True) as transaction:
            for group in groups:
                transaction.drop(group, delete=False)
            transaction.put(_IDENTITY, json.dumps(wanted).encode(), db=meta)
            transaction.put(_SHAPES, said, db=meta)
        return
    usual_before = {**OPTIONS_BEFORE, SHUFFLE_ORDER: "1"}
    found = {
        **{name: usual for name, usual in usual_before.items() if name in wanted},
        **parse_identity(path, value),
    }
    for name in ("format", "byte-order", *sorted(found.keys() | wanted.keys())):
        if name == VOCABULARY and name not in found:  # an earlier release wrote it
            continue
        if found.get(name) not in (wanted.get(name), before.get(name, wanted.get(name))):
            option = _NO_OPTIONS.get(name, f"--{name}")
            theirs = f"with {option} {found[name]}" if name in found else f"without {option}"
            ours = f"{option} {wanted[name]}" if name in wanted else f"no {option}"
            otherwise = _OTHERWISE.get(name, OTHERWISE)
            raise UserError(f"the store in {path} is of a run {theirs}, and this run has {ours}; {otherwise}")
    if not resumes:
        raise UserError(f"the store in {path} holds a run; go on with --resume RUN_DIR, or {OTHERWISE} (or delete it)")
    if not says_shapes:  # an earlier release wrote it
        with environment.begin(write=True) as transaction:
            transaction.put(_SHAPES, said, db=meta)


def own_identity() -> dict[str, str]:
    """The format, as every store that this release writes on this machine names it."""
    return {"format": str(FORMAT), "byte-order": sys.byteorder}


def parse_identity(path: Path, value: bytes) -> dict[str, str]:
    """The run that a store belongs to, name by name.

    Raises:
        UserError: it is damaged.
    """
    try:
        found = json.loads(value)
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise UserError(f"the store in {path} is damaged: it does not say what it is of; {OTHERWISE}") from error
    return found


def read_identity(environment: Any, transaction: Any) -> bytes | None:
    """The text for `parse_identity`; None in an environment without it."""
    try:
        value = transaction.get(_IDENTITY, db=environment.open_db(META, transaction, create=False))
    except lmdb.NotFoundError:
        return None
    return None if value is None else bytes(value)


def read_shapes(path: Path, transaction: Any, meta: Any) -> Shapes:
    """Rows and columns of each group, as the store says.

    Args:
        path: folder of the store.
        transaction: LMDB's.
        meta: the handle of `META`.

    Raises:
        NoShapesError: it does not say.
        UserError: it is damaged.
    """
    value = transaction.get(_SHAPES, db=meta)
    if value is None:
        raise NoShapesError(
            f"the store in {path} was written by an earlier release and does not say the shape of its groups; go on "
            "with it once (train --resume RUN_DIR, without more steps), then check it again"
        )
    try:
        shapes = [(rows, columns) for rows, columns in json.loads(bytes(value))]
        if not all(type(number) is int and 0 < number <= _MOST for shape in shapes for number in shape):
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError("it does not say the shape of its groups") from error
    return shapes


def check_length(path: Path, environment: Any) -> None:
    """Whether the data file has all its pages.

    Raises:
        UserError: it was cut short.
    """
    used = environment.info()["last_pgno"] + 1
    page = environment.stat()["psize"]
    size = (path / DATA_FILE).stat().st_size
    if size < (used - _SLACK_PAGES) * page:
        raise UserError(
            f"{path / DATA_FILE} is cut short: {size:,} bytes of {used * page:,}; put back a copy of it, "
            "or start the run again"
        )


def cannot_open(path: Path, error: Exception) -> UserError:
    """Turns a refusal by LMDB or the operating system, when a store is opened, into the user's one line."""
    reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
    return UserError(f"cannot open the store in {path}: {reason}; {OTHERWISE}")


def cannot_write_store(path: Path, error: Exception) -> UserError:
    """Turns a refusal by LMDB or the operating system, when a store is written, into the user's one line."""
    if isinstance(error, OSError) and error.errno:
        return cannot_write(path, error, OTHERWISE)
    reason = str(error).removeprefix("mdb_txn_commit: ") or "out of memory"
    # A disk that fills up takes a part of a write, which LMDB calls an error of input and output.
    with contextlib.suppress(OSError):
        if shutil.disk_usage(path).free < TRANSACTION_BYTES:
            reason = os.strerror(errno.ENOSPC)
    return UserError(
        f"cannot write the store in {path}: {reason}; free space there or {OTHERWISE}; "
        "what was committed before is kept"
    )
