"""The results of the collections: vectors by feature, as TorchRec's `KeyedTensor` and `JaggedTensor` have them.

Where the ids came in TorchRec's classes, results are TorchRec's, too.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class KeyedTensor:
    """Pooled vectors of B samples, one of each key.

    Args:
        keys: names.
        length_per_key: columns of each.
        values: [B, sum of the columns].
    """

    def __init__(self, keys: list[str], length_per_key: list[int], values: Tensor) -> None:
        self._keys = keys
        self._length_per_key = length_per_key
        self._values = values

    def keys(self) -> list[str]:
        """Names, in the order of the columns."""
        return self._keys

    def values(self) -> Tensor:
        """[B, sum of the columns]."""
        return self._values

    def length_per_key(self) -> list[int]:
        """Columns of each key."""
        return self._length_per_key

    def offset_per_key(self) -> list[int]:
        """The first column of each key, and the number of all."""
        offsets = [0]
        for length in self._length_per_key:
            offsets.append(offsets[-1] + length)
        return offsets

    def to_dict(self) -> dict[str, Tensor]:
        """[B, columns] of each key."""
        return dict(zip(self._keys, self._values.split(self._length_per_key, dim=1), strict=True))

    def __getitem__(self, key: str) -> Tensor:
        """[B, columns] of a key."""
        place = self._keys.index(key) if key in self._keys else -1
        if place < 0:
            raise KeyError(key)
        return self._values.narrow(1, self.offset_per_key()[place], self._length_per_key[place])

    def __repr__(self) -> str:
        return f"KeyedTensor({dict(zip(self._keys, self._length_per_key, strict=True))}, {list(self._values.shape)})"


class JaggedTensor:
    """Vectors of B samples, from none to many of each.

    Args:
        values: [L, D], sample after sample.
        offsets: [B + 1] int64.
    """

    def __init__(self, values: Tensor, offsets: Tensor) -> None:
        self._values = values
        self._offsets = offsets

    def values(self) -> Tensor:
        """[L, D], sample after sample."""
        return self._values

    def offsets(self) -> Tensor:
        """[B + 1] int64: where the vectors of a sample begin and end."""
        return self._offsets

    def lengths(self) -> Tensor:
        """[B] int64."""
        return self._offsets.diff()

    def to_dense(self) -> list[Tensor]:
        """The vectors of each sample."""
        return list(self._values.split(self.lengths().tolist()))

    def to_padded_dense(self, desired_length: int | None = None, padding_value: float = 0.0) -> Tensor:
        """[B, desired_length, D]: the first vectors of each sample, and padding after them. Default: the longest."""
        lengths = self.lengths()
        length = desired_length if desired_length is not None else int(lengths.max()) if len(lengths) else 0
        place = torch.arange(length, device=lengths.device)
        present = place < lengths.unsqueeze(1)  # [B, length]
        source = (self._offsets[:-1].unsqueeze(1) + place)[present]
        padded = self._values.new_full((len(lengths), length, self._values.shape[1]), padding_value)
        return padded.masked_scatter(present.unsqueeze(2), self._values[source])

    def __repr__(self) -> str:
        return f"JaggedTensor({len(self._offsets) - 1} samples, {list(self._values.shape)})"


def keyed_tensor(features: Any, keys: Sequence[str], lengths: Sequence[int], values: Tensor) -> Any:
    """A KeyedTensor of the kind that users of ``features`` expect."""
    return _class_beside(features, "KeyedTensor", KeyedTensor)(list(keys), list(lengths), values)


def jagged_tensor(features: Any, values: Tensor, offsets: Tensor) -> Any:
    """A JaggedTensor of the kind that users of ``features`` expect."""
    return _class_beside(features, "JaggedTensor", JaggedTensor)(values=values, offsets=offsets)


def _class_beside(features: Any, name: str, default: type) -> type:
    """The class of this name in the module of a KeyedJaggedTensor."""
    if type(features).__name__ != "KeyedJaggedTensor":
        return default
    return getattr(sys.modules[type(features).__module__], name, default)
