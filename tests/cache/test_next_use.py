"""Next uses on disk: equal to what a search finds."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.next_use import NextUses, NextUseWriter
from support.models import NUM_ROWS, next_uses, working_sets

Stream = list[list[int]]


def write(folder: Path, stream: Stream) -> None:
    writer = NextUseWriter(folder, NUM_ROWS)
    for batch in reversed(range(len(stream))):
        writer.add(batch, np.array(stream[batch], np.int64))
    writer.close()


def read(folder: Path, stream: Stream) -> list[list[int]]:
    uses = NextUses(folder)
    return [uses(batch).tolist() for batch in range(len(stream))]


def expected(stream: Stream) -> list[list[int]]:
    return [uses.tolist() for uses in next_uses(working_sets(stream))]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(stream=st.lists(st.lists(st.integers(0, NUM_ROWS - 1), max_size=14), min_size=1, max_size=40))
def test_next_uses_by_position(tmp_path_factory, stream):
    folder = tmp_path_factory.mktemp("next")
    write(folder, stream)
    assert read(folder, stream) == expected(stream)


def test_another_stream_in_the_same_folder_is_written_anew(tmp_path):
    first, second = [[1, 2], [2], [3, 1]], [[2], [2, 5]]
    for stream in (first, second):
        write(tmp_path, stream)
        assert read(tmp_path, stream) == expected(stream)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sizes.i32", "uses.i32"]
