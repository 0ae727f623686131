"""What a finished run leaves for `python -m cachedlrm.export`: rows and the dense parameters.

Rows that were never touched are not written if their initial records can be computed again; those of a loaded model
are, so that the file may change. A safetensors file with, for each group of tables G, ``rows.G`` [n] int64 (global over
the group) and ``records.G`` [n, width] float32 (weight, pooling weight if there is one, optimizer state), or
``records.G`` alone with all rows in order, and the dense parameters under the reference's names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.errors import UserError
from cachedlrm.full_tables import CHUNK_ROWS, current_records
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.tensor_file import TensorSpec, write_tensors

FILE_NAME = "final.safetensors"


def save_final_state(path: Path, cache: EmbeddingCache, model: Dlrm, all_rows: bool = False) -> None:
    """Writes all trained state of a run that has no batch in flight.

    Args:
        path: file to write.
        cache: tables.
        model: dense part.
        all_rows: untouched rows too, for those of a loaded model cannot be computed again.

    Raises:
        UserError: the file could not be written.
    """
    dense = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    specs: dict[str, TensorSpec] = {}
    tensors: dict[str, NDArray[np.generic]] = {}
    if all_rows:
        for number, group in enumerate(cache.groups):
            specs[f"records.{number}"] = (np.dtype(np.float32), (group.sizes.num_rows, group.layout.width))
    else:
        cache.flush()
        for number, group in enumerate(cache.groups):
            tensors[f"rows.{number}"] = rows = group.book.rows()
            tensors[f"records.{number}"] = group.store.records(len(rows))
    tensors |= dense
    specs |= {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}

    def chunks() -> Iterator[NDArray[np.generic]]:
        if all_rows:
            for group, records in zip(cache.groups, current_records(cache), strict=True):
                for first in range(0, group.sizes.num_rows, CHUNK_ROWS):
                    yield records.between(first, min(first + CHUNK_ROWS, group.sizes.num_rows))
        yield from tensors.values()

    write_tensors(path, specs, chunks())


@dataclass(frozen=True)
class SavedGroup:
    """A group of tables in a finished run.

    Attributes:
        rows: [n] int64, those that were touched; None: all, in order.
        records: [n, width] float32, or what gives such arrays for slices of rows, read from the file when asked.
    """

    rows: NDArray[np.int64] | None
    records: Any

    def between(self, first: int, last: int) -> NDArray[np.float32]:
        """Records of rows ``first`` to ``last - 1`` of a group with all of them, [last - first, width]."""
        records: NDArray[np.float32] = self.records[first:last]
        return records

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the records."""
        shape: Sequence[int] = self.records.get_shape() if self.rows is None else self.records.shape
        return tuple(shape)


@dataclass(frozen=True)
class FinalState:
    """A finished run's state: each group of tables, and dense parameters by name."""

    groups: tuple[SavedGroup, ...]
    dense: dict[str, NDArray[np.float32]]


def load_final_state(path: Path) -> FinalState:
    """Opens what `save_final_state` wrote.

    Raises:
        UserError: no such file (the run did not end), or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no finished run ({path.name} is missing); let the run end, then export")
    try:
        file: Any = safe_open(str(path), framework="numpy")  # stays open for the slices
        names = set(file.keys())
        groups: list[SavedGroup] = []
        while (records := f"records.{len(groups)}") in names:
            rows = f"rows.{len(groups)}"
            if rows in names:
                groups.append(SavedGroup(file.get_tensor(rows), file.get_tensor(records)))
            else:
                groups.append(SavedGroup(None, file.get_slice(records)))
            names -= {rows, records}
        dense = {name: file.get_tensor(name) for name in file.keys() if name in names}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or not a final state: {error}; run the training again") from error
    return FinalState(tuple(groups), dense)
