"""Samples for tests of data sources: small files, requests, and the comparison of batches."""

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest, ReferenceStream

ANY = DataRequest(None, None, 1, -1)
STREAM = ReferenceStream("random", 5, 0, 1, 2, False, "uniform", 0.0, 1.0, -1.0, 1.0, "", False, False, 1)


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal."""
    return all((a == b).all() for a, b in zip(vars(one).values(), vars(other).values(), strict=True))


def joined(one: Batch, other: Batch) -> Batch:
    """The samples of one, then those of the other."""
    return Batch(
        np.concatenate([one.dense, other.dense]),
        np.concatenate([one.rows, other.rows]),
        np.concatenate([one.offsets, other.offsets[1:] + one.offsets[-1]]),
        np.concatenate([one.labels, other.labels]),
    )


def write_npy(folder, name="day_0", count=10, **changes):
    """A triple of ``count`` samples, some of its parts changed."""
    parts = {
        "dense": np.arange(count * 2, dtype=np.float32).reshape(count, 2),
        "sparse": np.arange(count * 3, dtype=np.int32).reshape(count, 3) % 7,
        "labels": (np.arange(count, dtype=np.int32) % 2)[:, None],
    } | changes
    folder.mkdir(exist_ok=True)
    for part, array in parts.items():
        np.save(folder / f"{name}_{part}.npy", array)


def write_ids(folder, bags, name="day_0", multi_hot=False, dtype=np.int32, num_dense=2):
    """A triple whose ids are ``bags``, of each sample and table, ragged or of one size in each table."""
    write_npy(folder, name, len(bags), dense=np.zeros((len(bags), num_dense), np.float32))
    (folder / f"{name}_sparse.npy").unlink()
    if multi_hot:
        members = {str(table): np.array([sample[table] for sample in bags], dtype) for table in range(len(bags[0]))}
        np.savez(folder / f"{name}_sparse_multi_hot.npz", **members)
        return
    flat = [bag for sample in bags for bag in sample]
    np.save(folder / f"{name}_sparse_values.npy", np.array([id_ for bag in flat for id_ in bag], dtype))
    np.save(folder / f"{name}_sparse_offsets.npy", np.cumsum([0, *map(len, flat)]))


def refused(spec, test_spec=None, **request) -> str:
    """The one line that refuses data."""
    fields = {"table_rows": None, "num_dense": None, "seed": 1, "max_ind_range": -1} | request
    with pytest.raises(UserError) as caught:
        open_dataset(str(spec), None if test_spec is None else str(test_spec), DataRequest(**fields))
    message = str(caught.value)
    assert message.isprintable(), message
    return message
