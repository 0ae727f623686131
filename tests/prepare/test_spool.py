"""Parsed samples on the disk: in order, up to what is on record."""

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.samples import Samples
from cachedlrm.prepare.spool import DENSE, LABELS, SampleSpool, keys_file, read_numbers

KEYS = np.dtype(np.uint32)
FLOATS, INTEGERS = np.dtype(np.float32), np.dtype(np.int32)


def samples(first: int, count: int) -> Samples:
    numbers = np.arange(first, first + count)
    dense = np.column_stack([numbers, -numbers]).astype(FLOATS)
    return Samples(dense, (numbers % 2).astype(INTEGERS), np.stack([numbers, 2 * numbers]).astype(KEYS))


def written(folder, count: int) -> None:
    """The files hold samples 0 to ``count - 1`` and no others."""
    whole = samples(0, count)
    assert np.fromfile(folder / DENSE, FLOATS).reshape(-1, 2).tolist() == whole.dense.tolist()
    assert np.fromfile(folder / LABELS, INTEGERS).tolist() == whole.labels.tolist()
    for table in range(2):
        assert np.fromfile(folder / keys_file(table), KEYS).tolist() == whole.keys[table].tolist()


def test_what_is_not_on_record_is_cut_off(tmp_path):
    with SampleSpool(tmp_path, 2, 2, KEYS, 0) as spool:
        spool.append(samples(0, 3))
        spool.append(samples(3, 4))
        spool.commit()
        written(tmp_path, 7)
        spool.append(samples(90, 5))
    with SampleSpool(tmp_path, 2, 2, KEYS, 7) as spool:
        written(tmp_path, 7)
        spool.append(samples(7, 2))
    written(tmp_path, 9)
    assert read_numbers(tmp_path / keys_file(1), KEYS, 2, 5).tolist() == [4, 6, 8]


def test_files_that_are_shorter_than_the_record_are_refused(tmp_path):
    with SampleSpool(tmp_path, 2, 2, KEYS, 0) as spool:
        spool.append(samples(0, 3))
    with pytest.raises(UserError, match="is damaged; remove it to begin anew"):
        SampleSpool(tmp_path, 2, 2, KEYS, 4)
    written(tmp_path, 3)
