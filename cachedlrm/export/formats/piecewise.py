"""A tensor in pieces, for writers of files that hold more than memory does."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PiecewiseTensor:
    """A tensor to be written, of float32 unless whoever made it says otherwise.

    Attributes:
        shape: of the tensor.
        pieces: gives its data in order, in arrays of any size.
    """

    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def data(self) -> Iterator[bytes]:
        """The data in order, little-endian.

        Raises:
            ValueError: the pieces do not add up to the shape.
        """
        num_bytes = 0
        for piece in self.pieces():
            data = np.ascontiguousarray(piece, "<f4").tobytes()
            num_bytes += len(data)
            yield data
        if num_bytes != 4 * self.num_elements:
            raise ValueError(f"{num_bytes} bytes of data for a tensor of shape {self.shape}")


def piecewise(tensor: Tensor) -> PiecewiseTensor:
    """A tensor that is in memory, in one piece."""
    array = tensor.detach().cpu().numpy()
    return PiecewiseTensor(array.shape, lambda: [array])
