"""TensorBoard's event files: scalars by tag and step.

A file is a TFRecord file (https://www.tensorflow.org/tutorials/load_data/tfrecord) of ``Event`` messages of protocol
buffers (tensorflow/core/util/event.proto), of which a dozen fields are needed. They are written here, because the
package that writes them comes with gRPC, a web server, an image library, and a thread that writes behind.
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_VERSION = b"brain.Event:2"
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7  # fields of Event
_VALUE = 1  # of Summary
_TAG, _SIMPLE_VALUE = 1, 2  # of Summary.Value
_STATUS, _START = 1, 1  # of SessionLog
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5  # wire types


class EventFile:
    """A file of events that is appended to; every event is in the file when its method returns.

    Args:
        path: of a new file; TensorBoard looks for ``tfevents`` in its name, and reads a folder's in their order.

    Raises:
        OSError: it cannot be written; so all methods.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        try:
            self._append(_field(_FILE_VERSION, _VERSION), 0, time.time())
        except BaseException:
            self._file.close()
            raise

    def add_restart(self, step: int) -> None:
        """Values of ``step`` and later ones, of files before this one, hold no more."""
        self._append(_field(_SESSION_LOG, _key(_STATUS, _VARINT) + _varint(_START)), step, time.time())

    def add_scalars(self, step: int, wall_time: float, scalars: Mapping[str, float]) -> None:
        """Values by tag, kept as float32.

        Args:
            step: that they belong to.
            wall_time: seconds since 1970.
            scalars: the values.
        """
        values = [
            _field(_VALUE, _field(_TAG, tag.encode()) + _key(_SIMPLE_VALUE, _FLOAT) + _float32(value))
            for tag, value in scalars.items()
        ]
        self._append(_field(_SUMMARY, b"".join(values)), step, wall_time)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, what: bytes, step: int, wall_time: float) -> None:
        event = _key(_WALL_TIME, _DOUBLE) + struct.pack("<d", wall_time) + _key(_STEP, _VARINT) + _varint(step) + what
        length = struct.pack("<Q", len(event))
        end = self._file.tell()
        rest = memoryview(length + _masked_crc(length) + event + _masked_crc(event))
        try:
            while rest:  # a disk that fills up takes a part first
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(end)
            self._file.seek(end)
            raise


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _field(field: int, content: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _float32(value: float) -> bytes:
    with np.errstate(over="ignore"):
        return np.array(value).astype("<f4").tobytes()


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum, RFC 3720 appendix B.4; a few microseconds a hundred bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    """As TFRecord has it: a checksum of data that holds checksums would be weak."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
