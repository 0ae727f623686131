"""Values as people write them: read, refused, and written so that reading gives them back."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.units import (
    LARGEST,
    finite,
    format_bytes,
    format_seconds,
    parse_budget,
    parse_bytes,
    parse_frequency,
    parse_ratios,
    parse_sizes,
    parse_switch,
    parse_weights,
    parse_whole,
)

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "1", 1),
        (parse_bytes, " 1.5 GiB ", 3 << 29),
        (parse_bytes, "500mb", 500_000_000),
        (parse_bytes, "0.3333kb", 333),  # a part of a byte is dropped
        (parse_bytes, str(LARGEST), LARGEST),
        (parse_bytes, "9007199254740993", 2**53 + 1),  # no float holds it
        (parse_budget, "AUTO", "auto"),
        (parse_budget, "2KiB", 2048),
        (parse_frequency, "Epoch", "epoch"),
        (parse_frequency, "-1", -1),
        (parse_whole, " -7 ", -7),
        (parse_whole, str(LARGEST), LARGEST),
        (parse_sizes, "512-256-1", (512, 256, 1)),
        (parse_sizes, "3", (3,)),
        (parse_weights, "0.5-1.0", (0.5, 1.0)),
        (parse_weights, "0-3.", (0.0, 3.0)),
        (parse_ratios, "0.01, .5,1", (0.01, 0.5, 1.0)),
        (parse_switch, "TRUE", True),
        (parse_switch, "False", False),
    ],
)
def test_values_are_read(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_bytes, "0"),
        (parse_bytes, "0.4"),
        (parse_bytes, "1.5"),  # of a byte
        (parse_bytes, "-1GiB"),
        (parse_bytes, "1 PiB"),
        (parse_bytes, str(LARGEST + 1)),
        (parse_budget, "automatic"),
        (parse_frequency, "epochs"),
        (parse_whole, "3.5"),
        (parse_whole, "1e3"),
        (parse_whole, "٣"),  # a digit of another script
        (parse_whole, str(-LARGEST - 1)),
        (parse_whole, "9" * 5000),
        (parse_sizes, "512-"),
        (parse_sizes, "3-0"),
        (parse_sizes, "-3"),
        (parse_weights, "0.5"),
        (parse_weights, "1-nan"),
        (parse_ratios, "0"),
        (parse_ratios, "0.5,"),
        (parse_ratios, "1.01"),
        (parse_switch, "yes"),
    ],
)
def test_anything_else_is_refused_with_its_text(parse, text):
    with pytest.raises(ValueError, match=re.escape(f'"{text[:40]}')) as refused:
        parse(text)
    assert len(str(refused.value)) < 200


def test_bytes_are_rounded_up():
    assert format_bytes(0) == "0 B"
    assert format_bytes(1000) == "1000 B"
    assert format_bytes(1024) == "1.0 KiB"
    assert format_bytes(1025) == "1.1 KiB"
    assert format_bytes(2**20 + 1) == "1.1 MiB"
    assert format_bytes(5 * 2**30) == "5.0 GiB"


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(1, 2**45))
def test_bytes_read_back_are_enough_and_hardly_more(num_bytes):
    unit = format_bytes(num_bytes).split()[1]
    assert num_bytes - 1 <= parse_bytes(format_bytes(num_bytes)) <= num_bytes + UNITS[unit] // 10 + 1


def test_seconds():
    assert [format_seconds(s) for s in (0, 59.6, 3600, 86_399)] == ["0:00:00", "0:01:00", "1:00:00", "23:59:59"]
    assert format_seconds(math.nan) == format_seconds(math.inf) == "-:--:--"


def test_finite_keeps_all_but_nan_and_infinities():
    assert [finite(value) for value in (None, 0, 0.25, 1 << 60)] == [None, 0, 0.25, 1 << 60]
    assert [finite(value) for value in (math.nan, math.inf, -math.inf)] == [None, None, None]
