"""Printing that never ends a program."""

import os
import sys
from typing import TextIO


class SafeStream:
    """A stream that never raises: its reader may leave (``| head``), its disk fill up, its encoding lack characters.

    Args:
        stream: where the text goes; None, which is what Python has for a closed descriptor (``>&-``): nowhere.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._is_standard = stream in (sys.stdout, sys.stderr)
        self._broken = stream is None
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes the text, with ``?`` for what the encoding lacks; nothing once a write has failed."""
        if self._stream is not None and not self._broken:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except OSError:
                self._give_up(self._stream)
        return len(text)

    def flush(self) -> None:
        """Flushes, unless a write has failed."""
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
            # Python flushes these streams once more at exit and would exit with status 120 over what is left in them.
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
            except OSError:  # it has no descriptor
                pass

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
