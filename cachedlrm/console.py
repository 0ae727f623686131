"""What a run prints: a live screen, plain lines, or nothing."""

import dataclasses
import io
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol, TextIO

import rich.console
from rich.live import Live

from cachedlrm.live_view import LiveView, RunHeader, format_seconds
from cachedlrm.metrics import Snapshot

_REDRAW_S = 0.25
_HISTORY = 200


class Console(Protocol):
    """Receives a run's snapshots. `close` restores the terminal, whatever happened."""

    def start(self, header: RunHeader) -> None:
        """The run is about to train."""

    def update(self, snapshot: Snapshot) -> None:
        """The run has come further."""

    def advance(self, step: int) -> None:
        """A step has been issued; its figures come with the next `update`."""

    def finish(self, summary: str) -> None:
        """The run has ended and written its files."""

    def close(self) -> None:
        """No more is coming."""


def open_console(ui: str, stream: TextIO | None = None) -> Console:
    """The console for ``--ui``: ``auto`` is live on a terminal and plain elsewhere."""
    stream = stream or sys.stdout
    if ui == "off":
        return SilentConsole()
    terminal = rich.console.Console(file=stream, highlight=False)
    if ui == "live" or (ui == "auto" and terminal.is_terminal and not terminal.is_dumb_terminal):
        return LiveConsole(terminal)
    return PlainConsole(stream)


class SilentConsole:
    """Prints nothing."""

    def start(self, header: RunHeader) -> None:
        """Nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def finish(self, summary: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class PlainConsole(SilentConsole):
    """One line a snapshot, for logs and pipes.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _print(self, text: str) -> None:
        try:
            print(text, file=self._stream, flush=True)
        except BrokenPipeError:  # nobody reads any more (| head): training goes on
            self._stream = io.StringIO()

    def start(self, header: RunHeader) -> None:
        """Prints what the run is."""
        self._print(f"{header.data}: {header.model}")
        self._print(header.cache)
        self._print(header.machine)

    def update(self, snapshot: Snapshot) -> None:
        """Prints one line."""
        auc = "" if snapshot.auc is None else f"  auc {snapshot.auc:.4f}"
        self._print(
            f"step {snapshot.step}/{snapshot.num_steps}  loss {snapshot.loss:.5f}{auc}  "
            f"{snapshot.samples_per_s:,.0f} samples/s  hit {snapshot.recent.hit_ratio:.2%}  "
            f"wait {snapshot.phase_ms.get('wait', 0.0):.2f} ms  eta {format_seconds(snapshot.eta_s)}"
        )

    def finish(self, summary: str) -> None:
        """Prints the summary."""
        self._print(summary)


class LiveConsole(SilentConsole):
    """A screen that is redrawn in place, by the training thread: a refresh thread would stall torch's operators.

    Args:
        terminal: rich's console.
        clock: seconds; a test brings its own.
    """

    def __init__(self, terminal: rich.console.Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._drawn = -_REDRAW_S
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._hit_ratios: deque[float] = deque(maxlen=_HISTORY)
        self._live: Live | None = None
        self._header: RunHeader | None = None
        self._view: LiveView | None = None

    def start(self, header: RunHeader) -> None:
        """Draws the header."""
        self._header = header
        self._view = LiveView(header, None)
        self._live = Live(self._view, console=self._terminal, auto_refresh=False)
        self._live.start(refresh=True)

    def update(self, snapshot: Snapshot) -> None:
        """Redraws, at most four times a second."""
        assert self._header is not None
        self._losses.append(snapshot.loss)
        self._hit_ratios.append(snapshot.recent.hit_ratio)
        self._view = LiveView(self._header, snapshot, tuple(self._losses), tuple(self._hit_ratios))
        self._redraw()

    def advance(self, step: int) -> None:
        """Moves the progress bar, between snapshots."""
        if self._view is not None:
            self._view = dataclasses.replace(self._view, step=step)
            self._redraw()

    def _redraw(self) -> None:
        if self._live is not None and self._view is not None and self._clock() - self._drawn >= _REDRAW_S:
            self._drawn = self._clock()
            self._live.update(self._view, refresh=True)

    def finish(self, summary: str) -> None:
        """Leaves the last screen standing, with the summary below."""
        if self._live is not None and self._view is not None:
            self._live.update(self._view, refresh=True)
        self.close()
        self._terminal.print(f"\n{summary}", highlight=False, markup=False)

    def close(self) -> None:
        """Restores the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
