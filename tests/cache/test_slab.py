"""Records into slots and out of them."""

import pytest
import torch

from cachedlrm.cache.slab import gather, make_slab, scatter
from support.models import default_dtype


def test_rows_scattered_into_the_slab():
    random = torch.Generator().manual_seed(0)
    slab, records = torch.rand(50, 5, generator=random), torch.rand(20, 5, generator=random)
    slots = torch.randperm(50, generator=random)[:20]
    expected = slab.index_copy(0, slots, records)
    scatter(slab, slots, records)
    assert torch.equal(slab, expected)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_records_are_of_32_bits_whatever_torchs_default(device):
    with default_dtype(torch.float64):
        assert make_slab(9, 3, torch.device(device)).dtype == torch.float32


def test_gathering_is_the_inverse():
    slab, records, out = make_slab(9, 3, torch.device("cpu")), torch.rand(4, 3), torch.empty(4, 3)
    slots = torch.tensor([8, 0, 3, 5])
    scatter(slab, slots, records)
    gather(slab, slots.flip(0), out)
    assert torch.equal(out, records.flip(0))
