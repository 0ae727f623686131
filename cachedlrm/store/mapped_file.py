"""A file that is read through a map: which part is read next, and one line instead of a core dump if it cannot be read.

LMDB maps its file for reads at random, where the system loads a page at each first touch, one after the other;
`will_read` has a whole segment loaded at once.

A failing disk, or a file that was cut short, shows in a map as the signal SIGBUS. The instruction that touched the page
cannot finish, so Python's own handlers, which run between instructions, never would. Numba compiles one that needs no
Python: it writes a line and ends the process.
"""

import ctypes
import mmap
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from cachedlrm.base.text import printable

_LIBRARY: Any = None if sys.platform == "win32" else ctypes.CDLL(None)  # C's

_write: Any = types.ExternalFunction("write", types.int64(types.int32, types.uintp, types.uintp))
_exit: Any = types.ExternalFunction("_exit", types.void(types.int32))
_kept: list[object] = []  # handlers and their messages, for as long as the process lives


def will_read(address: int, num_bytes: int) -> None:
    """Asks for the pages of ``num_bytes`` at ``address`` (madvise(2), a hint); on Windows nothing."""
    if sys.platform != "win32":
        start = address - address % mmap.PAGESIZE
        size = address + num_bytes - start
        _LIBRARY.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_WILLNEED))


def explain_bus_errors(path: Path) -> None:
    """From now on a read of ``path`` that fails ends the process with one line and status 1."""
    if hasattr(signal, "SIGBUS"):
        line = f"error: cannot read {path}: the disk failed or the file was cut short; restore it, then use --resume"
        _handle(line, (signal.SIGBUS,))


@contextmanager
def damage_explained(path: Path) -> Iterator[None]:
    """`explain_bus_errors` while inside, and the same line where LMDB crashes over damaged pages, which it trusts."""
    if not hasattr(signal, "SIGBUS"):
        yield
        return
    line = f"error: cannot read {path}: the disk failed, or the file was cut short or is damaged; put back a copy"
    before = _handle(line, (signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT))
    try:
        yield
    finally:
        for number, handler in before.items():
            _set_handler(number, handler)


def _handle(line: str, numbers: Sequence[int]) -> dict[int, int | None]:
    """From now on these signals end the process with one line and status 1; returns their handlers before."""
    text = np.frombuffer(f"{printable(line)}\n".encode(), np.uint8)
    address, length = text.ctypes.data, len(text)

    def report(number: int) -> None:
        _write(2, address, length)
        _exit(1)

    handler = numba.cfunc(types.void(types.int32))(report)
    _kept.append((text, handler))
    if sys.stderr is not None:
        sys.stderr.flush()
    return {number: _set_handler(number, handler.address) for number in numbers}


def _set_handler(number: int, handler: int | None) -> int | None:
    """The C library's ``signal``, for a handler that is not Python; returns the address of the one before."""
    function = _LIBRARY.signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before: int | None = function(number, handler)
    return before
