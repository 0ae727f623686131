"""Printing that never ends a program."""

import os
import sys
from typing import TextIO


class Output:
    """A stream whose reader may leave (``| head``), whose disk may fill up and whose encoding may lack characters.

    Args:
        stream: what is written to; None, as Python has it for a descriptor that was closed (``>&-``): nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._is_standard = stream in (sys.stdout, sys.stderr)
        self._broken = stream is None
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes what the encoding has, with ``?`` for the rest; nothing any more once writing failed."""
        if self._stream is not None and not self._broken:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except OSError:
                self._give_up(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flushes, unless writing failed."""
        if self._stream is not None and not self._broken:
            try:
                self._stream.flush()
            except OSError:
                self._give_up(self._stream)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def _give_up(self, stream: TextIO) -> None:
        self._broken = True
        if self._is_standard:
            # Python flushes these streams once more at exit and would turn what is left in them into exit status 120.
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
            except OSError:  # no file behind it
                pass

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
