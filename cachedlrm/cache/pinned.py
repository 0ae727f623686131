"""Host memory that the device copies from and to while the host goes on."""

import warnings

import torch
from torch import Tensor

from cachedlrm.base.units import format_bytes


def pinned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised pinned memory, or pageable memory and a warning where the system pins no more, as WSL 2 does.

    With pageable memory a copy makes the host wait until the host's half is free, so results are the same.
    """
    try:
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
    except RuntimeError as error:
        made = torch.empty(shape, dtype=dtype, device="cpu")
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"{format_bytes(made.nbytes)} of host memory cannot be pinned ({reason}), so copies are slower; "
            "smaller batches and a smaller --prefetch-depth need less of it",
            stacklevel=2,
        )
        return made
