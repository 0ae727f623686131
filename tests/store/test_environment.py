"""What a store says of itself, and who may open it."""

import json
import re
from contextlib import closing
from pathlib import Path

import lmdb
import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.store.database import Meta, Put, open_database
from cachedlrm.store.environment import CHECKPOINT, META, own_identity, parse_key, segment_key
from cachedlrm.store.records import OPTIONS_BEFORE
from support.logs import SHAPES, opened
from support.stores import IDENTITY, changing, make_store


def opened_once(path: Path, operation: Meta | Put) -> None:
    database = opened(path)
    database.write(operation)
    database.wait()
    database.close()


@pytest.mark.parametrize("sequence", [0, 1, 255, 256, 2**62 - 1])
def test_keys_keep_the_order_of_segments(sequence):
    assert parse_key(segment_key(sequence)) == sequence
    assert segment_key(sequence) < segment_key(sequence + 1)


def test_another_file_under_the_same_name_is_another_model(tmp_path):
    before, after = ({**IDENTITY, "load-model-file": f"of {size} bytes at 7"} for size in (5, 6))
    make_store(tmp_path, before)
    words = "of a run with a --load-model file of 5 bytes at 7, and this run has a --load-model file of 6 bytes at 7;"
    with pytest.raises(UserError, match=words):
        open_database(tmp_path, after, SHAPES, 1 << 20, resumes=True)
    with pytest.raises(UserError, match=words):
        open_database(tmp_path, after, SHAPES, 1 << 20, resumes=True, before={"load-model-file": "of 5 bytes at 8"})
    open_database(tmp_path, after, SHAPES, 1 << 20, resumes=True, before=before).close()


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        ({"model": "b"}, "is of a run with --model a, and this run has --model b; choose another --store-path"),
        ({"model": "a", "row-dtype": "bf16"}, "is of a run with --row-dtype fp32, and this run has --row-dtype bf16;"),
        ({"model": "a", "more": "x"}, "is of a run without --more, and this run has --more x; choose"),
        ({"other": "a"}, "is of a run with --model a, and this run has no --model; choose"),
        ({"model": "a"}, "holds a run; go on with --resume RUN_DIR, or choose another --store-path"),
    ],
)
def test_a_store_with_a_checkpoint_is_not_overwritten(tmp_path, identity, words):
    opened_once(tmp_path, Meta(CHECKPOINT, b"x"))
    with pytest.raises(UserError, match=re.escape(f"the store in {tmp_path} {words}")):
        opened(tmp_path, **identity)
    opened(tmp_path, resumes=True).close()
    # An earlier release said nothing of dtypes and pooling: rows had 32 bits, bags were summed.
    opened(tmp_path, resumes=True, model="a", **OPTIONS_BEFORE).close()


def test_a_store_without_a_checkpoint_is_nobodys(tmp_path):
    opened_once(tmp_path, Put(0, 0, np.zeros(1024, np.uint32)))
    database = opened(tmp_path, model="b")
    assert list(database.segments(0)) == []
    database.close()


def test_a_store_of_an_earlier_release_whose_file_fills_its_map_goes_on(tmp_path):
    identity = json.dumps({**own_identity(), "model": "a"}).encode()
    with closing(lmdb.open(str(tmp_path), map_size=1 << 20, max_dbs=2)) as environment:
        meta = environment.open_db(META)
        with environment.begin(write=True) as transaction:
            transaction.put(b"identity", identity, db=meta)
            transaction.put(CHECKPOINT, b"x", db=meta)
    opened(tmp_path, resumes=True, map_bytes=1).close()
    with changing(tmp_path, META) as (transaction, meta):
        assert json.loads(transaction.get(b"shapes", db=meta)) == [[500, 3]]
