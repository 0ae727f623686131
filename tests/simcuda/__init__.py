"""A simulated CUDA device: runs the CUDA path of a program without a GPU, late and in adverse orders, and judges it.

    with simulated_cuda(schedule="late", races=True) as machine:
        ...  # anything that uses torch.cuda
    assert not machine.races.found

Operators on ``cuda`` tensors do not run when they are called. They wait in the queues of their streams, as on a GPU,
and a schedule decides how far each stream has come, within the order that CUDA promises: that of a stream, and events
that streams wait for. The host sees a result only after it has waited for it. So a missing order shows:

- Memory whose content nobody may rely on is NaN: results not computed yet, memory just allocated, memory given back.
- Copies from pinned memory read it late, and copies to pinned memory write it late. Pageable copies make the host wait.
- Vector clocks find accesses that nothing orders, even where the schedule happened to do the right one first.
- Launches, waits of the host and bytes over the link are counted.
- torch's caching allocator is modelled down to its segments; with ``computes=False`` nothing is computed and shapes of
  any size fit, so that the memory of a run on a large device can be followed on a small computer.

The arithmetic is that of torch on the CPU, so a correct program gives the bits that it gives on the CPU. Not simulated:
the numerics of CUDA's kernels, temporary memory inside an operator, the device threads of autograd, and time.

The files: ``install`` takes the place of torch.cuda, ``tensor`` has the tensors and their operators, ``machine``
streams, events, graphs and schedules, ``memory`` the allocator, ``races`` the vector clocks.
"""

from simcuda.install import simulated_cuda
from simcuda.machine import SCHEDULES, Machine

__all__ = ["SCHEDULES", "Machine", "simulated_cuda"]
