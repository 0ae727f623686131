"""Categories as numbers, against plain Python."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base import kernels
from cachedlrm.data.raw import keys
from cachedlrm.data.raw.samples import UnparsableError
from support.raw_criteo import missing, mix


@settings(deadline=None, derandomize=True)
@given(key=st.integers(0, 2**64 - 1))
def test_mixing_is_a_permutation(key):
    assert kernels.mix(np.uint64(key)) == mix(key)
    assert keys.unmix(np.uint64(mix(key))) == key


def filled(make_keys, column: pa.Array, dtype=np.uint64) -> list[int]:
    out = np.empty(len(column), dtype)
    make_keys(column, out)
    return out.tolist()


def test_hexadecimal_keys():
    texts = [b"", b"0", b"ff", b"0A", b"deadBEEF", b"00000001"]
    assert filled(keys.hex_keys, pa.array(texts), np.uint32) == [int(text or b"0", 16) for text in texts]
    assert filled(keys.hex_keys, pa.array(texts).slice(2, 2)) == [255, 10]
    assert filled(keys.hex_keys, pa.array([], pa.binary())) == []


@pytest.mark.parametrize("text", [b"123456789", b"g", b"-1", b" 1", b"0x1"])
def test_other_texts_are_no_hexadecimal_keys(text):
    with pytest.raises(UnparsableError, match="not up to 8 hexadecimal digits"):
        filled(keys.hex_keys, pa.array([b"1", text]))


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint16(), pa.uint64()])
def test_integer_keys(kind):
    values = [0, 1, None, 127] + ([-1] if pa.types.is_signed_integer(kind) else [])
    assert filled(keys.integer_keys, pa.array(values, kind)) == [missing(value) for value in values]


def test_large_integers_and_booleans_are_keys():
    assert filled(keys.integer_keys, pa.array([2**64 - 1, 2**63 - 1], pa.uint64())) == [2**64 - 1, 2**63 - 1]
    assert filled(keys.integer_keys, pa.array([True, False, None])) == [1, 0, 1 << 63]


def test_text_keys_are_those_of_the_bytes():
    texts = ["", "a", "ä", "a much longer text than eight bytes", None, "a"]
    found = filled(keys.text_keys, pa.array(texts))
    assert found == filled(keys.text_keys, pa.array([text and text.encode() for text in texts], pa.binary()))
    assert found[0] == found[4] == mix(0xCBF29CE484222325)
    assert found[1] == found[5] == mix((0xCBF29CE484222325 ^ 97) * 0x100000001B3 % 2**64)
    assert len(set(found)) == 4
