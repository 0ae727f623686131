"""Counters add up, and their shares are of the right whole."""

from msgspec.structs import astuple

from cachedlrm.cache.counters import CacheCounters, with_bytes

SOME = CacheCounters(
    lookups=100, hit_lookups=90, working_set_rows=40, resident_rows=30, first_touch_rows=6, fetched_rows=4,
    evicted_rows=7, written_back_rows=7, fetched_bytes=64, written_back_bytes=112, moved_rows_min=5,
)  # fmt: skip


def test_field_by_field():
    assert astuple(SOME + SOME) == tuple(2 * value for value in astuple(SOME))
    assert SOME + SOME - SOME == SOME == SOME + CacheCounters()


def test_shares():
    assert (SOME.hit_ratio, SOME.unique_hit_ratio, SOME.moved_rows, SOME.moved_of_min) == (0.9, 0.75, 10, 2.0)
    nothing = CacheCounters()
    assert (nothing.hit_ratio, nothing.unique_hit_ratio, nothing.moved_rows, nothing.moved_of_min) == (0, 0, 0, None)


def test_bytes_are_those_of_moved_rows():
    counted = with_bytes(CacheCounters(fetched_rows=3, written_back_rows=2, first_touch_rows=9), 48)
    assert (counted.fetched_bytes, counted.written_back_bytes) == (144, 96)


def test_names_in_a_report():
    shown = SOME.as_json()
    assert (shown["hit_ratio"], shown["unique_hit_ratio"], shown["fetched_rows"]) == (0.9, 0.75, 4)
    assert "moved_rows_min" not in shown
