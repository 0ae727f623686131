"""One thread for torch: the tests' tensors are small, and OpenMP threads that outnumber free cores stall each other.

The flights, 337,000 lines that a dozen tests open, are read once."""

import functools
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from cachedlrm.data import flights

torch.set_num_threads(1)
flights.read_year = functools.lru_cache(1)(flights.read_year)
