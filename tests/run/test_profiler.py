"""A trace by torch's profiler, with the spans of another thread put into it."""

import json
import os
import threading
import time

import pytest
import torch
from torch.autograd.profiler import record_function

from cachedlrm.cache.counters import Span
from cachedlrm.run.profiler import PhaseRanges, Trace

SLACK_US = 50.0  # between two clocks


def test_spans_that_ended_before_the_trace_or_began_after_it_are_left_out():
    trace = Trace(torch.device("cpu"))
    trace._began, trace._ended = 10.0, 20.0
    trace.add((Span("read", 8, 9), Span("plan", 9, 11), Span("evict", 19, 21), Span("admit", 21, 22)))
    assert [span.name for span in trace._spans] == ["plan", "evict"]


def test_ranges_and_spans_lie_on_one_clock(tmp_path):
    trace, ranges, path = Trace(torch.device("cpu")), PhaseRanges(), tmp_path / "trace.json"
    trace.start()
    assert trace.lasts
    with record_function("outer"):
        began = time.perf_counter()
        for phase in ("first", "second", None):
            ranges.enter(phase)
        ended = time.perf_counter()
    with record_function("dropped"):
        pass
    trace.stop()
    assert not trace.lasts
    assert trace.lasted_until(ended)
    assert not trace.lasted_until(time.perf_counter())
    trace.add((Span("span", began, ended),))
    trace.drop("dropped")
    trace.write(path, 12345)
    events = json.loads(path.read_text())["traceEvents"]
    found = {event["name"]: event for event in events if event.get("cat") == "user_annotation"}
    assert found.keys() == {"outer", "first", "second", "span"}
    start, end = {}, {}
    for name, event in found.items():
        assert event["pid"] == os.getpid()
        start[name], end[name] = event["ts"], event["ts"] + event["dur"]
    assert start["outer"] - SLACK_US < start["span"] < start["first"] + SLACK_US
    assert end["first"] <= start["second"]
    assert end["second"] - SLACK_US < end["span"] < end["outer"] + SLACK_US
    assert end["span"] - start["span"] == pytest.approx((ended - began) * 1e6, abs=1)
    threads = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert threads[threading.get_native_id()] == "training"
    assert threads[12345] == "prefetch"
    assert found["span"]["tid"] == 12345


def test_a_file_that_the_profiler_did_not_finish_is_an_error(tmp_path, monkeypatch):
    trace, path = Trace(torch.device("cpu")), tmp_path / "trace.json"
    monkeypatch.setattr(trace._profile, "export_chrome_trace", lambda name: path.write_text('{"traceEvents": ['))
    with pytest.raises(OSError, match="the profiler's file is not complete, the disk may be full"):
        trace.write(path, 1)
