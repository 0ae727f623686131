"""Files that appear under their names only when complete."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cachedlrm.errors import UserError

_ADVICE = {
    errno.ENOSPC: "free space there or ",
    errno.EDQUOT: "free space within your quota or ",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) or ",
    errno.EIO: "look at the disk or ",
    errno.ENOENT: "make the folder or ",
}


def cannot_write(path: Path, error: OSError, otherwise: str = "choose another place") -> UserError:
    """What the operating system refuses, as the user's one line.

    Args:
        path: what was written.
        error: the refusal.
        otherwise: what helps against any refusal.
    """
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; {_ADVICE.get(error.errno or 0, '')}{otherwise}")


@contextmanager
def whole_file(path: Path, otherwise: str = "choose another place") -> Iterator[BinaryIO]:
    """A file open for writing; it takes the place of ``path`` when the block ends without an error.

    Args:
        path: the file.
        otherwise: what a user can do if it cannot be written.

    Raises:
        UserError: the file could not be written (disk full, no permission); names it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error, otherwise) from error
    finally:
        with suppress(OSError):  # a place that cannot be written cannot be cleaned either
            partial.unlink(missing_ok=True)
