"""Text files in blocks of whole lines, whatever they are packed in."""

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.raw.lines import LineTable, TextFile, labels_of, read_blocks
from cachedlrm.data.raw.samples import Position, UnparsableError
from support.raw_criteo import lines

TEXT = "".join(f"{line}\n" for line in lines(300)).encode()
HALF = len(TEXT) // 2
PACKINGS = ["plain", "gzip", "zstd", "two gzip", "two zstd"]


def zstd(text: bytes) -> bytes:
    return pa.Codec("zstd").compress(text, asbytes=True)


def packed(path: Path, packing: str, text: bytes = TEXT) -> Path:
    if packing == "plain":
        path.write_bytes(text)
    else:
        codec = gzip.compress if packing.endswith("gzip") else zstd
        # Two: as `cat a.gz b.gz` and parallel compressors make them.
        path.write_bytes(codec(text[:HALF]) + codec(text[HALF:]) if packing.startswith("two") else codec(text))
    return path


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("text", [TEXT, TEXT[:-1]], ids=["", "no last line end"])
def test_blocks_are_the_text_from_any_line_on(tmp_path, packing, text):
    blocks = list(read_blocks(packed(tmp_path / "a", packing, text), Position(), 5000))
    assert len(blocks) > 5
    assert b"".join(block.content for block in blocks) == text
    assert [block.start for block in blocks] == [Position(), *(block.end for block in blocks[:-1])]
    assert blocks[-1].end == Position(len(text), 300)
    for block in blocks:
        assert block.end.lines == text[: block.end.offset].count(b"\n") + (block is blocks[-1] and text != TEXT)
    for start in (blocks[0].end, blocks[4].end):
        rest = list(read_blocks(tmp_path / "a", start, 4000))
        assert b"".join(block.content for block in rest) == text[start.offset :]
        assert (rest[0].start, rest[-1].end) == (start, blocks[-1].end)


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_file_is_named(tmp_path, packing, damage):
    path = packed(tmp_path / "train.x", packing)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.x cannot be read: "):
        list(read_blocks(path, Position(), 5000))


def test_files_that_are_no_lines_are_refused(tmp_path):
    with pytest.raises(UserError, match="none cannot be read: "):
        list(read_blocks(tmp_path / "none", Position(), 5000))
    path = packed(tmp_path / "a", "plain", b"x\n" + bytes(3 << 20))
    with pytest.raises(UserError, match="line 2 is longer than 1 MiB"):
        list(read_blocks(path, Position(), 1 << 20))
    packed(path, "gzip", b"short")
    with pytest.raises(UserError, match="is shorter than when it was begun; use another --out"), TextFile(path) as file:
        file.skip(6)


def test_lines_as_a_table():
    table = LineTable({"a": pa.int32(), "b": pa.binary()}, ",", quoted=True)
    assert table.read(b'1,x\n,\n3,"y,z"', 3).to_pydict() == {"a": [1, None, 3], "b": [b"x", b"", b"y,z"]}
    for text, num_lines in ((b"1,x,2\n", 1), (b"1\n", 1), (b"x,1\n", 1), (b"1,x\r2,y\n", 1), (b'1,"x\n2,y"\n', 2)):
        with pytest.raises(UnparsableError):
            table.read(text, num_lines)


def test_labels_are_zero_or_one():
    assert labels_of(pa.array([0, 1, 1], pa.int32())).tolist() == [0, 1, 1]
    for wrong in (2, -1, None):
        with pytest.raises(UnparsableError, match="the label is neither 0 nor 1"):
            labels_of(pa.array([0, wrong], pa.int32()))
