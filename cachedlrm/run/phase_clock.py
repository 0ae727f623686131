"""A clock for the phases of a step."""

import time

import torch

from cachedlrm.cache.counters import PHASES
from cachedlrm.run.profiler import PhaseRanges


class PhaseClock:
    """Milliseconds by phase, without synchronising the device inside a step.

    On CUDA a phase lies between two events on the training stream; their distance is read in `collect`, when the host
    waits for the device anyway.

    Attributes:
        ranges: of a trace, while one is recorded; they follow the phases.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._totals = dict.fromkeys(PHASES, 0.0)
        self._pending: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._starts: list[torch.cuda.Event] = []
        self._spare: list[torch.cuda.Event] = []
        self._last = self._now()
        self._phase: str | None = None
        self.ranges: PhaseRanges | None = None

    def _now(self) -> "float | torch.cuda.Event":
        if not self._on_cuda:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self, phase: str | None) -> None:
        """Ends the phase before and begins ``phase``; None ends the step."""
        now = self._now()
        if self._phase is None:
            if not isinstance(now, float):
                self._starts.append(now)
        elif isinstance(now, float):
            assert isinstance(self._last, float)
            self._totals[self._phase] += (now - self._last) * 1e3
        else:
            assert isinstance(self._last, torch.cuda.Event)
            self._pending.append((self._phase, self._last, now))
        self._phase, self._last = phase, now
        if self.ranges is not None:
            self.ranges.enter(phase)

    def add(self, milliseconds: dict[str, float]) -> None:
        """Adds phases measured elsewhere."""
        for phase, value in milliseconds.items():
            self._totals[phase] += value

    def collect(self) -> dict[str, float]:
        """Totals since the last call. On CUDA the device must have been synchronised."""
        for phase, start, end in self._pending:
            self._totals[phase] += start.elapsed_time(end)
            self._spare.append(end)
        self._spare += self._starts
        self._pending.clear()
        self._starts.clear()
        totals, self._totals = self._totals, dict.fromkeys(PHASES, 0.0)
        return totals
