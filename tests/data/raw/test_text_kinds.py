"""Files that are no lines of samples are refused at the start, with what they are and what to do."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest

from support.raw_criteo import lines, prepare, write
from support.runs import one_line

LINES = lines(30)
TEXT = "".join(f"{line}\n" for line in LINES).encode()


def archive(make) -> bytes:
    buffer = io.BytesIO()
    make(buffer)
    return buffer.getvalue()


def zipped(buffer) -> None:
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("train.txt", TEXT)


def tarred(buffer) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("train.txt")
        info.size = len(TEXT)
        file.addfile(info, io.BytesIO(TEXT))


UNPACK = "which is not read; unpack it first"
READ = "which is not read; read it with python -m cachedlrm.prepare parquet"
NO_LABELS = (
    "make 40; a file without labels, such as Kaggle's test.txt, holds no samples to train on; leave the file out"
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bz2.compress(TEXT), f"is compressed with bzip2, {UNPACK}"),
        (lzma.compress(TEXT), f"is compressed with xz, {UNPACK}"),
        (archive(zipped), f"is a zip archive, {UNPACK}"),
        (archive(tarred), "is a tar archive, which is not read; unpack it, and name the file in it"),
        (gzip.compress(archive(tarred)), "is a tar archive, which is not read"),
        (gzip.compress(TEXT) + bytes(512), "is gzip with zero bytes behind it"),
        (TEXT.decode().encode("utf-16"), "is text in UTF-16, which is not read; convert it to UTF-8: iconv"),
        (b"PAR1" + bytes(100), f"is a Parquet file, {READ}"),
        (b"A readme.\nOf two lines.\n", "holds no samples of criteo: line 1: 1 fields between tabs"),
        ("".join(line[2:] + "\n" for line in LINES).encode(), NO_LABELS),
    ],
)
@pytest.mark.parametrize("options", [[], ["--skip-bad-lines"]])
def test_what_is_no_criteo_file_is_refused_before_anything_is_read(tmp_path, capsys, content, words, options):
    write(tmp_path / "days" / "day_0", LINES)
    (tmp_path / "days" / "day_1").write_bytes(content)
    message = one_line(capsys, prepare("criteo", tmp_path / "days", "--out", tmp_path / "out", *options))
    assert message.startswith(f"error: {tmp_path / 'days' / 'day_1'} ")
    assert words in message
    assert not (tmp_path / "out").exists()


def test_a_byte_order_mark_and_empty_members_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + TEXT)
    (tmp_path / "b").write_bytes(gzip.compress(TEXT) + gzip.compress(b""))
    for name in "ab":
        assert prepare("criteo", tmp_path / name, "--out", tmp_path / f"{name}.out") == 0
    assert (tmp_path / "a.out" / "train_sparse.npy").read_bytes() == (
        tmp_path / "b.out" / "train_sparse.npy"
    ).read_bytes()


def test_an_empty_last_file_is_not_held_out(tmp_path, capsys):
    write(tmp_path / "days" / "day_0", LINES)
    write(tmp_path / "days" / "day_1", [])
    message = one_line(capsys, prepare("criteo", tmp_path / "days", "--out", tmp_path / "out"))
    assert "day_1, which is to be held out, holds no samples; leave it out, or say what to hold out with" in message
    assert prepare("criteo", tmp_path / "days", "--out", tmp_path / "out", "--test-fraction=0.1") == 0
