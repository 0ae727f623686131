"""One line, instead of a core dump, where a mapped file cannot be read.

A file that is read through a map tells of a failing disk, or of an end that somebody cut off, by the signal SIGBUS. The
instruction that touched the page cannot be finished, so Python's own handlers, which run between instructions, never
would. Numba compiles one that needs no Python: it writes a line and ends the process.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from cachedlrm.text import printable

_write: Any = types.ExternalFunction("write", types.int64(types.int32, types.uintp, types.uintp))
_exit: Any = types.ExternalFunction("_exit", types.void(types.int32))
_kept: list[object] = []  # the handler and its message, for as long as the process lives


def explain_bus_errors(path: Path) -> None:
    """From now on a read of ``path`` that fails ends the process with one line and status 1."""
    if not hasattr(signal, "SIGBUS") or os.name != "posix":
        return
    import ctypes  # noqa: PLC0415 - not everywhere

    line = f"error: cannot read {path}: the disk failed or the file was cut short; restore it, then use --resume"
    text = np.frombuffer(f"{printable(line)}\n".encode(), np.uint8)
    address, length = text.ctypes.data, len(text)

    def report(number: int) -> None:
        _write(2, address, length)
        _exit(1)

    handler = numba.cfunc(types.void(types.int32))(report)
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    sys.stderr.flush() if sys.stderr is not None else None
    set_handler(signal.SIGBUS, handler.address)
    _kept[:] = [text, handler]
