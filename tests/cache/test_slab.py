"""Records into slots and out of them."""

import torch

from cachedlrm.cache.slab import gather, make_slab, scatter


def test_rows_scattered_into_the_slab():
    random = torch.Generator().manual_seed(0)
    slab, records = torch.rand(50, 5, generator=random), torch.rand(20, 5, generator=random)
    slots = torch.randperm(50, generator=random)[:20]
    expected = slab.index_copy(0, slots, records)
    scatter(slab, slots, records)
    assert torch.equal(slab, expected)


def test_gathering_is_the_inverse():
    slab, records, out = make_slab(9, 3, torch.device("cpu")), torch.rand(4, 3), torch.empty(4, 3)
    slots = torch.tensor([8, 0, 3, 5])
    scatter(slab, slots, records)
    gather(slab, slots.flip(0), out)
    assert torch.equal(out, records.flip(0))
