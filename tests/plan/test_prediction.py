"""What is expected of a run, from its first batches; tests/plan/test_main.py compares with runs."""

import pytest

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.plan.prediction import Expectation, PredictedCache, Prediction, extrapolate


def batch(first_touches: int, fetched: int = 0, evicted: int = 0, hits: int = 0) -> CacheCounters:
    """A batch of 100 lookups whose records have 10 bytes."""
    return CacheCounters(100, hits, 50, 50 - first_touches - fetched, first_touches, fetched, evicted, evicted,
                         10 * fetched, 10 * evicted)  # fmt: skip


def expected(course: list[CacheCounters], num_batches: int, cache_slots: int, num_rows: int = 10_000) -> Expectation:
    return of_epochs(course, num_batches, num_batches, cache_slots, num_rows)


def of_epochs(
    course: list[CacheCounters], num_batches: int, batches_per_epoch: int, cache_slots: int, num_rows: int = 10**6
) -> Expectation:
    return extrapolate(
        course,
        num_batches=num_batches,
        batches_per_epoch=batches_per_epoch,
        num_rows=num_rows,
        cache_slots=cache_slots,
        num_steps=num_batches,
        record_bytes=10.0,
    )


def test_a_run_as_long_as_its_sample_is_the_sample():
    course = [batch(20, hits=70), batch(10, 5, 8, hits=80)]
    found = expected(course, 2, 30)
    assert (found.lookups, found.hit_ratio, found.first_touch_rows) == (200, 0.75, 30)
    assert (found.fetched_rows, found.written_back_rows, found.record_bytes) == (5, 8, 10.0)
    assert found.moved_bytes_per_step == 13 * 10 / 2


def test_a_cache_that_never_fills_misses_first_touches_alone():
    found = expected([batch(10, hits=90) for _ in range(8)], 16, 10_000)
    assert found.first_touch_rows == pytest.approx(160)  # as many a batch as in the sample
    assert found.fetched_rows == found.written_back_rows == 0
    assert found.hit_ratio == pytest.approx(0.9)


def test_first_touches_end_with_the_rows():
    found = expected([batch(10, hits=90) for _ in range(8)], 1000, 10_000, num_rows=100)
    assert found.first_touch_rows == 100


def test_a_full_cache_goes_on_at_the_rate_of_the_last_quarter():
    course = [batch(40, hits=60)] * 6 + [batch(0, 20, 20, hits=80)] * 2
    found = expected(course, 16, 100)
    assert found.fetched_rows + found.first_touch_rows == pytest.approx(6 * 40 + 10 * 20)
    assert found.written_back_rows == pytest.approx(10 * 20)


def one_batch(created: int, fetched: int = 0, evicted: int = 0) -> CacheCounters:
    """A batch of 1,000 lookups on 500 rows, two lookups a row."""
    moved = created + fetched
    return CacheCounters(
        lookups=1000, hit_lookups=1000 - 2 * moved, working_set_rows=500, resident_rows=500 - moved,
        first_touch_rows=created, fetched_rows=fetched, evicted_rows=evicted, written_back_rows=evicted,
        fetched_bytes=10 * fetched, written_back_bytes=10 * evicted,
    )  # fmt: skip


def test_a_full_cache_goes_on_missing_and_creating_at_its_rates():
    course = [one_batch(100)] * 4 + [one_batch(100, 50, 150)] * 4
    found = of_epochs(course, 16, 16, 400)
    assert found.lookups == 16_000
    # 100 new rows a batch, in the first half of the sample as in the second: they go on.
    assert found.first_touch_rows == pytest.approx(1600)
    assert found.fetched_rows == pytest.approx(12 * 50)
    assert found.written_back_rows == pytest.approx(12 * 150)
    assert found.hit_lookups == pytest.approx(16_000 - 2 * (4 * 100 + 12 * 150))
    assert found.moved_bytes_per_step == pytest.approx(10 * (600 + 1800) / 16)


