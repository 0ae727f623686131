"""The forms in which a model's own batches hold their ids, and the one form that the cache takes."""

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Batch, IdAdvice, make_batch

Int64s = NDArray[np.int64]

Ids = Tensor | Sequence[Tensor]
"""Ids of B samples in T tables; see `host_batch`."""

_ADVICE = IdAdvice(
    negative="ids count from 0; correct the data", beyond="correct the data or raise that entry of table_rows"
)


def host_batch(ids: Ids, offsets: Ids | None, table_rows: tuple[int, ...], where: str) -> Batch:
    """A batch in the cache's form, sample after sample and without dense features, from one of these:

    - ``ids`` [B, T], one id a bag, or [B, T, L], L ids a bag; no offsets;
    - T tensors ``ids`` [L_t] and T tensors ``offsets`` [B]: each as ``nn.EmbeddingBag`` takes them;
    - ``ids`` [L] and ``offsets`` [T * B + 1], table after table: ``values()`` and ``offsets()`` of a TorchRec
      ``KeyedJaggedTensor``.

    Args:
        ids: int32 or int64, local to their tables.
        offsets: int32 or int64.
        table_rows: rows of each of the T tables.
        where: the batch's name in a message.

    Raises:
        UserError: another form, or an id outside its table; names the sample and the table.
    """
    num_tables = len(table_rows)
    if offsets is None:
        local, starts = _of_fixed_bags(ids, num_tables, where)
    else:
        if isinstance(ids, Tensor) != isinstance(offsets, Tensor):
            raise UserError(f"{where}: ids and offsets are both a tensor, or both one tensor for each table")
        if isinstance(ids, Tensor) and isinstance(offsets, Tensor):
            local, by_table = _array(ids, 1, f"{where}: ids"), _array(offsets, 1, f"{where}: offsets")
        else:
            local, by_table = _joined(list(ids), list(offsets), num_tables, where)
        if len(by_table) % num_tables != 1:
            raise UserError(
                f"{where}: {len(by_table)} offsets; for B samples in {num_tables} tables there are {num_tables} * B + 1"
            )
        _check_offsets(by_table, len(local), f"{where}: offsets")
        local, starts = _by_sample(local, by_table, num_tables)
    num_samples = (len(starts) - 1) // num_tables
    no_dense, no_labels = np.empty((num_samples, 0), np.float32), np.zeros(num_samples, np.float32)
    return make_batch(no_dense, local, starts, no_labels, table_rows, where=where, first_sample=0, advice=_ADVICE)


def _array(tensor: object, num_axes: int, what: str) -> Int64s:
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.int32, torch.int64) or tensor.ndim != num_axes:
        found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise UserError(f"{what} are {found}; give an int64 or int32 tensor of {num_axes} axes")
    array: Int64s = tensor.detach().cpu().to(torch.int64).contiguous().numpy()
    return array


def _of_fixed_bags(ids: Ids, num_tables: int, where: str) -> tuple[Int64s, Int64s]:
    """Ids and offsets of bags of one size."""
    if not isinstance(ids, Tensor):
        raise UserError(f"{where}: one tensor of ids for each table needs offsets beside it, or stack them to [B, T]")
    num_axes = 3 if ids.ndim == 3 else 2
    array = _array(ids, num_axes, f"{where}: ids without offsets")
    if array.shape[1] != num_tables:
        raise UserError(f"{where}: ids are {list(array.shape)}; the second axis is for the {num_tables} tables")
    size = array.shape[2] if num_axes == 3 else 1
    return array.reshape(-1), np.arange(array.shape[0] * num_tables + 1, dtype=np.int64) * size


def _joined(ids: list[Tensor], offsets: list[Tensor], num_tables: int, where: str) -> tuple[Int64s, Int64s]:
    """Ids and boundaries of all bags, table after table."""
    if len(ids) != num_tables or len(offsets) != num_tables:
        raise UserError(f"{where}: {len(ids)} tensors of ids and {len(offsets)} of offsets for {num_tables} tables")
    parts, boundaries, end = [], [], 0
    for table, (table_ids, table_offsets) in enumerate(zip(ids, offsets, strict=True)):
        parts.append(_array(table_ids, 1, f"{where}: ids of table {table}"))
        starts = _array(table_offsets, 1, f"{where}: offsets of table {table}")
        if len(starts) != len(offsets[0]):
            raise UserError(
                f"{where}: table {table} has {len(starts)} bags and table 0 has {len(offsets[0])}; a sample has one in "
                "each table, an empty one too"
            )
        _check_offsets(np.append(starts, len(parts[-1])), len(parts[-1]), f"{where}: offsets of table {table}")
        boundaries.append(starts + end)
        end += len(parts[-1])
    return np.concatenate(parts), np.concatenate([*boundaries, [end]])


def _check_offsets(offsets: Int64s, num_ids: int, what: str) -> None:
    if (num_ids and offsets[0] != 0) or offsets[-1] != num_ids or (np.diff(offsets) < 0).any():
        raise UserError(f"{what} do not rise from 0 to the number of ids, {num_ids}; every id is in one bag")


@numba.njit(cache=True, nogil=True)
def _by_sample(ids: Int64s, offsets: Int64s, num_tables: int) -> tuple[Int64s, Int64s]:
    """From bags table after table to bags sample after sample."""
    num_samples = (len(offsets) - 1) // num_tables
    new_ids = np.empty(len(ids), np.int64)
    new_offsets = np.zeros(num_samples * num_tables + 1, np.int64)
    end = 0
    for sample in range(num_samples):
        for table in range(num_tables):
            bag = table * num_samples + sample
            for lookup in range(offsets[bag], offsets[bag + 1]):
                new_ids[end] = ids[lookup]
                end += 1
            new_offsets[sample * num_tables + table + 1] = end
    return new_ids, new_offsets
