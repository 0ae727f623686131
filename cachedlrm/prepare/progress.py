"""How far a preparation is: a bar on a terminal, a line now and then elsewhere, or nothing."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from cachedlrm.base.output import SafeStream
from cachedlrm.base.program import say

_LINE_S, _REFRESH_S = 10.0, 0.25


class Stage:
    """A stage of the work; any thread may report its progress.

    Args:
        progress: the display.
        name: for people.
        total: of ``done`` at the end.
        unit: that is counted.
    """

    def __init__(self, progress: "Display", name: str, total: int, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, max(1, total), unit
        self._lock = threading.Lock()
        self._first: tuple[float, int, int] | None = None
        self._shown_at = time.monotonic()

    def update(self, done: int, samples: int | None = None) -> None:
        """Reports how much of ``total`` is done, and how many samples (or other units) that is; None: as many."""
        now = time.monotonic()
        samples = done if samples is None else samples
        with self._lock:
            if self._first is None:
                self._first = (now, done, samples)  # of a resumed stage not zero
            if now - self._shown_at < self._progress.interval_s:
                return
            self._shown_at = now
            self._progress.show(done / self._total, self._words(now, done, samples))

    def _words(self, now: float, done: int, samples: int) -> str:
        assert self._first is not None
        start, first_done, first_samples = self._first
        elapsed = max(now - start, 1e-9)
        rate = (done - first_done) / elapsed
        left = timedelta(seconds=round((self._total - done) / rate)) if rate > 0 else "?"
        return (
            f"{self._name}: {samples:,} {self._unit}, {(samples - first_samples) / elapsed:,.0f} a second, {left} left"
        )


class Display:
    """The display.

    Args:
        mode: ``live``, ``plain`` or ``off``; ``auto``: live on a terminal, else plain.
        stream: to write to.
    """

    def __init__(self, mode: str, stream: TextIO | None) -> None:
        output = SafeStream(stream)
        self._stream, self._mode = stream, mode
        if mode == "auto":
            self._mode = "live" if output.isatty() else "plain"
        self._bars: Bars | None = None
        self._output = output
        self.interval_s = _REFRESH_S if self._mode == "live" else _LINE_S

    def say(self, line: str) -> None:
        """Prints a line, unless the display is off."""
        if self._mode != "off":
            say(line, self._stream)

    def show(self, share: float, words: str) -> None:
        """Shows how far a stage is."""
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=share, description=words, refresh=True)
        elif self._mode == "plain":
            self.say(f"{words} ({share:.0%})")

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "samples") -> Iterator[Stage]:
        """Shows a stage while it lasts, then the time it took."""
        start = time.monotonic()
        if self._mode == "live":
            console = Console(file=cast("TextIO", self._output))
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
            self._bars = Bars(*columns, console=console, transient=True, auto_refresh=False)
            self._bars.add_task(name, total=1.0)
            self._bars.start()
        try:
            yield Stage(self, name, total, unit)
        finally:
            if self._bars is not None:
                self._bars.stop()
                self._bars = None
        self.say(f"{name}: done in {timedelta(seconds=round(time.monotonic() - start))}")
