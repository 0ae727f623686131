"""How far a preparation is, by a clock of our own."""

import io

import pytest

from cachedlrm.prepare import progress
from cachedlrm.prepare.progress import Display


@pytest.fixture
def clock(monkeypatch):
    """Seconds, in a list of one."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_now_and_then(clock):
    stream = io.StringIO()
    with Display("plain", stream).stage("reading", 1000) as stage:
        stage.update(100, 10)  # of a resumed stage
        clock[0] += 9
        stage.update(200, 20)  # too early for another line
        clock[0] += 1
        stage.update(300, 50)
        clock[0] += 20
        stage.update(1000, 90)
    assert stream.getvalue().splitlines() == [
        "reading: 50 samples, 4 a second, 0:00:35 left (30%)",
        "reading: 90 samples, 3 a second, 0:00:00 left (100%)",
        "reading: done in 0:00:30",
    ]


def test_what_is_counted_is_named_and_an_unknown_rate_said(clock):
    stream = io.StringIO()
    with Display("auto", stream).stage("numbering", 8, "lookups") as stage:
        clock[0] += 10
        stage.update(0)
    assert stream.getvalue().startswith("numbering: 0 lookups, 0 a second, ? left (0%)\n")


def test_a_display_that_is_off_says_nothing(clock):
    stream = io.StringIO()
    display = Display("off", stream)
    with display.stage("writing", 8) as stage:
        clock[0] += 100
        stage.update(8)
    display.say("done")
    assert stream.getvalue() == ""
