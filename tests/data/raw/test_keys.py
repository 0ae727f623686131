"""Categories as numbers, against plain Python."""

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base import kernels
from cachedlrm.data.raw import keys
from cachedlrm.data.raw.samples import UnparsableError
from support.raw_criteo import MISSING, hashed, missing, mix


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


def test_a_value_is_what_it_says_whatever_type_holds_it():
    """For all pairs of types: a column may have one in one file and another in the next."""
    values = [7, -7, 0, None, 2**53, -(2**53)]
    columns = [
        pa.array(values, pa.int64()),
        pa.array(values, pa.float64()),
        pa.array(values, pa.decimal128(20, 0)),
        pa.array([value if value is None else str(value) for value in values]),
        pa.array([value if value is None else f"{value}.0" for value in values], pa.large_string()),
    ]
    columns += [columns[3].cast(kind) for kind in (pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())]
    columns += [column.dictionary_encode() for column in columns[:5]]
    wanted = [missing(value) for value in values]
    for column in columns:
        assert filled(keys.value_keys, column) == wanted, column.type
        assert filled(keys.value_keys, column.slice(2, 3)) == wanted[2:5], column.type
    assert filled(keys.value_keys, pa.array([1, 0, None], pa.uint8())) == filled(
        keys.value_keys, pa.array([True, False, None])
    )
    large = [2**63, 2**64 - 1, 2**63 - 1, None]
    found = filled(keys.value_keys, pa.array(large, pa.uint64()))
    assert found == filled(keys.value_keys, pa.array([value and str(value) for value in large]))
    assert found == [hashed(str(2**63)), hashed(str(2**64 - 1)), 2**63 - 1, MISSING]
    assert found[1] not in filled(keys.value_keys, pa.array([-1]))
    assert filled(keys.value_keys, pa.array([date(2026, 11, 30)])) == [hashed("2026-11-30")]
    assert filled(keys.value_keys, pa.array([b"abc"], pa.binary(3))) == [hashed("abc")]


@pytest.mark.parametrize("text", ["07", "+7", "-0", "-0.0", "7.", "7.00", " 7", "", "-", "1e3", str(2**63), "1" * 30])
def test_what_no_program_writes_for_a_number_is_a_text(text):
    assert filled(keys.value_keys, pa.array([text])) == [hashed(text)]


def test_a_missing_value_is_one_of_its_own():
    for column in (pa.array([None, -(2**63)]), pa.array([None, ""]), pa.array([float("nan"), 0.0]), pa.nulls(1)):
        first, *others = filled(keys.value_keys, column)
        assert first == MISSING not in others
    folded = np.array([MISSING, MISSING % 10, 13], np.uint64)
    keys.fold_keys(folded, 10)
    assert folded.tolist() == [MISSING, MISSING % 10, 3]
    of_criteo = np.array([13], np.uint32)
    keys.fold_keys(of_criteo, 10)
    assert of_criteo.tolist() == [3]


def test_floats_that_are_not_whole_are_no_categories():
    out = np.empty(5, np.uint64)
    bad = keys.value_keys(pa.array([1.0, 1.5, float("inf"), 2.0**53 + 2, None]), out)
    assert bad.tolist() == [False, True, True, True, False]
    assert keys.value_keys(pa.array([1.5, 2.0, None, 2.0, 1.5]).dictionary_encode(), out).tolist() == [
        True,
        *[False] * 3,
        True,
    ]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (pa.timestamp("us"), "hardly repeats; take the hour"),
        (pa.decimal128(9, 2), "2 digits after the point"),
        (pa.struct([("a", pa.int32())]), "one integer or text a row"),
        (pa.dictionary(pa.int32(), pa.duration("s")), "hardly repeats"),
    ],
)
def test_types_that_hold_no_categories(kind, words):
    assert words in keys.unusable_as_ids(kind)


def test_text_keys_are_those_of_the_bytes():
    texts = ["", "a", "ä", "a much longer text than eight bytes", None, "a"]
    found = filled(keys.text_keys, pa.array(texts))
    assert found == filled(keys.text_keys, pa.array([text and text.encode() for text in texts], pa.binary()))
    assert found == [MISSING if text is None else hashed(text) for text in texts]
    assert found[1] == mix((0xCBF29CE484222325 ^ 97) * 0x100000001B3 % 2**64)
