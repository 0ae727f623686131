"""One thread for torch: the tests' tensors are small, and OpenMP threads that outnumber free cores stall each other."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

torch.set_num_threads(1)
