"""A checkpoint but for its rows, as one value of the store.

It is a safetensors file: dense parameters, their optimizer's state and, in its header, where each log ends, the number
of batches trained and what the run has counted. No random generator has a state to keep: samples and initial rows are
functions of their numbers.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray


@dataclass(frozen=True)
class Checkpoint:
    """Everything a resumed run needs besides its rows.

    Attributes:
        batches: trained before it.
        ends: of each group, the first segment after it, and the `cachedlrm.store.segment.fingerprint` of those with a
            live record.
        dense: dense parameters by name.
        dense_state: their optimizer's, by parameter name and torch's key.
        steps_before: steps of an earlier run whose optimizer state was loaded.
        progress: of `cachedlrm.run.progress.Progress`.
    """

    batches: int
    ends: tuple[tuple[int, int], ...]
    dense: Mapping[str, NDArray[np.generic]]
    dense_state: Mapping[str, Mapping[str, NDArray[np.generic]]]
    steps_before: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """A CRC-32 (4 bytes, little-endian) of what follows it, a safetensors file."""
        tensors = {f"dense.{name}": np.array(array) for name, array in self.dense.items()}
        for name, entry in self.dense_state.items():
            tensors |= {f"state.{key}.{name}": np.array(array) for key, array in entry.items()}
        numbers = {
            "batches": self.batches,
            "boundaries": [boundary for boundary, _ in self.ends],
            "live_segments": [live for _, live in self.ends],
            "steps_before": self.steps_before,
            "progress": dict(self.progress),
        }
        body = safetensors.numpy.save(tensors, {"checkpoint": json.dumps(numbers)})
        return zlib.crc32(body).to_bytes(4, "little") + body


def decode_checkpoint(data: bytes) -> Checkpoint:
    """The inverse of `Checkpoint.encode`; it never executes what it reads.

    Raises:
        ValueError: it is no checkpoint, or damaged.
    """
    body = data[4:]
    if len(data) < 12 or zlib.crc32(body) != int.from_bytes(data[:4], "little"):
        raise ValueError("the checksum of the checkpoint is wrong")
    try:
        tensors = safetensors.numpy.load(body)
        header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
        numbers = json.loads(header["__metadata__"]["checkpoint"])
        dense: dict[str, NDArray[np.generic]] = {}
        state: dict[str, dict[str, NDArray[np.generic]]] = {}
        for name, array in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "dense":
                dense[rest] = array
            else:
                key, _, parameter = rest.partition(".")
                state.setdefault(parameter, {})[key] = array
        batches, boundaries, before = numbers["batches"], numbers["boundaries"], numbers["steps_before"]
        live = numbers["live_segments"]
        whole = (batches, before, *boundaries, *live)
        if not all(isinstance(number, int) and 0 <= number < 2**62 for number in whole):
            raise ValueError("a count in the checkpoint is not a whole number")
        if len(live) != len(boundaries):
            raise ValueError(f"the checkpoint counts {len(live)} groups of tables and ends {len(boundaries)}")
        if not isinstance(numbers["progress"], dict):
            raise ValueError("the progress in the checkpoint is no object")
        ends = tuple(zip(boundaries, live, strict=True))
        return Checkpoint(batches, ends, dense, state, before, numbers["progress"])
    except (safetensors.SafetensorError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the checkpoint does not read: {error}") from error
