"""One thread for torch: the tests' tensors are small, and OpenMP threads that outnumber free cores stall each other.

The flights, 337,000 lines that a dozen tests open, are read once."""

import functools
import os
import zlib

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

from cachedlrm.data import flights
from simcuda import SCHEDULES, simulated_cuda

torch.set_num_threads(1)
flights.read_year = functools.lru_cache(1)(flights.read_year)


@pytest.fixture
def cuda(request):
    """A CUDA device: that of this computer, or a simulated one, on which all accesses to memory must be in order.

    Tests take turns with the schedules; ``SIMCUDA_SCHEDULE`` chooses one for all.
    """
    if torch.cuda.is_available():
        yield None
        return
    turn = SCHEDULES[zlib.crc32(request.node.nodeid.encode()) % len(SCHEDULES)]
    with simulated_cuda(os.environ.get("SIMCUDA_SCHEDULE", turn), races=True) as machine:
        yield machine
        torch.cuda.synchronize()
    assert not machine.races.found, "\n".join(machine.races.found)
