"""Files that appear under their names only when complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cachedlrm.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file open for writing; it takes the place of ``path`` when the block ends without an error.

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
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from error
    finally:
        with suppress(OSError):  # a place that cannot be written cannot be cleaned either
            partial.unlink(missing_ok=True)
