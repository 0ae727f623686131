"""Trace files: ids by stack distances, by hand; tests/data/test_reference.py compares with a slow model."""

from pathlib import Path

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.mersenne import seeded
from cachedlrm.data.traces import draw_trace, read_traces


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """Trace files have relative names, as any j in a path stands for the table's number."""
    monkeypatch.chdir(tmp_path)
    for table in range(4):
        Path(f"table_{table}.log").write_text(f"7, 8, {table}\n0, 2\n0.0, 1.0\n")


def drawn(text: str, count: int, padding: bool = False) -> list[int]:
    Path("trace.log").write_text(text)
    traces, ids = read_traces("trace.log", 1, count), np.empty(count, np.uint64)
    draw_trace(seeded(1), traces, 0, padding, ids)
    return ids.tolist()


def test_certain_distances_by_hand():
    assert drawn("7, 8, 9\n0\n1.0\n", 7) == [7, 8, 9, 7, 8, 9, 7]  # always a new id
    assert drawn("7, 8, 9\n0, 1\n0.0, 1.0\n", 4) == [7, 7, 7, 7]  # none was seen, then always the latest
    assert drawn("7, 8, 9\n0, 2\n0.0, 1.0\n", 6) == [7, 8, 7, 8, 7, 8]  # always the one before
    assert drawn("7, 8, 9\n0, 3\n0.0, 1.0\n", 7) == [7, 8, 9, 7, 8, 9, 7]


def test_padding_draws_no_new_id_once_the_longest_distance_was_reached():
    text = "1, 2, 3, 4, 5, 6, 7, 8\n0, 1\n0.9, 1.0\n"
    assert drawn(text, 20, padding=True) == [1] * 20
    assert len(set(drawn(text, 20))) > 4


def test_a_file_is_read_once_for_all_its_tables():
    traces = read_traces("table_j.log", 3, 2)
    assert traces.accesses.tolist() == [7, 8, 0, 0, 0, 7, 8, 1, 0, 0, 7, 8, 2, 0, 0]
    assert traces.places.tolist() == [[0, 3, 0, 2], [5, 3, 2, 2], [10, 3, 4, 2]]
    one = read_traces("table_1.log", 3, 2)
    assert one.accesses.tolist() == [7, 8, 1, 0, 0]
    assert one.places.tolist() == [[0, 3, 0, 2]] * 3
    assert read_traces("none", 0, 2).places.shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "missing"),
        ("1, 2\n0, 1\n", 3, "missing"),
        ("\n0, 1\n0.5, 1.0", 1, "'' is not a whole number"),
        ("1, b\n0, 1\n0.5, 1.0", 1, "'b' is not a whole number"),
        ("1, 2\n0, 1.5\n0.5, 1.0", 2, "'1.5' is not a whole number"),
        ("1, 2\n0, 1\n0.5, one", 3, "'one' is not a number"),
        ("1, -2\n0, 1\n0.5, 1.0", 1, "id -2 is negative"),
        ("1, 18446744073709551616\n0, 1\n0.5, 1.0", 1, "id 18446744073709551616 is negative or beyond 64 bits"),
        ("1, 2\n1, 2\n0.5, 1.0", 2, "the first distance is 1, not 0"),
        ("1, 2\n-1, 2\n0.5, 1.0", 2, "the first distance is -1, not 0"),
        ("1, 2\n0, 5\n0.5, 1.0", 2, "distance 5 reaches beyond the 2 ids of line 1"),
        ("1, 2\n0, 2, 1\n0.5, 0.6, 1.0", 2, "1 follows 2"),
        ("1, 2\n0, 1\n0.5, 0.6, 1.0", 3, "3 numbers for the 2 distances"),
        ("1, 2\n0, 1, 2\n0.6, 0.5, 1.0", 3, "0.5 follows 0.6"),
        ("1, 2\n0, 1\n0.5, 0.9", 3, "a cumulative distribution"),
        ("1, 2\n0, 1\n0.5, 1.5", 3, "a cumulative distribution"),
        ("1, 2\n0, 1\n-0.5, 1.0", 3, "a cumulative distribution"),
        ("1, 2\n0, 1\nnan, 1.0", 3, "a cumulative distribution"),
        ("1, 2\n0, 1\n0.5, nan", 3, "a cumulative distribution"),
    ],
)
def test_a_garbled_trace_file_is_refused(text, line, problem):
    Path("trace.log").write_text(text)
    with pytest.raises(UserError) as caught:
        read_traces("trace.log", 1, 10)
    message = str(caught.value)
    assert message.startswith(f"--data-trace-file: trace.log, line {line}: {problem}")
    assert "\n" not in message


def test_an_unreadable_trace_file_is_refused():
    Path("binary.log").write_bytes(b"\xff\xfe\x00")
    for name, problem in (
        ("table_j.log", "table_4.log: No such file"),
        ("binary.log", "binary.log: not a text file"),
        (".", "Is a directory"),
    ):
        with pytest.raises(UserError, match=rf"^--data-trace-file: [^\n]*{problem}[^\n]*$"):
            read_traces(name, 5, 10)
