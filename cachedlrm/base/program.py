"""Shared by all commands: signals, the one line for a mistake, and exit statuses.

Imports nothing heavy, so that signals are in hand before torch is loaded.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import NoReturn, TextIO, cast

from cachedlrm.base.errors import UserError
from cachedlrm.base.output import SafeStream
from cachedlrm.base.text import printable

_INTERRUPTED = 130
_NAMES = "SIGINT SIGTERM SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGXCPU SIGPWR SIGBREAK".split()  # noqa: SIM905
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""Those by which a person, a terminal that closes or a scheduler of jobs asks a process to end, all treated alike.

Slurm and others send one of a user's choice before the time of a job is over. A system lacks some of them.
"""
_NOT_IGNORED = (signal.SIGINT, signal.SIGTERM)
"""Taken even where the process was started with them ignored, as shells start jobs in the background. Others are not:
``nohup`` means it."""
_INSISTENT = tuple(number for number in SIGNALS if number in _NOT_IGNORED or number.name in ("SIGQUIT", "SIGBREAK"))
"""A person's. The others come more than once by themselves: SIGHUP from the shell and from the system when a terminal
closes, SIGXCPU every second."""


class Interrupts:
    """While `installed`, `SIGNALS` raise KeyboardInterrupt where they come, but inside `held` at its end."""

    def __init__(self) -> None:
        self._came = False
        self._held = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Signals come here, and go where they went before afterwards."""
        before = {number: signal.signal(number, self._note) for number in _heard()}
        try:
            with recognised():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def came(self) -> bool:
        """Whether there was a signal."""
        return self._came

    def held(self) -> "_Held":
        """Lets the block finish before a signal interrupts; a person's second signal interrupts it all the same."""
        return _Held(self)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Lets signals interrupt the block, even inside `held`."""
        before, self._held = self._held, False
        try:
            if self._came:
                raise KeyboardInterrupt
            with recognised():
                yield
        finally:
            self._held = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_first, self._came = not self._came, True
        if not is_first and number not in _INSISTENT:
            return
        if not (self._held and is_first):
            raise KeyboardInterrupt


class _Held:
    """See `Interrupts.held`; not a generator, as every step enters one."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts

    def __enter__(self) -> None:
        self._before, self._interrupts._held = self._interrupts._held, True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._interrupts._held = self._before
        if kind is None and self._interrupts.came and not self._before:
            raise KeyboardInterrupt


@contextmanager
def recognised() -> Iterator[None]:
    """A KeyboardInterrupt that came to numba's dispatcher, which makes a SystemError of it, is one again."""
    try:
        yield
    except SystemError as error:
        cause: BaseException | None = error
        while isinstance(cause, SystemError):
            cause = cause.__cause__
        if not isinstance(cause, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(*cause.args) from error


def run_program(body: Callable[[Interrupts], None], interrupted: str, worded: Callable[[str], str] = str) -> int:
    """Runs a command's work; its exit status: 0 done, 2 the user's input is wrong, 130 interrupted.

    Args:
        body: the work.
        interrupted: what to say of a KeyboardInterrupt without words of its own.
        worded: the message of a mistake as the user is to read it.
    """
    interrupts = Interrupts()
    if not gc.isenabled():  # `start_program` came before
        gc.freeze()
        gc.enable()
    try:
        with interrupts.installed():
            body(interrupts)
    except UserError as error:
        say(f"error: {worded(str(error))}", sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        say(str(error) or interrupted, sys.stderr)
        return _INTERRUPTED
    return 0


def say(line: str, stream: TextIO | None) -> None:
    """Prints one line, whatever the text and the state of the stream."""
    print(printable(line), file=cast("TextIO", SafeStream(stream)), flush=True)


def start_program() -> None:
    """Before the imports of a command: until `run_program` takes over, nothing has been written.

    A signal ends the process: loading torch takes seconds, and a KeyboardInterrupt in there prints a page of other
    people's code, or is swallowed. Garbage is not looked for: modules stay, and walking through them again and again
    is a sixth of the start.
    """
    for number in _heard():
        signal.signal(number, _quit)
    gc.disable()


def _heard() -> list[signal.Signals]:
    """Those of `SIGNALS` that were not ignored when the process was started."""
    return [number for number in SIGNALS if number in _NOT_IGNORED or signal.getsignal(number) != signal.SIG_IGN]


def end_program(status: int) -> NoReturn:
    """After a command: ends the process as it is. Taking torch's modules apart takes as long as a thousand steps.

    Under a profiler or a tracer of Python it ends as others do, since those report at the end.
    """
    if _is_watched():
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        SafeStream(stream).flush()
    os._exit(status)


def _is_watched() -> bool:
    """Whether a profiler or a tracer is at work."""
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    tools = [] if monitoring is None else [monitoring.get_tool(number) for number in range(6)]
    return any(tool is not None for tool in (sys.getprofile(), sys.gettrace(), *tools))


def _quit(number: int, frame: FrameType | None) -> None:
    try:
        say("interrupted", sys.stderr)
    finally:
        os._exit(_INTERRUPTED)
