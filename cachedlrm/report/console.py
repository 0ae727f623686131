"""The display of a run: a live screen, plain lines, or nothing. A display that fails never ends a run."""

import dataclasses
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO, cast

import rich.console
from rich.control import Control
from rich.live import Live
from rich.text import Text

from cachedlrm.base.output import SafeStream
from cachedlrm.base.text import printable
from cachedlrm.base.units import format_seconds
from cachedlrm.report.live_view import History, LiveView, RunHeader
from cachedlrm.report.metrics import Snapshot

_REDRAW_S = 0.25
_REPEAT_S = 10.0  # between plain lines of something that takes long


class Console:
    """Takes a run's snapshots, and prints nothing; the base of those that do.

    `close` restores the terminal, whatever happened; so does leaving ``with``.
    """

    def start(self, header: RunHeader) -> None:
        """The run is about to train."""

    def update(self, snapshot: Snapshot) -> None:
        """The run has come further."""

    def advance(self, step: int) -> None:
        """A step has been issued; its figures come with the next `update`."""

    def busy(self, step: int, what: str, share: float | None = None) -> None:
        """Something other than training goes on after this step, until the next `start`, `update` or `advance`.

        Args:
            step: steps trained.
            what: in a word or two: ``evaluating``.
            share: how far it is, from 0 to 1, if that is known.
        """

    def message(self, text: str) -> None:
        """Something happened that the user should know."""

    def finish(self, summary: str) -> None:
        """The run has ended and written its files."""

    def close(self) -> None:
        """Nothing more is coming."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_console(ui: str, stream: TextIO | None = None) -> Console:
    """The console for ``--ui``: ``auto`` is live on a terminal and plain elsewhere."""
    stream = stream or sys.stdout
    if ui == "off" or stream is None:  # stdout is None if its descriptor was closed before the start
        return Console()
    # Asked of the stream: rich also takes a file for a terminal when FORCE_COLOR is set, as CI systems do.
    is_terminal = stream.isatty()
    output = cast("TextIO", SafeStream(stream))
    terminal = rich.console.Console(file=output, highlight=False)
    if ui == "live" or (ui == "auto" and is_terminal and not terminal.is_dumb_terminal):
        return LiveConsole(terminal)
    return PlainConsole(output)


class PlainConsole(Console):
    """One line a snapshot, for logs and pipes.

    Args:
        stream: where to.
        clock: seconds; a test brings its own.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._doing, self._said = "", 0.0

    def _print(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)

    def start(self, header: RunHeader) -> None:
        """Prints what the run is."""
        self._print(f"{header.data}: {header.model}")
        self._print(header.cache)
        self._print(header.machine)

    def update(self, snapshot: Snapshot) -> None:
        """Prints one line."""
        self._doing = ""
        evaluation, auc = snapshot.evaluation_here, ""
        if evaluation is not None:
            auc = "".join(
                f"  {name} {value:{form}}"
                for name, value, form in (("auc", evaluation.auc, ".4f"), ("logloss", evaluation.logloss, ".5f"))
                if value is not None
            )
        self._print(
            f"step {snapshot.step}/{snapshot.num_steps}  loss {snapshot.loss:.5f}{auc}  "
            f"{snapshot.samples_per_s:,.0f} samples/s  hit {snapshot.recent.hit_ratio:.2%}  "
            f"wait {snapshot.phase_ms.get('wait', 0.0):.2f} ms  eta {format_seconds(snapshot.eta_s)}"
        )

    def busy(self, step: int, what: str, share: float | None = None) -> None:
        """Prints a line when it begins, and one every ten seconds of how far it is."""
        begins = what != self._doing
        if begins or (share is not None and self._clock() - self._said >= _REPEAT_S):
            self._doing, self._said = what, self._clock()
            where = f"after step {step}: " if step else ""
            self._print(f"{where}{what}" + (f" {share:.0%}" if share and not begins else ""))

    def advance(self, step: int) -> None:
        """The activity has ended."""
        self._doing = ""

    def message(self, text: str) -> None:
        """Prints its lines."""
        for line in text.splitlines():
            self._print(line)

    def finish(self, summary: str) -> None:
        """Prints the summary."""
        for line in summary.splitlines():
            self._print(line)


class LiveConsole(Console):
    """A screen that is redrawn in place, by the training thread: a refresh thread would stall torch's operators.

    Args:
        terminal: rich's console.
        clock: seconds; a test brings its own.
    """

    def __init__(self, terminal: rich.console.Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._drawn = -_REDRAW_S
        self._size = terminal.size
        self._losses, self._hit_ratios = History(), History()
        self._live: Live | None = None
        self._header: RunHeader | None = None
        self._view: LiveView | None = None

    def start(self, header: RunHeader) -> None:
        """Draws the header."""
        if self._live is not None:
            self._live.stop()
        self._header = header
        self._view = LiveView(header, None)
        self._live = Live(self._view, console=self._terminal, auto_refresh=False, vertical_overflow="crop")
        self._live.start(refresh=True)

    def update(self, snapshot: Snapshot) -> None:
        """Redraws, at most four times a second."""
        assert self._header is not None
        self._losses.add(snapshot.loss)
        self._hit_ratios.add(snapshot.recent.hit_ratio)
        self._view = LiveView(self._header, snapshot, self._losses.values(), self._hit_ratios.values())
        self._redraw()

    def advance(self, step: int) -> None:
        """Moves the progress bar, between snapshots."""
        if self._view is not None:
            self._view = dataclasses.replace(self._view, step=step, doing="")
            self._redraw()

    def busy(self, step: int, what: str, share: float | None = None) -> None:
        """Says so at once when it begins, for it may be long until the next call; before the screen in a line."""
        doing = what if share is None else f"{what} {share:.0%}"
        if self._view is None:
            if self._live is None:
                self._live = Live(console=self._terminal, auto_refresh=False, transient=True)
                self._live.start()
            if self._clock() - self._drawn >= _REDRAW_S:
                self._drawn = self._clock()
                self._live.update(Text(doing, "dim"), refresh=True)
            return
        begins = not self._view.doing.startswith(what)
        self._view = dataclasses.replace(self._view, step=step, doing=doing)
        if begins:
            self._draw()
        else:
            self._redraw()

    def message(self, text: str) -> None:
        """Prints it above the screen."""
        self._terminal.print(Text("\n".join(map(printable, text.splitlines()))))

    def _redraw(self) -> None:
        if self._clock() - self._drawn >= _REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        if self._live is not None and self._view is not None:
            self._drawn = self._clock()
            if self._terminal.size != self._size:
                # Lines were wrapped or came back from above, so nobody knows where the last screen begins.
                self._size = self._terminal.size
                self._terminal.control(Control.clear(), Control.home())
            self._live.update(self._view, refresh=True)

    def finish(self, summary: str) -> None:
        """Leaves the last screen standing, with the summary below."""
        self.close()
        # Soft wrap: a path in it stays one piece for copying.
        self._terminal.print(Text("\n" + "\n".join(map(printable, summary.splitlines()))), soft_wrap=True)

    def close(self) -> None:
        """Leaves the newest view standing and restores the terminal."""
        if self._live is not None:
            if self._view is not None:
                self._view = dataclasses.replace(self._view, doing="")  # an interrupt may have ended it
            try:
                self._draw()
            finally:
                live, self._live = self._live, None
                live.stop()
