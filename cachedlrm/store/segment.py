"""A segment: some thousand records in one value, with the rows they belong to and a checksum of each.

Layout, little-endian, in bytes (docs/storage.md):

    0   magic "CLSG" | 4  records n | 8  columns w | 12 checksum of bytes 16 to the end of the rows
    16  sequence number (8) | 24 zero (8)
    32  rows, n x uint32 | n x (checksum, uint32 | record, w x float32) | zeros up to 4,080 bytes

Checksums are XXH32 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). A record's has its row as seed, so
a record under the name of another row is found too. Every step of it is a bijection of its state for a given word and
of the word for a given state: a change within one word always shows. Rows stand apart from the records, so that a store
is indexed without reading all of it. The zeros keep a segment in pages of its own, where LMDB never moves it.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numba import carray, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

HEADER_BYTES = 32
_MAGIC = int.from_bytes(b"CLSG", "little")
PLACE_BITS = 14
PLACE_MASK = (1 << PLACE_BITS) - 1
_OVERHEAD_BYTES = 8  # of a record: row and checksum
_PAGE_BYTES = 4096
_PAGE_HEADER_BYTES = 16  # of LMDB, in the first page of a value
_LEAST_BYTES = _PAGE_BYTES - _PAGE_HEADER_BYTES

UInt32s = NDArray[np.uint32]

_PRIME_1 = np.uint32(2654435761)
_PRIME_2 = np.uint32(2246822519)
_PRIME_3 = np.uint32(3266489917)
_PRIME_4 = np.uint32(668265263)
_PRIME_5 = np.uint32(374761393)


def segment_capacity(width: int, segment_bytes: int) -> int:
    """Records of ``width`` columns in a value that fills ``segment_bytes`` of pages; from 1 to 16,384."""
    room = segment_bytes - _PAGE_HEADER_BYTES - HEADER_BYTES
    return max(1, min(1 << PLACE_BITS, room // (_OVERHEAD_BYTES + 4 * width)))


@numba.njit(inline="always")
def _rotate(value: np.uint32, bits: int) -> np.uint32:
    return np.uint32((value << np.uint32(bits)) | (value >> np.uint32(32 - bits)))


@numba.njit(inline="always")
def _round(lane: np.uint32, word: np.uint32) -> np.uint32:
    return np.uint32(_rotate(np.uint32(lane + word * _PRIME_2), 13) * _PRIME_1)


@numba.njit(cache=True, nogil=True)
def xxh32(words: UInt32s, seed: np.uint32) -> np.uint32:
    """XXH32 of ``words`` [n] as little-endian bytes."""
    size = len(words)
    index = 0
    if size >= 4:
        lane_1, lane_2 = np.uint32(seed + _PRIME_1 + _PRIME_2), np.uint32(seed + _PRIME_2)
        lane_3, lane_4 = seed, np.uint32(seed - _PRIME_1)
        while index + 4 <= size:
            lane_1 = _round(lane_1, words[index])
            lane_2 = _round(lane_2, words[index + 1])
            lane_3 = _round(lane_3, words[index + 2])
            lane_4 = _round(lane_4, words[index + 3])
            index += 4
        value = np.uint32(_rotate(lane_1, 1) + _rotate(lane_2, 7) + _rotate(lane_3, 12) + _rotate(lane_4, 18))
    else:
        value = np.uint32(seed + _PRIME_5)
    value = np.uint32(value + np.uint32(4 * size))
    while index < size:
        value = np.uint32(_rotate(np.uint32(value + words[index] * _PRIME_3), 17) * _PRIME_4)
        index += 1
    value = np.uint32((value ^ (value >> np.uint32(15))) * _PRIME_2)
    value = np.uint32((value ^ (value >> np.uint32(13))) * _PRIME_3)
    return np.uint32(value ^ (value >> np.uint32(16)))


def fingerprint(sequences: NDArray[np.int64]) -> int:
    """CRC-32 of segments' numbers [n], in order, as little-endian int64: tells whether one of them is missing."""
    return zlib.crc32(np.sort(sequences).astype("<i8").tobytes())