def test_a_cache_that_fills_later_goes_on_at_the_rate_of_that_moment():
    found = of_epochs([one_batch(100)] * 8, 32, 32, 1600)  # full after 16 batches
    assert found.first_touch_rows == pytest.approx(3200)
    assert found.written_back_rows == pytest.approx(1600)
    assert found.fetched_rows == pytest.approx(0)
    assert found.hit_ratio == pytest.approx(0.8)
    growing = of_epochs([one_batch(50)] * 4 + [one_batch(100)] * 4, 16, 16, 1600)
    assert growing.first_touch_rows == pytest.approx(600 + 8 * 100)  # at most as fast as in the sample
    larger = of_epochs([one_batch(100)] * 8, 32, 32, 3200)
    assert larger.written_back_rows == 0


def test_first_touches_fall_as_a_power_and_end_with_the_epoch():
    course = [one_batch(new) for new in (400, 200, 100, 100, 50, 50, 50, 50)]  # each doubling brings 200
    assert of_epochs(course, 64, 64, 10**6).first_touch_rows == pytest.approx(1000 + 3 * 200)
    assert of_epochs(course, 64, 16, 10**6).first_touch_rows == pytest.approx(1000 + 200)
    falling = [one_batch(new) for new in (400, 200, 100, 100, 25, 25, 25, 25)]  # each doubling half of the one before
    assert of_epochs(falling, 32, 32, 10**6).first_touch_rows == pytest.approx(900 + 50 + 25)
    none = of_epochs([one_batch(0)] * 4, 8, 8, 10)
    assert (none.first_touch_rows, none.hit_ratio) == (0, 1.0)


def test_no_more_rows_are_new_than_the_tables_have():
    # 800 of 1,000 rows after 8 batches at an unbroken rate: the others come in two more, and then none.
    found = of_epochs([one_batch(100)] * 8, 64, 64, 1000, 1000)
    assert found.first_touch_rows == 1000
    assert (found.fetched_rows, found.written_back_rows) == (0, 0)  # all of them fit
    assert found.hit_lookups == pytest.approx(64_000 - 2 * 1000)


def test_a_prediction_in_a_line_and_in_a_report():
    chosen = Expectation(50, 10, 1000.0, 900.0, 60.0, 40.0, 70.0, 128.0)
    prediction = Prediction(2, 60, 10, 100, chosen, (chosen,), {"link": 2.0, "arithmetic": 0.5})
    assert prediction.summary() == (
        "predicted from 2 of 10 batches: 90.00% hits, 4 rows fetched and 1.4 KiB moved a step, "
        "at most 50,000 samples/s (link)"
    )
    assert prediction.by_size == (PredictedCache(50, 0.9, 1408.0, fits=True, judged=True),)
    assert prediction.of_run.samples_per_s_at_most == 50_000
    assert prediction.of_run.first_touch_rows_per_step == 6
    assert (prediction.of_run.sampled_rows, prediction.of_run.recommended_slots) == (60, 50)
    unknown = Prediction(2, 60, 10, 100, chosen, (chosen,), {})
    assert unknown.of_run.samples_per_s_at_most is None
    assert unknown.summary().endswith("1.4 KiB moved a step")


@pytest.mark.parametrize(
    ("sampled_rows", "sampled_batches", "recommended"),
    [(100, 2, 40), (40, 2, 40), (39, 2, 160), (9, 10, 40)],
    ids=["judged", "just judged", "the largest that fits where it is not", "the sample is the run"],
)
def test_the_recommended_cache_is_the_smallest_near_the_best_of_those_that_fit_if_it_can_be_judged(
    sampled_rows, sampled_batches, recommended
):
    sizes = [(10, 800.0, True), (40, 890.5, True), (90, 900.0, True), (160, 900.5, True), (500, 999.0, False)]
    curve = tuple(Expectation(slots, 10, 1000.0, hits, 0.0, 0.0, 0.0, 8.0, fits) for slots, hits, fits in sizes)
    prediction = Prediction(sampled_batches, sampled_rows, 10, 100, curve[0], curve, {})
    assert prediction.of_run.recommended_slots == recommended
    assert [cache.fits for cache in prediction.by_size] == [True, True, True, True, False]
    judged = [slots <= sampled_rows or sampled_batches == 10 for slots, *_ in sizes]
    assert [cache.judged for cache in prediction.by_size] == judged
