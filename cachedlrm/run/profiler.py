"""A trace of what the threads do: torch's profiler, with named ranges, in Chrome's trace event format.

Torch's profiler records the thread that starts it, and its setting for all threads is experimental. So the training
thread has ranges of the profiler's, to which operators and kernels belong, and the prefetch thread has those that it
measures anyway (`Span`), put into the file afterwards.
"""

import json
import math
import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler import record_function

from cachedlrm.cache.counters import Span

_MARK = "cachedlrm: clock"
_NUM_MARKS = 3  # the first ones are slow


class PhaseRanges:
    """The phase that the training thread is in, as a range of the profiler's."""

    def __init__(self) -> None:
        self._open = ExitStack()

    def enter(self, phase: str | None) -> None:
        """The phase before ends and ``phase`` begins; None: none begins."""
        self._open.close()
        if phase is not None:
            self._open.enter_context(record_function(phase))


class Trace:
    """One trace of this thread, and of another one's spans. Call `start`, `stop`, `add` at any time, then `write`.

    Args:
        device: whose work is traced beside the host's.
    """

    def __init__(self, device: torch.device) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes its own progress to stderr
        from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - only a traced run needs it

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile = profile(activities=activities)
        self._marks: list[float] = []
        self._spans: list[Span] = []
        self._thread = threading.get_native_id()
        self._dropped = {_MARK}
        self._began, self._ended = 0.0, math.inf

    def start(self) -> None:
        """Begins; takes a second the first time in a process."""
        self._profile.start()
        self._mark()
        self._began = time.perf_counter()

    def stop(self) -> None:
        """Ends."""
        self._ended = time.perf_counter()
        self._mark()
        self._profile.stop()

    def add(self, spans: tuple[Span, ...]) -> None:
        """The spans of a thread, as far as they lie within the trace."""
        self._spans += [span for span in spans if span.end > self._began and span.start < self._ended]

    def drop(self, name: str) -> None:
        """Leaves out ranges of this name."""
        self._dropped.add(name)

    @property
    def lasts(self) -> bool:
        """Whether it has not been stopped."""
        return self._ended == math.inf

    def lasted_until(self, moment: float) -> bool:
        """Whether it had not been stopped by then, in seconds of `time.perf_counter`."""
        return moment < self._ended

    def write(self, path: Path, spans_thread: int) -> None:
        """Writes the trace, as JSON.

        Args:
            path: of the file.
            spans_thread: the operating system's number of the thread that did what `add` was told.

        Raises:
            OSError: the file cannot be written.
        """
        self._profile.export_chrome_trace(str(path))
        try:
            trace = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError) as error:  # the profiler keeps it to itself
            path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)
            raise OSError("the profiler's file is not complete, the disk may be full") from error
        marks = sorted(event["ts"] for event in trace["traceEvents"] if event.get("name") == _MARK)
        # What lies between reading the clock and the range's beginning only makes a mark late.
        shift = min(ts - mark * 1e6 for ts, mark in zip(marks, self._marks, strict=True))
        events = [event for event in trace["traceEvents"] if event.get("name") not in self._dropped]
        events += [self._event(span, spans_thread, shift) for span in self._spans]
        names = {spans_thread: "prefetch", self._thread: "training"}  # one thread may be both
        events = [event for event in events if event.get("name") != "thread_name" or event["tid"] not in names]
        events += [_thread_name(thread, name) for thread, name in names.items()]
        path.write_text(json.dumps(trace | {"traceName": "cachedlrm", "traceEvents": events}), encoding="utf-8")

    def _mark(self) -> None:
        """The same moments by two clocks: Python's, and the one the profiler has in the file."""
        for _ in range(_NUM_MARKS):
            self._marks.append(time.perf_counter())
            with record_function(_MARK):
                pass

    @staticmethod
    def _event(span: Span, thread: int, shift: float) -> dict[str, Any]:
        return {
            "ph": "X",
            "cat": "user_annotation",  # as the profiler's ranges have
            "name": span.name,
            "pid": os.getpid(),
            "tid": thread,
            "ts": span.start * 1e6 + shift,
            "dur": (span.end - span.start) * 1e6,
        }


def _thread_name(thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": os.getpid(), "tid": thread, "ts": 0, "args": {"name": name}}
