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
        self._last = 0.0
        self._last_event: torch.cuda.Event | None = None
        self._phase: str | None = None
        self.ranges: PhaseRanges | None = None

    def enter(self, phase: str | None) -> None:
        """Ends the phase before and begins ``phase``; None ends the step."""
        if self._on_cuda:
            self._mark()
        else:
            now = time.perf_counter()
            if self._phase is not None:
                self._totals[self._phase] += (now - self._last) * 1e3
            self._last = now
        self._phase = phase
        if self.ranges is not None:
            self.ranges.enter(phase)

    def _mark(self) -> None:
        """Puts the end of the phase before into the training stream."""
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        if self._phase is None:
            self._starts.append(event)
        else:
            assert self._last_event is not None
            self._pending.append((self._phase, self._last_event, event))
        self._last_event = event

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
