"""Telling the system which part of a mapped file is read next.

LMDB maps its file for reads at random, where the system loads a page at each first touch, one after the other. A whole
segment is loaded at once when it is asked for (madvise(2), MADV_WILLNEED, a hint that changes nothing else).
"""

import ctypes
import mmap

_LIBRARY = ctypes.CDLL(None) if hasattr(mmap, "MADV_WILLNEED") else None


def will_read(address: int, num_bytes: int) -> None:
    """Asks for the pages of ``num_bytes`` at ``address``; on Windows nothing."""
    if _LIBRARY is not None:
        start = address - address % mmap.PAGESIZE
        size = address + num_bytes - start
        _LIBRARY.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_WILLNEED))
