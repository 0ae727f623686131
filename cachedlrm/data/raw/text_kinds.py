"""What a file is whose lines cannot be read, by its first and last bytes: said at the start, with what to do."""

import os
from pathlib import Path

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown

UTF8_MARK = b"\xef\xbb\xbf"
"""Byte order mark that some programs begin UTF-8 text with."""

_UNPACK = "unpack it first, or compress it with gzip or zstd instead"
_PARQUET = "read it with python -m cachedlrm.prepare parquet"
_UTF8 = "convert it to UTF-8: iconv -f UTF-16 -t UTF-8"
_CONVERT = "write it as text or as Parquet"
_KINDS = {
    b"BZh": ("compressed with bzip2", _UNPACK),
    b"\xfd7zXZ\x00": ("compressed with xz", _UNPACK),
    b"\x04\x22\x4d\x18": ("compressed with lz4", _UNPACK),
    b"\x1f\x9d": ("compressed with compress", _UNPACK),
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"PAR1": ("a Parquet file", _PARQUET),
    b"ORC": ("an ORC file", _CONVERT),
    b"Obj\x01": ("an Avro file", _CONVERT),
    b"ARROW1": ("an Arrow file", _CONVERT),
    b"\x89HDF": ("an HDF5 file", _CONVERT),
    b"\x93NUMPY": ("an .npy file", "name its folder with --data npy:DIR"),
    b"\xff\xfe": ("text in UTF-16", _UTF8),
    b"\xfe\xff": ("text in UTF-16", _UTF8),
}
_GZIP = b"\x1f\x8b"
_MOST_ZEROS = 9  # that gzip itself may end with: the last byte of an empty block, a checksum and a length
_TAR_PLACE, _TAR = 257, b"ustar"


def check_packing(path: Path) -> None:
    """Looks at a file before it is taken for text, plain or in gzip or zstd.

    Raises:
        UserError: it is something else; says what it is and what to do.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        for magic, (what, advice) in _KINDS.items():
            if start.startswith(magic):
                raise UserError(f"{shown(path)} is {what}, which is not read; {advice}")
        if start.startswith(_GZIP):
            file.seek(max(0, path.stat().st_size - _MOST_ZEROS - 1), os.SEEK_SET)
            if not any(file.read()):
                raise UserError(
                    f"{shown(path)} is gzip with zero bytes behind it, as a copy to whole blocks leaves them; write it "
                    "again: gzip -dc FILE, which ignores them, into a new file"
                )


def check_beginning(path: Path, text: bytes) -> None:
    """Looks at the beginning of the text in a file.

    Raises:
        UserError: it is an archive of files; says what to do.
    """
    if text[_TAR_PLACE : _TAR_PLACE + len(_TAR)] == _TAR:
        raise UserError(f"{shown(path)} is a tar archive, which is not read; unpack it, and name the file in it")
