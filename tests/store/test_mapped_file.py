"""A map over a file that cannot be read: one line and status 1. Each in a process of its own, which ends."""

import mmap
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from cachedlrm.store.mapped_file import damage_explained, will_read

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="needs signals")
READ_BEYOND_THE_END = """
import mmap, os, sys
from contextlib import nullcontext
from pathlib import Path
from cachedlrm.store.mapped_file import damage_explained, explain_bus_errors
path = Path(sys.argv[1])
with path.open("rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(path, 0)
{how}
print("still reads")
"""


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("explain_bus_errors(path); data[0]", "the disk failed or the file was cut short; restore it"),
        ("with damage_explained(path): data[0]", "or the file was cut short or is damaged; put back a copy"),
        ("with damage_explained(path): os.abort()", "or the file was cut short or is damaged; put back a copy"),
    ],
)
def test_a_page_that_cannot_be_read_is_one_line(tmp_path, how, words):
    path = tmp_path / "data\nfile"
    path.write_bytes(bytes(mmap.PAGESIZE))
    program = READ_BEYOND_THE_END.format(how=how)
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"error: cannot read {tmp_path / 'data'}")
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_afterwards_a_crash_is_a_crash_again(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(mmap.PAGESIZE))
    program = READ_BEYOND_THE_END.format(how="with damage_explained(path): pass\ndata[0]")
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (-signal.SIGBUS, b"")


def test_nothing_happens_to_a_file_that_reads(tmp_path):
    with damage_explained(tmp_path):
        assert os.getpid()


def test_a_hint_changes_nothing_wherever_it_points():
    data = np.arange(5000, dtype=np.uint8)
    will_read(data.ctypes.data + 1, len(data) - 1)
    assert (data == np.arange(5000, dtype=np.uint8)).all()
