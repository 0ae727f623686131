"""Accesses to device memory that no event and no wait of the host puts in order.

As torch.cuda._sanitizer finds them, but four bytes at a time: of one slab, two streams read and write rows at the same
time, and may, if the rows differ. An order that is missing is found whatever the schedule did first.

Every stream counts its work; a vector clock says, for each stream, how much of its work is certainly done. A piece of
work knows what its stream knew when it was issued: earlier work of the stream, events waited for, and what the host
thread that issued it had waited for. An access is in order if the work knows of the accesses before it.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Clock = dict[int, int]
"""How much of each stream's work is done, by the stream's number."""

_MOST_STREAMS = 256


def merge(clock: Clock, other: Clock) -> None:
    """Adds to ``clock`` what ``other`` knows."""
    for stream, tick in other.items():
        if tick > clock.get(stream, 0):
            clock[stream] = tick


class History:
    """The accesses to one allocation: of every four bytes the last write, and the last read by each stream.

    As long as one stream alone has come here, and for whole tensors, its latest accesses stand for all.
    """

    def __init__(self) -> None:
        self.latest: Clock = {}
        self.latest_write = 0  # of the only stream
        self.written: NDArray[np.int32] | None = None
        self.writer: NDArray[np.int16] | None = None
        self.read: dict[int, NDArray[np.int32]] = {}

    def begin(self, num_bytes: int) -> None:
        """A second stream comes, or rows alone: from now on every element has a history of its own."""
        ((only, tick),) = self.latest.items()
        size = -(-num_bytes // 4)
        self.written, self.writer = np.full(size, self.latest_write, np.int32), np.full(size, only, np.int16)
        self.read[only] = np.full(size, tick, np.int32)


class Part(NamedTuple):
    """A tensor on the device, or ``rows`` [n] of it."""

    tensor: torch.Tensor
    history: History
    rows: torch.Tensor | None = None


class Access(NamedTuple):
    """What a piece of work reads and writes."""

    reads: list[Part]
    writes: list[Part]


class RaceDetector:
    """Checks work when it is done, because then the indices are known; the clocks are those of its issue.

    Attributes:
        found: what is wrong, a line each.
        num_checked: accesses checked.
    """

    def __init__(self) -> None:
        self.found: list[str] = []
        self.num_checked = 0

    def check(self, name: str, access: Access, clock: Clock, stream: int) -> None:
        """Work ``name`` of ``stream``, issued when it knew ``clock``, does ``access``."""
        for part in access.reads:
            self._check(name, part, clock, stream, writes=False)
        for part in access.writes:
            self._check(name, part, clock, stream, writes=True)

    def _check(self, name: str, part: Part, clock: Clock, stream: int, *, writes: bool) -> None:
        tensor, history, rows = part
        if not tensor.numel():
            return
        self.num_checked += 1
        tick = clock[stream]
        if history.written is None:
            if rows is None and not history.latest.keys() - {stream}:
                history.latest[stream] = tick
                history.latest_write = tick if writes else history.latest_write
                return
            history.begin(tensor.untyped_storage().nbytes())
        assert history.written is not None
        assert history.writer is not None
        elements = _elements(tensor, rows)
        if any(latest > clock.get(other, 0) for other, latest in history.latest.items() if other != stream):
            self._compare(name, part, elements, clock, stream, writes=writes)
        history.latest[stream] = tick
        if writes:
            history.written[elements] = tick
            history.writer[elements] = stream
        else:
            if stream not in history.read:
                history.read[stream] = np.zeros(len(history.written), np.int32)
            history.read[stream][elements] = tick

    def _compare(
        self, name: str, part: Part, elements: slice | NDArray[np.int64], clock: Clock, stream: int, *, writes: bool
    ) -> None:
        history = part.history
        assert history.written is not None
        assert history.writer is not None
        known = np.zeros(_MOST_STREAMS, np.int32)
        for number, tick in clock.items():
            known[number] = tick
        writers = history.writer[elements]
        early = history.written[elements] > known[writers]
        if early.any():
            self._report(name, part.tensor, stream, "write", int(writers[early][0]))
        if writes:
            for other, ticks in history.read.items():
                if other != stream and (ticks[elements] > known[other]).any():
                    self._report(name, part.tensor, stream, "read", other)

    def _report(self, name: str, tensor: torch.Tensor, stream: int, what: str, other: int) -> None:
        shape = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        line = f"{name} of {shape} on stream {stream} is not ordered after a {what} on stream {other}"
        if line not in self.found:
            self.found.append(line)


def _elements(tensor: torch.Tensor, rows: torch.Tensor | None) -> slice | NDArray[np.int64]:
    """The groups of four bytes of an allocation that a tensor, or some rows of it, are in."""
    size = tensor.element_size()
    start = tensor.storage_offset() * size
    if rows is not None:
        width = tensor.stride(0) * size // 4
        first = start // 4 + rows.numpy().astype(np.int64) * width
        return (first[:, None] + np.arange(tensor.shape[1] * size // 4)).ravel()
    if tensor.is_contiguous():
        return slice(start // 4, -(-(start + tensor.numel() * size) // 4))
    offsets = np.zeros(1, np.int64)
    for extent, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = (offsets[:, None] + np.arange(extent if stride else 1) * stride).ravel()
    if size > 4:
        return (start + (offsets[:, None] * size + np.arange(0, size, 4)).ravel()) // 4
    return (start + offsets * size) // 4
