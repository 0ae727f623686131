"""Ticks are round numbers, and few."""

import itertools

import pytest

from cachedlrm.report.axes import BYTES, NUMBER, RATIO, log_ticks, round_ticks


@pytest.mark.parametrize(
    ("low", "high", "unit", "labels"),
    [
        (0.43, 0.98, NUMBER, ["0.4", "0.6", "0.8", "1.0"]),
        (0, 98, NUMBER, ["0", "50", "100"]),
        (0, 23_400, NUMBER, ["0", "10k", "20k", "30k"]),
        (0, 7_500_000, NUMBER, ["0", "2M", "4M", "6M", "8M"]),
        (0.9, 0.92, RATIO, ["90.0%", "90.5%", "91.0%", "91.5%", "92.0%"]),
        (0, 3 << 20, BYTES, ["0", "1 MiB", "2 MiB", "3 MiB"]),
        (0, 0, NUMBER, ["0", "0.5", "1.0"]),
        (5, 5, NUMBER, ["4.5", "5.0", "5.5"]),
        (-3, 2, NUMBER, ["-4", "-2", "0", "2"]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, unit, labels):
    ticks = round_ticks(low, high, unit)
    assert list(ticks.labels) == labels
    assert ticks.places[0] <= low
    assert ticks.places[-1] >= high


@pytest.mark.parametrize("low", [0.0, 5e-324, 1e-300, -1e18, 1e18, 3.0])
@pytest.mark.parametrize("width", [0.0, 5e-324, 1e-9, 1.0, 1e18])
def test_ticks_of_odd_values(low, width):
    for unit in (NUMBER, RATIO, BYTES):
        ticks = round_ticks(low, low + width, unit)
        assert 2 <= len(ticks.places) <= 9
        assert all(a < b for a, b in itertools.pairwise(ticks.places))
        assert max(map(len, ticks.labels)) <= 40


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(10, 2_000_000, NUMBER).labels == ("10", "100", "1000", "10k", "100k", "1M")
    assert log_ticks(30, 300, NUMBER).labels == ("50", "100", "200")
    assert log_ticks(30, 31, NUMBER).labels == ("30", "31")
