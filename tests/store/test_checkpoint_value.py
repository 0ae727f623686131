"""A checkpoint as bytes and back, its layout, and what is refused; promises/test_hostile_files.py changes its bytes."""

import json
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cachedlrm.store.checkpoint_value import Checkpoint, decode_checkpoint

NAMES = st.from_regex(r"[a-z_]{1,5}\.[0-9]\.(weight|bias)", fullmatch=True)
ARRAYS = arrays(np.float32, array_shapes(min_dims=0, max_dims=2, max_side=3))
COUNTS = st.integers(0, 2**62 - 1)
CHECKPOINTS = st.builds(
    Checkpoint,
    COUNTS,
    st.lists(st.tuples(COUNTS, COUNTS), max_size=3).map(tuple),
    st.dictionaries(NAMES, ARRAYS, max_size=3),
    st.dictionaries(NAMES, st.dictionaries(st.sampled_from(["step", "exp_avg"]), ARRAYS, min_size=1), max_size=2),
    COUNTS,
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(), st.lists(st.booleans())), max_size=3),
)


def plain(arrays: dict) -> dict:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(CHECKPOINTS)
def test_a_checkpoint_comes_back(checkpoint):
    found = decode_checkpoint(checkpoint.encode())
    for name in ("batches", "ends", "steps_before", "progress"):
        assert getattr(found, name) == getattr(checkpoint, name)
    assert plain(found.dense) == plain(checkpoint.dense)
    assert found.dense_state.keys() == checkpoint.dense_state.keys()
    for name, entry in checkpoint.dense_state.items():
        assert plain(found.dense_state[name]) == plain(entry)


def test_the_layout_is_a_checksum_and_a_safetensors_file():
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    value = Checkpoint(7, ((3, 4), (5, 6)), {"a.b": weight}, {"a.b": {"sum": weight + 1}}, 2, {"x": 1}).encode()
    assert int.from_bytes(value[:4], "little") == zlib.crc32(value[4:])
    tensors = safetensors.numpy.load(value[4:])
    assert {name: array.tolist() for name, array in tensors.items()} == {
        "dense.a.b": [[0, 1, 2], [3, 4, 5]],
        "state.sum.a.b": [[1, 2, 3], [4, 5, 6]],
    }
    header = json.loads(value[12 : 12 + int.from_bytes(value[4:12], "little")])
    assert json.loads(header["__metadata__"]["checkpoint"]) == {
        "batches": 7, "boundaries": [3, 5], "live_segments": [4, 6], "steps_before": 2, "progress": {"x": 1},
    }  # fmt: skip


NUMBERS = {"batches": 7, "boundaries": [3], "live_segments": [4], "steps_before": 2, "progress": {}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": -1}, "a count in the checkpoint is not a whole number"),
        ({"batches": 2.0}, "a count in the checkpoint is not a whole number"),
        ({"boundaries": ["3"]}, "a count in the checkpoint is not a whole number"),
        ({"steps_before": 2**62}, "a count in the checkpoint is not a whole number"),
        ({"live_segments": []}, "the checkpoint counts 0 groups of tables and ends 1"),
        ({"progress": []}, "the progress in the checkpoint is no object"),
        ({"boundaries": 3}, "the checkpoint does not read: "),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes, words):
    body = safetensors.numpy.save({}, {"checkpoint": json.dumps(NUMBERS | changes)})
    with pytest.raises(ValueError, match=words):
        decode_checkpoint(zlib.crc32(body).to_bytes(4, "little") + body)


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"checkpoint": "x"}, {"checkpoint": "[]"}])
def test_a_file_without_numbers_is_refused(metadata):
    body = safetensors.numpy.save({"dense.a": np.zeros(1, np.float32)}, metadata)
    with pytest.raises(ValueError):  # noqa: PT011 - json's own words, too
        decode_checkpoint(zlib.crc32(body).to_bytes(4, "little") + body)


@pytest.mark.parametrize("value", [b"", bytes(11), bytes(100)])
def test_a_wrong_checksum_is_refused(value):
    with pytest.raises(ValueError, match="the checksum of the checkpoint is wrong"):
        decode_checkpoint(value)
