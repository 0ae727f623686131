"""What a plan says a run takes of device and pinned memory is no less than torch's allocators take.

The allocators are simulated, segments and cuBLAS's workspaces included; benchmarks/simulated_device.py does the same at
full size.
"""

import pytest
import torch
from simulated_device import cost

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates a device")

SMALL = ["--arch-embedding-size=100000-200000-3000", "--data=zipf:samples=60000"]
JOBS = {
    "kaggle's shape": ["--gpu-cache-ratio=0.05"],  # 342 MB were reserved of 325
    "mixed dimensions": [*SMALL, "--gpu-cache-ratio=0.1", "--md-flag", "--md-threshold=1000"],
    "all resident": [*SMALL, "--gpu-cache-ratio=1.0", "--optimizer=sgd"],
    "evicting": [*SMALL, "--gpu-cache-rows=12000", "--optimizer=adam"],
    "micro-batches": [*SMALL, "--gpu-cache-ratio=1.0", "--mini-batch-size=4096", "--micro-batch-size=1024"],
    "graphs": [*SMALL, "--gpu-cache-rows=12000", "--cuda-graphs"],
    "bf16, deterministic": [*SMALL, "--gpu-cache-rows=12000", "--bf16", "--deterministic"],
    "tiny": ["--data=zipf:samples=5000", "--arch-embedding-size=100-20", "--mini-batch-size=16"],
}


@pytest.fixture(autouse=True)
def _undo_deterministic():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", JOBS)
def test_a_run_fits_the_account(name):
    one = cost([*JOBS[name], "--test-freq=5"])
    assert one.allocated <= one.reserved <= one.account
    assert 0 < one.pinned <= one.pinned_account
    assert one.waits == 0, "the training thread waits for nothing within a step"
