"""Raw files into the spool, in order, with what was left out named."""

import time
from pathlib import Path

import pytest

from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.data.raw.samples import Position
from cachedlrm.prepare import reading
from cachedlrm.prepare.__main__ import main
from cachedlrm.prepare.options import PrepareOptions
from support.raw_criteo import lines, write

LINES = lines(100)


def test_the_first_bad_lines_are_said(tmp_path, capsys):
    path = write(tmp_path / "a", [*LINES[:100], *["x"] * 9])
    arguments = ["criteo", path, "--out", tmp_path / "out", "--skip-bad-lines", "--ui=plain"]
    assert main(list(map(str, arguments))) == 0
    said = capsys.readouterr().out
    assert f"skipped {path}: line 101: 1 fields" in said
    assert said.count("skipped /") == reading._SHOWN_BAD_LINES
    assert "86 samples to train on, 14 held out, 9 lines skipped" in said


def test_blocks_stay_in_order_and_few_wait(tmp_path):
    path, begun = write(tmp_path / "a", LINES), []

    class Slow(Criteo):
        def parse(self, block, skip_bad):
            begun.append(block.start.lines)
            time.sleep(0.02 if block.start.lines == 0 else 0)  # the first ends after the others
            return super().parse(block, skip_bad)

    options, starts = PrepareOptions(Path("out"), threads=3), []
    with reading.thread_pool(3) as pool:
        for block, samples, bad in reading._parsed(pool, options, Slow(2000), path, Position()):
            assert (len(samples), bad) == (block.end.lines - block.start.lines, [])
            starts.append(block.start.lines)
            assert len(begun) <= len(starts) + 3
    assert starts == sorted(starts)
    assert sorted(begun) == starts
    assert len(starts) > 5


def test_what_has_not_begun_never_does():
    done = []

    def add(number: int) -> None:
        time.sleep(0.05)
        done.append(number)

    def fail() -> None:
        with reading.thread_pool(1) as pool:
            for number in range(20):
                pool.submit(add, number)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(done) < 20
