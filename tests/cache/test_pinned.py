"""Where the system refuses to pin memory, a run goes on with pageable memory and says so."""

import pytest
import torch

from cachedlrm.cache.pinned import pinned
from simcuda import simulated_cuda
from support.runs import parameters, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates a device")


def test_memory_is_pinned():
    with simulated_cuda() as machine:
        made = pinned((3, 5))
        assert made.is_pinned()
        assert (made.shape, made.dtype) == ((3, 5), torch.float32)
        assert machine.most_pinned_bytes == 64


@pytest.mark.parametrize("schedule", ["late", "copies-first"])
def test_a_run_without_pinned_memory(schedule, tmp_path):
    options = ["--gpu-cache-rows=420", "--prefetch-depth=2", "--test-freq=-1"]
    assert train(tmp_path / "cpu", *options) == 0
    with (
        simulated_cuda(schedule, races=True, pinned_bytes=1 << 16) as machine,
        pytest.warns(UserWarning, match=r"cannot be pinned \(CUDA error: out of memory.*--prefetch-depth") as seen,
    ):
        assert train(tmp_path / "cuda", *options, "--device=cuda") == 0
    assert all("\n" not in str(one.message) for one in seen)
    assert not machine.races.found
    ours, theirs = parameters(tmp_path / "cuda"), parameters(tmp_path / "cpu")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
