"""One thread for torch: the tests' tensors are small, and OpenMP threads that outnumber free cores stall each other.

The flights are read from their files a few times only; not their texts are kept, which take half a gigabyte."""

import functools
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from cachedlrm.data import open as data_sets

torch.set_num_threads(1)
data_sets.open_flights = functools.lru_cache(2)(data_sets.open_flights)  # 337,000 lines, which a dozen tests open
