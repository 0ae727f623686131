"""One thread for torch: the tests' tensors are small, and OpenMP threads that outnumber free cores stall each other.

The flights are read from their files once."""

import functools
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from cachedlrm.data import flights

torch.set_num_threads(1)
flights._read_csv = functools.cache(flights._read_csv)  # 337,000 lines, which a dozen tests open
