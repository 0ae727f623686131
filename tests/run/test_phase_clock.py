"""Milliseconds by phase."""

import time

import pytest
import torch

from cachedlrm.cache.counters import PHASES
from cachedlrm.run.phase_clock import PhaseClock


class Ranges:
    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def enter(self, phase: str | None) -> None:
        self.seen.append(phase)


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The clock's time in seconds; a test sets it."""
    time_of = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: time_of[0])
    return time_of


def test_each_phase_has_the_time_until_the_next(now):
    clock = PhaseClock(torch.device("cpu"))
    clock.ranges = ranges = Ranges()
    for phase, seconds in (("forward", 2), ("backward", 3), ("forward", 4), (None, 5), ("dense_step", 6), (None, 0)):
        clock.enter(phase)
        now[0] += seconds
    nothing = dict.fromkeys(PHASES, 0.0)
    assert clock.collect() == nothing | {"forward": 6000.0, "backward": 3000.0, "dense_step": 6000.0}
    assert clock.collect() == nothing
    assert ranges.seen == ["forward", "backward", "forward", None, "dense_step", None]


def test_phases_measured_elsewhere_are_added(now):
    clock = PhaseClock(torch.device("cpu"))
    clock.enter("wait")
    clock.add({"plan": 1.5, "wait": 2.0})
    now[0] += 0.25
    clock.enter(None)
    clock.add({"plan": 1.0})
    assert {phase: ms for phase, ms in clock.collect().items() if ms} == {"plan": 2.5, "wait": 252.0}
