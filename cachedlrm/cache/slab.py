"""The records on the device, [num_slots, width] words, and the ways in and out.

A word is carried as a float32, whatever it holds: copies keep its bits.

On the CPU by kernels (`cachedlrm.base.kernels`): on one thread torch's index_select takes twice as long, its
index_copy_ three times; on two threads it is about as fast.
"""

import torch
from torch import Tensor

from cachedlrm.base.kernels import empty_rows, gather_rows, scatter_rows


def make_slab(num_slots: int, width: int, device: torch.device) -> Tensor:
    """Uninitialised records."""
    if device.type == "cpu":
        return torch.from_numpy(empty_rows(num_slots, width))
    return torch.empty(num_slots, width, dtype=torch.float32, device=device)


def gather(slab: Tensor, slots: Tensor, out: Tensor) -> None:
    """Copies the records in ``slots`` [n] int64, unchecked, into ``out`` [n, width]."""
    if slab.is_cuda:
        torch.index_select(slab, 0, slots, out=out)
    else:
        gather_rows(slab.numpy(), slots.numpy(), out.numpy())


def scatter(slab: Tensor, slots: Tensor, records: Tensor) -> None:
    """Stores ``records`` [n, width] in ``slots`` [n] int64, all different."""
    if slab.is_cuda:
        slab.index_copy_(0, slots, records)
    else:
        scatter_rows(slab.numpy(), slots.numpy(), records.numpy())