@dataclass(frozen=True)
class SegmentView:
    """A segment's parts, in place.

    Attributes:
        rows: [n] uint32.
        entries: [n, 1 + width] uint32, of each record its checksum and its bits.
    """

    rows: UInt32s
    entries: UInt32s

    def first_damaged(self) -> int:
        """The first record that is not as it was written, or -1."""
        return int(_first_damaged(self.rows, self.entries))

    def records(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The records at ``places`` [n], [n, width] float32."""
        return self.entries[places, 1:].view(np.float32)


@numba.njit(cache=True, nogil=True)
def _first_damaged(rows: UInt32s, entries: UInt32s) -> int:
    for index in range(len(rows)):
        if xxh32(entries[index, 1:], rows[index]) != entries[index, 0]:
            return index
    return -1


def parse_segment(value: Any, sequence: int, width: int, num_rows: int) -> SegmentView:
    """The parts of a stored value, checked but for the records themselves.

    Args:
        value: what a store holds; a buffer.
        sequence: the number it is stored under.
        width: columns of a record there.
        num_rows: rows of its group; one at or beyond it is an error.

    Raises:
        ValueError: it is no segment, or damaged; says how.
    """
    data = np.frombuffer(value, np.uint8)
    if len(data) < HEADER_BYTES or len(data) % 4:
        raise ValueError(f"{len(data)} bytes are no segment")
    words = data.view("<u4")
    if words[0] != _MAGIC:
        raise ValueError("it does not begin as a segment")
    count, columns = int(words[1]), int(words[2])
    if columns != width:
        raise ValueError(f"records of {columns} columns, not {width}")
    if count > 1 << PLACE_BITS:
        raise ValueError(f"{count} records are more than a segment holds")
    if len(data) != max(_LEAST_BYTES, HEADER_BYTES + count * (_OVERHEAD_BYTES + 4 * width)):
        raise ValueError(f"{len(data)} bytes do not hold {count} records")
    head = HEADER_BYTES // 4
    if xxh32(words[4 : head + count], np.uint32(0)) != words[3]:
        raise ValueError("the checksum of its rows is wrong")
    stored = int(words[4]) | int(words[5]) << 32
    if stored != sequence:
        raise ValueError(f"it says it is segment {stored}")
    rows = words[head : head + count]
    if count and int(rows.max()) >= num_rows:
        raise ValueError(f"it holds row {int(rows.max())} of {num_rows}")
    return SegmentView(rows, words[head + count :][: count * (1 + width)].reshape(count, 1 + width))


class SegmentBuilder:
    """A segment being filled, in memory.

    Args:
        capacity: records it takes.
        width: columns of a record.
    """

    def __init__(self, capacity: int, width: int) -> None:
        self.capacity = capacity
        self._width = width
        head = HEADER_BYTES // 4
        self.words = np.zeros(max(_LEAST_BYTES // 4, head + capacity * (2 + width)), np.uint32)
        self.count = 0

    def append(self, rows: NDArray[np.int64], records: NDArray[np.float32]) -> None:
        """Takes records [n, width] of ``rows`` [n]; there must be room."""
        _append(self.words, self.capacity, self.count, rows, np.ascontiguousarray(records).view(np.uint32))
        self.count += len(rows)

    def finish(self, sequence: int) -> NDArray[np.uint32]:
        """The value to store, as words."""
        head, count, words = HEADER_BYTES // 4, self.count, self.words
        if count < self.capacity:
            entries = words[head + self.capacity :][: count * (1 + self._width)]
            padding = max(0, _LEAST_BYTES // 4 - head - count - len(entries))
            words = np.concatenate([words[: head + count], entries, np.zeros(padding, np.uint32)])
        words[:3] = _MAGIC, count, self._width
        words[4:6] = sequence & 0xFFFFFFFF, sequence >> 32
        words[3] = xxh32(words[4 : head + count], np.uint32(0))
        return words.astype("<u4", copy=False)


@numba.njit(cache=True, nogil=True)
def _append(words: UInt32s, capacity: int, count: int, rows: NDArray[np.int64], records: UInt32s) -> None:
    head = HEADER_BYTES // 4
    width = records.shape[1]
    for index in range(len(rows)):
        row = np.uint32(rows[index])
        words[head + count + index] = row
        entry = head + capacity + (count + index) * (1 + width)
        words[entry] = xxh32(records[index], row)
        for column in range(width):
            words[entry + 1 + column] = records[index, column]


def _as_pointer(typing_context: Any, address: Any) -> Any:
    """An address as a pointer, which numba knows only for arrays it made."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_pointer: Any = intrinsic(_as_pointer)


@numba.njit(cache=True, nogil=True)
def gather(
    numbers: NDArray[np.int64],
    rows: NDArray[np.int64],
    bases: NDArray[np.int64],
    counts: NDArray[np.int32],
    out: NDArray[np.uint32],
) -> int:
    """Copies records out of segments, wherever in memory these are, and checks them.

    Args:
        numbers: [n], ``segment << PLACE_BITS | place`` of each.
        rows: [n], theirs.
        bases: address of each segment's value.
        counts: records in each segment.
        out: [n, width], the bits of float32.

    Returns:
        The index of the first damaged record, or -1.
    """
    head = HEADER_BYTES // 4
    width = out.shape[1]
    for index in range(len(numbers)):
        segment, place = numbers[index] >> PLACE_BITS, numbers[index] & PLACE_MASK
        count = counts[segment]
        words = carray(_pointer(bases[segment]), (head + count * (2 + width),), np.uint32)
        entry = head + count + place * (1 + width)
        record = words[entry + 1 : entry + 1 + width]
        if xxh32(record, np.uint32(rows[index])) != words[entry]:
            return index
        for column in range(width):
            out[index, column] = record[column]
    return -1
