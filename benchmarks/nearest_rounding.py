"""Trains as ``python -m cachedlrm.train`` does, but for rows of 16 bits, which it rounds to the nearest.

python benchmarks/nearest_rounding.py OPTIONS. On the CPU; to see what is lost beside rounding at random, by
row_dtypes.py.
"""

import sys

import numpy as np
import torch

from cachedlrm.base.program import end_program
from cachedlrm.base.rounding import TORCH_DTYPES
from cachedlrm.store import packing
from cachedlrm.train import main


def _pack_nearest(
    self: packing.Packing,
    numbers: np.ndarray,
    rows: np.ndarray,
    step: int,
    places: np.ndarray,
    out: np.ndarray,
) -> None:
    records = torch.zeros(len(rows), self.layout.width)
    for dtype, columns, words in packing._parts(self.layout):
        part, kept = torch.from_numpy(numbers[:, columns]), records[:, words]
        if dtype == "fp32":
            kept.copy_(part)
        else:
            most = torch.finfo(TORCH_DTYPES[dtype]).max
            kept.view(TORCH_DTYPES[dtype])[:, : part.shape[1]] = part.clamp(-most, most)
    out[places] = records.numpy()


if __name__ == "__main__":
    packing.Packing._pack = _pack_nearest
    end_program(main(sys.argv[1:]))
