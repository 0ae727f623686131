"""Arrays in files, memory-mapped: ``.npy``, and the members of an ``.npz`` that is not compressed."""

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown

_NPY_MAGIC, _ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
_LOCAL_HEADER_BYTES, _NAME_LENGTH_AT = 30, 26  # of a member; after them its name and extra fields, of two lengths
_ENCRYPTED = 1  # bit of a member's flags

Array = NDArray[np.generic]


def map_npy(path: Path, found: str, together: str) -> Array:
    """The array of a ``.npy`` file.

    Args:
        path: the file.
        found: name of a file that is there and needs it, for the message.
        together: names of all files that belong together, for the message.

    Raises:
        UserError: it is missing, unreadable, or no such file.
    """
    with _reading(path, found, together), path.open("rb") as file:
        start = file.read(len(_NPY_MAGIC))
        if start != _NPY_MAGIC:
            what = "is a .npz archive" if start.startswith(_ZIP_MAGIC) else "is not an .npy file"
            raise UserError(f"{shown(path)} {what if start else 'is empty'}; write its one array with numpy.save")
        return _map_at(path, file, 0)


def map_npz(path: Path, found: str, together: str) -> dict[str, Array]:
    """The arrays of an ``.npz`` file by the names of its members, which are mapped where they lie in the file.

    Args:
        path: the file.
        found: as in `map_npy`.
        together: as in `map_npy`.

    Raises:
        UserError: it is missing, unreadable, compressed, or no such file.
    """
    with _reading(path, found, together), path.open("rb") as file:
        start = file.read(len(_ZIP_MAGIC))
        if start[:2] != _ZIP_MAGIC[:2]:  # an archive without members begins with its end
            raise UserError(
                f"{shown(path)} {'is not an .npz file' if start else 'is empty'}; write its arrays with numpy.savez"
            )
        arrays = {}
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
                    raise UserError(
                        f"{shown(path)}: member {shown(name)} is compressed and cannot be mapped; write the arrays "
                        "with numpy.savez, not numpy.savez_compressed"
                    )
                file.seek(member.header_offset + _NAME_LENGTH_AT)
                lengths = file.read(4)
                skipped = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                arrays[name] = _map_at(path, file, member.header_offset + _LOCAL_HEADER_BYTES + skipped)
        return arrays


def _map_at(path: Path, file: IO[bytes], offset: int) -> Array:
    """The array whose header, as in a ``.npy`` file, begins at ``offset``."""
    file.seek(offset)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with np.errstate(all="ignore"):  # sizes in a garbled header overflow
        shape, fortran_order, dtype = read(file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"{dtype} {shape}")
        if 0 in shape:  # an empty map is refused by the system
            return np.empty(shape, dtype)
        order = "F" if fortran_order else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload, no-any-return]


@contextmanager
def _reading(path: Path, found: str, together: str) -> Iterator[None]:
    """Turns what may go wrong into a `UserError`. Only regular files are opened: others may block."""
    name = shown(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(
                f"{name} is not a regular file but a folder, pipe or device; replace it with an {path.suffix} file"
            )
        yield
    except FileNotFoundError as error:
        what = "is a link to nothing" if path.is_symlink() else "is missing"
        raise UserError(f"{name} {what} but {shown(found)} is there; {together} belong together") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {reason(error)}; change that, or name another folder") from error
    except UserError:
        raise
    except Exception as error:  # a garbled header leads the parsers into many kinds
        writer = "numpy.save" if path.suffix == ".npy" else "numpy.savez"
        raise UserError(
            f"{name} is truncated, garbled, or holds Python objects; write plain numbers with {writer} again"
        ) from error


def reason(error: OSError) -> str:
    """What the system says."""
    return (error.strerror or type(error).__name__).lower()
