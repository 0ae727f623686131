"""Trains deep learning recommendation models whose embedding tables are far larger than the GPU.

``python -m cachedlrm.train`` trains a DLRM; `CachedEmbeddingBagCollection` and its like put cached tables into
a model of your own. Mistakes of a user are `UserError`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cachedlrm.base.errors import UserError
    from cachedlrm.library.clipping import clip_grad_norm_
    from cachedlrm.library.collections import CachedEmbeddingBagCollection, CachedEmbeddingCollection
    from cachedlrm.library.embedding_bags import CachedEmbeddingBags
    from cachedlrm.library.loop import prefetch
    from cachedlrm.library.tables import EmbeddingTable

__version__ = "0.1.0"
_HOMES = {
    "CachedEmbeddingBagCollection": "cachedlrm.library.collections",
    "CachedEmbeddingBags": "cachedlrm.library.embedding_bags",
    "CachedEmbeddingCollection": "cachedlrm.library.collections",
    "EmbeddingTable": "cachedlrm.library.tables",
    "UserError": "cachedlrm.base.errors",
    "clip_grad_norm_": "cachedlrm.library.clipping",
    "prefetch": "cachedlrm.library.loop",
}
__all__ = [
    "CachedEmbeddingBagCollection", "CachedEmbeddingBags", "CachedEmbeddingCollection", "EmbeddingTable", "UserError",
    "clip_grad_norm_", "prefetch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names of the library, loaded at first use: torch takes seconds, and the commands set it up before."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_ROOMS_WITH_KERNELS = ("base", "cache", "check", "data", "data/raw", "library", "model", "prepare", "store")


def _give_numba_a_cache() -> None:
    """Sets ``NUMBA_CACHE_DIR`` to a folder for temporary files where numba has no place of its own.

    numba keeps compiled functions beside the source or in the user's cache folder, and refuses to import a module where
    it can write to neither: a package installed by root, used by an account without a home. It reads the variable when
    it is imported. What it finds there it loads as code, so the folder must be ours and closed to others.
    """
    here = os.path.dirname(__file__)
    beside = [os.path.join(here, room, "__pycache__") for room in _ROOMS_WITH_KERNELS]
    users = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")
    is_own_place_enough = all(map(_is_writable, beside)) or (os.path.isabs(users) and _is_writable(users))
    if "NUMBA_CACHE_DIR" in os.environ or is_own_place_enough or not hasattr(os, "getuid"):
        return
    import tempfile  # noqa: PLC0415 - rarely needed

    try:
        folder = os.path.join(tempfile.gettempdir(), f"cachedlrm-numba-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.lstat(folder)  # of a link itself: another account may have put one there
        if status.st_uid != os.getuid() or status.st_mode & 0o777 != 0o700 or os.path.islink(folder):
            folder = tempfile.mkdtemp(prefix="cachedlrm-numba-")
    except OSError:
        return  # numba says what it could not do
    os.environ["NUMBA_CACHE_DIR"] = folder


def _is_writable(folder: str) -> bool:
    """Whether files can be made in a folder, which itself is made if it is missing."""
    while not os.path.exists(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


_give_numba_a_cache()
