"""What a finished run leaves for `python -m cachedlrm.export`: touched rows and the dense parameters.

Rows that were never touched are not written: they are a pure function of the seed. The file is a safetensors file with
``rows`` [n] int64 (global), ``records`` [n, width] float32 (weight, then optimizer state) and the dense parameters
under the reference's names.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.errors import UserError
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.tensor_file import TensorSpec, write_tensors

FILE_NAME = "final.safetensors"


def save_final_state(path: Path, cache: EmbeddingCache, model: Dlrm) -> None:
    """Writes all trained state of a run that has no batch in flight.

    Raises:
        UserError: the file could not be written.
    """
    cache.flush()
    dense = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
    rows = cache.book.rows()
    records = cache.store.records(len(rows))
    tensors: dict[str, NDArray[np.generic]] = {"rows": rows, "records": records, **dense}
    specs: dict[str, TensorSpec] = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_tensors(path, specs, tensors.values())


@dataclass(frozen=True)
class FinalState:
    """A finished run's state.

    Attributes:
        rows: [n] int64, ascending.
        order: [n] int64, where each of them is in ``records``.
        records: [n, width] float32.
        dense: parameters by name.
    """

    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    records: NDArray[np.float32]
    dense: dict[str, NDArray[np.float32]]

    def touched(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Touched rows from ``first`` to ``last - 1`` [n], and their records [n, width]."""
        begin, end = np.searchsorted(self.rows, [first, last])
        return self.rows[begin:end], self.records[self.order[begin:end]]


def load_final_state(path: Path) -> FinalState:
    """Opens what `save_final_state` wrote.

    Raises:
        UserError: no such file (the run did not end), or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} holds no finished run ({path.name} is missing); let the run end, then export")
    try:
        with safe_open(str(path), framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        rows, records = tensors.pop("rows"), tensors.pop("records")
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"{path} is damaged or not a final state: {error}; run the training again") from error
    order = np.argsort(rows, kind="stable")
    return FinalState(rows[order], order, records, tensors)
