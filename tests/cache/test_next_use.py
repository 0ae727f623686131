"""Next uses on disk: equal to what a search finds, whatever interrupted the pass."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.cache.next_use import NextUses, NextUseWriter
from support.models import NUM_ROWS, next_uses, working_sets

Stream = list[list[int]]


def random_stream(num_batches: int = 30) -> Stream:
    rng = np.random.default_rng(4)
    return [(rng.zipf(1.2, rng.integers(0, 12)) % NUM_ROWS).tolist() for _ in range(num_batches)]


def write(folder: Path, stream: Stream, fingerprint: str = "a", stop_after: int = 10**9, save: bool = True) -> int:
    """Takes batches from where the folder is; how many."""
    writer = NextUseWriter(folder, NUM_ROWS, len(stream), fingerprint)
    taken = 0
    while writer.next_batch >= 0 and taken < stop_after:
        writer.add(np.array(stream[writer.next_batch], np.int64))
        taken += 1
    if save:
        writer.save()
    writer.close()
    return taken


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


@pytest.mark.parametrize("first", [1, 7, 29, 30])
def test_an_interrupted_pass_goes_on(tmp_path, first):
    stream = random_stream()
    assert write(tmp_path, stream, stop_after=first) == first
    assert write(tmp_path, stream, stop_after=5, save=False) == min(5, 30 - first)  # killed: not saved
    assert write(tmp_path, stream) == 30 - first
    assert read(tmp_path, stream) == expected(stream)
    assert write(tmp_path, stream) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["progress.json", "sizes.i32", "uses.i32"]


def test_another_stream_is_read_anew(tmp_path):
    stream, other = random_stream(), random_stream()[::-1]
    write(tmp_path, stream, stop_after=20)
    assert write(tmp_path, other, fingerprint="b") == 30
    assert read(tmp_path, other) == expected(other)
    assert write(tmp_path, other[:10], fingerprint="b") == 10


@pytest.mark.parametrize("name", ["progress.json", "sizes.i32", "uses.i32", "rows-20.i32"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_folder_is_read_anew(tmp_path, name, damage):
    stream = random_stream()
    write(tmp_path, stream, stop_after=20)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    assert write(tmp_path, stream) == 30
    assert read(tmp_path, stream) == expected(stream)
