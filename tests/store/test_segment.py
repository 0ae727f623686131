"""Segments: their checksums, their layout byte by byte, and what is refused."""

import struct
import zlib

import numpy as np
import pytest

from cachedlrm.store.segment import (
    PLACE_BITS,
    SegmentBuilder,
    fingerprint,
    gather,
    parse_segment,
    segment_capacity,
    xxh32,
)

SEQUENCE, WIDTH, NUM_ROWS = 3 + (1 << 32), 2, 10
ROWS, RECORDS = np.array([7, 9]), np.array([[1, 2], [3, 4]], np.float32)


def words(rows: np.ndarray = ROWS, records: np.ndarray = RECORDS, capacity: int = 5) -> np.ndarray:
    builder = SegmentBuilder(capacity, WIDTH)
    builder.append(rows, records)
    return builder.finish(SEQUENCE)


@pytest.mark.parametrize(
    ("size", "seed", "value"),
    [(0, 7, 0xD7ADAFF8), (1, 7, 0x14F110A0), (3, 7, 0x50A52EFB), (4, 7, 0xC0447409), (16, 7, 0x6829A4F9)],
)
def test_checksums_are_xxh32(size, seed, value):
    """Values of the reference implementation (python-xxhash 3.6)."""
    words = np.arange(size, dtype=np.uint32) * np.uint32(2654435761)
    assert xxh32(words, np.uint32(seed)) == value


def test_a_full_segment_fills_whole_pages():
    for width in (1, 16, 48, 129):
        capacity = segment_capacity(width, 1 << 20)
        size = SegmentBuilder(capacity, width).words.nbytes + 16  # with LMDB's header
        assert capacity == 1 << 14 or (1 << 20) - 4 * (width + 2) < size <= 1 << 20


def test_a_segment_keeps_its_parts():
    view = parse_segment(words(), SEQUENCE, WIDTH, NUM_ROWS)
    assert view.rows.tolist() == [7, 9]
    assert view.records(np.array([1, 0])).tolist() == [[3, 4], [1, 2]]
    assert view.first_damaged() == -1


@pytest.mark.parametrize("capacity", [2, 5], ids=["full", "not full"])
def test_the_layout_byte_by_byte(capacity):
    checksums = [int(xxh32(record.view(np.uint32), np.uint32(row))) for row, record in zip(ROWS, RECORDS, strict=True)]
    rest = struct.pack("<Q8xII", SEQUENCE, 7, 9)
    checksum = int(xxh32(np.frombuffer(rest, np.uint32), np.uint32(0)))
    entries = struct.pack("<IffIff", checksums[0], 1, 2, checksums[1], 3, 4)
    expected = b"CLSG" + struct.pack("<III", 2, WIDTH, checksum) + rest + entries
    assert words(capacity=capacity).tobytes() == expected.ljust(4080, b"\0")


def test_a_segment_fills_in_turns():
    builder = SegmentBuilder(5, WIDTH)
    builder.append(ROWS[:1], RECORDS[:1])
    builder.append(ROWS[1:], RECORDS[1:])
    assert builder.count == 2
    assert (builder.finish(SEQUENCE) == words()).all()


def changed(word: int, value: int, seals: bool = False) -> bytes:
    """A segment with another word, and with ``seals`` the checksum that goes with it."""
    value_words = words()
    value_words[word] = value
    if seals:
        value_words[3] = xxh32(value_words[4:10], np.uint32(0))
    return value_words.tobytes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "0 bytes are no segment"),
        (bytes(33), "33 bytes are no segment"),
        (changed(0, 0), "it does not begin as a segment"),
        (changed(2, 3), "records of 3 columns, not 2"),
        (changed(1, (1 << 14) + 1), "16385 records are more than a segment holds"),
        (changed(1, 300), "4080 bytes do not hold 300 records"),
        (words().tobytes() + bytes(4), "4084 bytes do not hold 2 records"),
        (changed(8, 6), "the checksum of its rows is wrong"),
        (changed(4, 2, seals=True), "it says it is segment 4294967298"),
        (changed(9, 10, seals=True), "it holds row 10 of 10"),
    ],
)
def test_what_is_no_segment_is_refused(value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse_segment(value, SEQUENCE, WIDTH, NUM_ROWS)


@pytest.mark.parametrize(("word", "record"), [(10, 0), (11, 0), (13, 1), (15, 1), (16, -1)])
def test_the_first_damaged_record_is_found(word, record):
    """Entries are words 10 to 15: two of a checksum and two columns."""
    view = parse_segment(changed(word, 5), SEQUENCE, WIDTH, NUM_ROWS)
    assert view.first_damaged() == record


def test_records_gathered_from_segments():
    segments = [words(), words(np.array([1, 2, 3]), np.array([[5, 6], [7, 8], [9, 10]], np.float32))]
    bases = np.array([segment.ctypes.data for segment in segments])
    numbers, rows = np.array([(1 << PLACE_BITS) + 2, 0, 1 << PLACE_BITS]), np.array([3, 7, 1])
    counts, out = np.array([2, 3], np.int32), np.empty((3, WIDTH), np.float32)
    assert gather(numbers, rows, bases, counts, out.view(np.uint32)) == -1
    assert out.tolist() == [[9, 10], [1, 2], [5, 6]]
    rows[1] = 8
    assert gather(numbers, rows, bases, counts, out.view(np.uint32)) == 1, "the record of another row"


def test_a_fingerprint_is_of_numbers_in_any_order():
    assert fingerprint(np.array([2, 1])) == fingerprint(np.array([1, 2])) == zlib.crc32(struct.pack("<qq", 1, 2))
    assert fingerprint(np.array([1])) != fingerprint(np.array([1, 2]))
