"""SplitMix64 in torch's operators against the kernel, bit by bit."""

import numpy as np
import torch

from cachedlrm.base.kernels import mix
from cachedlrm.base.splitmix import as_int64, mix_tensor, shift_right


def test_tensors_have_the_kernels_bits():
    values = np.random.default_rng(1).integers(0, 2**64, 1000, np.uint64)
    values[:3] = 0, 1, 2**64 - 1
    mixed = mix_tensor(torch.from_numpy(values.view(np.int64))).numpy().view(np.uint64)
    assert mixed.tolist() == [int(mix(value)) for value in values]


def test_shifts_have_no_sign_and_numbers_wrap_around():
    assert shift_right(torch.tensor([-1, -(2**63)]), 60).tolist() == [15, 8]
    assert [as_int64(value) for value in (0, 2**63 - 1, 2**63, 2**64 + 5)] == [0, 2**63 - 1, -(2**63), 5]
