"""Expectations of a run from the ids of its first batches: hits, rows moved, and the highest possible speed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cachedlrm.base.units import finite, format_bytes
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.data.batch import Dataset
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.schedule import Schedule
from cachedlrm.plan.device_tier import DeviceSizes
from cachedlrm.plan.id_pass import Tell, tell_nobody
from cachedlrm.plan.roofline import step_ms
from cachedlrm.plan.simulation import planned_batches, sizes_at, smallest_enough
from cachedlrm.plan.tiers import Tiers

_SAMPLED_BATCHES, _SAMPLED_LOOKUPS = 200, 50_000_000  # whichever is fewer batches
_LEAST_SAMPLED_BATCHES = 20
_CURVE = (1 / 64, 1 / 16, 1 / 4, 4)  # sizes of the other caches, as multiples of the run's


@dataclass(frozen=True)
class Expectation:
    """The expected work of a cache over a run.

    Attributes:
        cache_slots: rows it keeps.
        num_steps: of the run.
        lookups: in all bags.
        hit_lookups: those that find their row resident.
        first_touch_rows: rows created, which are the rows that the run touches at all.
        fetched_rows: rows read from a lower tier.
        written_back_rows: rows copied down.
        record_bytes: of a row, on average where tables differ.
        fits: whether the device holds such a cache beside a step.
    """

    cache_slots: int
    num_steps: int
    lookups: float
    hit_lookups: float
    first_touch_rows: float
    fetched_rows: float
    written_back_rows: float
    record_bytes: float
    fits: bool = True

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that hit; 0 without lookups."""
        return self.hit_lookups / self.lookups if self.lookups else 0.0

    def per_step(self, count: float) -> float:
        """A count over the run, by step."""
        return count / max(1, self.num_steps)

    @property
    def moved_bytes_per_step(self) -> float:
        """Bytes fetched and written back."""
        return self.per_step((self.fetched_rows + self.written_back_rows) * self.record_bytes)


@dataclass(frozen=True)
class PredictedRun:
    """Key ``prediction`` of ``report.json``; the rate is the highest that the described hardware allows."""

    hit_ratio: float | None
    fetched_rows_per_step: float | None
    first_touch_rows_per_step: float | None
    moved_bytes_per_step: float | None
    samples_per_s_at_most: float | None
    sampled_batches: int
    batches: int
    sampled_rows: int | None = None
    """Rows that the sample touches; it cannot judge larger caches. None in reports of earlier releases."""
    recommended_slots: int | None = None
    """Of a cache; see `Prediction.recommended`. None in reports of earlier releases."""


@dataclass(frozen=True)
class PredictedCache:
    """An entry of ``miss_ratio_curve`` in ``report.json``: a cache of one size."""

    cache_slots: int
    hit_ratio: float
    moved_bytes_per_step: float
    fits: bool | None = None
    """Whether the device holds it beside a step; None in reports of earlier releases."""
    judged: bool | None = None
    """Whether the sample touches as many rows, or is the whole run; None in reports of earlier releases."""


@dataclass(frozen=True)
class Prediction:
    """Expectations of a run, and of other sizes of its cache.

    Attributes:
        sampled_batches: batches whose ids were read.
        sampled_rows: rows that they touch.
        num_batches: batches of the run.
        batch_size: samples of a step.
        chosen: the run's cache.
        curve: caches of several sizes, the run's among them, from the smallest on.
        step_ms: the least milliseconds of a step, by the part of the hardware that sets this bound (see
            `cachedlrm.plan.roofline`); empty unless the hardware is described.
    """

    sampled_batches: int
    sampled_rows: int
    num_batches: int
    batch_size: int
    chosen: Expectation
    curve: tuple[Expectation, ...]
    step_ms: dict[str, float]

    def judges(self, cache: Expectation) -> bool:
        """Whether the sample can tell the cache from larger ones: it holds no row more than the sample touches."""
        return cache.cache_slots <= self.sampled_rows or self.sampled_batches == self.num_batches

    @property
    def recommended(self) -> Expectation:
        """The smallest cache that is enough (`smallest_enough`) of those that fit; the largest if that is not known."""
        fitting = [cache for cache in self.curve if cache.fits]
        enough = smallest_enough(fitting, lambda cache: (cache.cache_slots, cache.hit_ratio))
        assert enough is not None, "the run's own cache fits"
        return enough if self.judges(enough) else fitting[-1]

    @property
    def samples_per_s_at_most(self) -> float | None:
        """The rate at which the slowest part of the hardware is always busy; None unless the hardware is described."""
        return self.batch_size / max(self.step_ms.values()) * 1e3 if self.step_ms else None

    @property
    def of_run(self) -> PredictedRun:
        """The run's part of a report."""
        chosen = self.chosen
        return PredictedRun(
            hit_ratio=chosen.hit_ratio,
            fetched_rows_per_step=chosen.per_step(chosen.fetched_rows),
            first_touch_rows_per_step=chosen.per_step(chosen.first_touch_rows),
            moved_bytes_per_step=chosen.moved_bytes_per_step,
            samples_per_s_at_most=finite(self.samples_per_s_at_most),
            sampled_batches=self.sampled_batches,
            batches=self.num_batches,
            sampled_rows=self.sampled_rows,
            recommended_slots=self.recommended.cache_slots,
        )

    @property
    def by_size(self) -> tuple[PredictedCache, ...]:
        """The report's part on caches of several sizes."""
        return tuple(
            PredictedCache(
                point.cache_slots, point.hit_ratio, point.moved_bytes_per_step, point.fits, self.judges(point)
            )
            for point in self.curve
        )

    def summary(self) -> str:
        """The prediction in one line."""
        chosen, rate = self.chosen, self.samples_per_s_at_most
        bound = ""
        if rate is not None:
            bound = f", at most {rate:,.0f} samples/s ({max(self.step_ms, key=self.step_ms.__getitem__)})"
        return (
            f"predicted from {self.sampled_batches:,} of {self.num_batches:,} batches: {chosen.hit_ratio:.2%} hits, "
            f"{chosen.per_step(chosen.fetched_rows):,.0f} rows fetched and "
            f"{format_bytes(int(chosen.moved_bytes_per_step))} moved a step{bound}"
        )


def predict(
    options: Resolved,
    dataset: Dataset,
    tiers: Tiers,
    sampled_batches: int | None = None,
    tell: Tell = tell_nobody,
) -> Prediction:
    """Plans the first batches of a run with its cache and some larger and smaller ones; the rest is extrapolated.

    Args:
        options: resolved.
        dataset: that they were resolved with.
        tiers: sizes of the run.
        sampled_batches: batches to read. None: 200, or fewer where they have more than 50 million
            lookups, but at least 20.
        tell: called with the share of them planned so far.

    Raises:
        UserError: ids are wrong, or next uses do not fit the temporary folder.
    """
    schedule = Schedule(options, dataset.train)
    if sampled_batches is None:
        with_lookups = _SAMPLED_LOOKUPS // max(1, schedule.lookups_per_batch)
        sampled_batches = min(_SAMPLED_BATCHES, max(_LEAST_SAMPLED_BATCHES, with_lookups))
    sampled = min(sampled_batches, schedule.num_batches)
    # Policy lookahead need not see the batches after the sample: their rows cannot hit in it.
    steps = schedule.steps(sampled - 1)[1] if sampled else 0
    sample = replace(options, run=replace(options.run, steps=steps), cache=replace(options.cache, report_min=False))
    step, rows = tiers.step, tiers.step.num_rows
    ratios = sorted({min(1.0, tiers.device.quota_slots / rows * multiple) for multiple in _CURVE})
    others = [size for size in sizes_at(step, ratios) if size.quota_slots != tiers.device.quota_slots]
    sizes = [tiers.device, *others]
    courses: list[list[CacheCounters]] = [[] for _ in sizes]
    for index, counters in enumerate(planned_batches(sample, dataset, [size.groups for size in sizes])):
        tell(index / sampled)
        for course, one in zip(courses, counters, strict=True):
            course.append(one)
    in_epoch = schedule.batches_per_epoch
    record_bytes = tiers.table_bytes / rows
    expectations = [
        replace(
            extrapolate(
                course,
                num_batches=schedule.num_batches,
                batches_per_epoch=in_epoch,
                num_rows=rows,
                cache_slots=size.quota_slots,
                num_steps=schedule.num_steps,
                record_bytes=record_bytes,
            ),
            fits=_fits(size, tiers),
        )
        for course, size in zip(courses, sizes, strict=True)
    ]
    chosen = expectations[0]
    return Prediction(
        sampled,
        sum(counters.first_touch_rows for counters in courses[0]),
        schedule.num_batches,
        step.batch_size // step.num_mini_batches,
        chosen,
        tuple(sorted(expectations, key=lambda point: point.cache_slots)),
        step_ms(options, step, chosen) if schedule.num_steps else {},
    )


def _fits(size: DeviceSizes, tiers: Tiers) -> bool:
    """Whether a cache fits in place of the run's, with the same batches: these need the slots that the run's has."""
    own = tiers.device
    more = [
        max(0, group.quota - mine.total) * shape.layout.record_bytes
        for group, mine, shape in zip(size.groups, own.groups, tiers.step.groups, strict=True)
    ]
    return own.total_bytes + sum(more) <= tiers.device_limit


def extrapolate(
    course: Sequence[CacheCounters],
    *,
    num_batches: int,
    batches_per_epoch: int,
    num_rows: int,
    cache_slots: int,
    num_steps: int,
    record_bytes: float,
) -> Expectation:
    """The whole of a run from its first batches.

    First touches go on as a power of the batches (Heaps' law, with the exponent of the sample's last three quarters),
    until an epoch has ended or every row was touched. As long as the cache is not full, they are all that misses. A
    full cache goes on missing at its rate: of the sample's last quarter, or of the moment when the first touches fill
    it, as an LRU cache misses at the rate at which a stream of so many rows finds new ones (Denning and Schwartz,
    "Properties of the working-set model", CACM 15(3), 1972).

    Args:
        course: counters of the first batches, one by one.
        num_batches: batches of the run.
        batches_per_epoch: after which no row is new.
        num_rows: of all tables.
        cache_slots: rows the cache keeps.
        num_steps: of the run.
        record_bytes: of a row, if the sample moved none.
    """
    known = len(course)
    total = sum(course, CacheCounters())
    if total.fetched_rows + total.written_back_rows:
        moved_bytes = total.fetched_bytes + total.written_back_bytes
        record_bytes = moved_bytes / (total.fetched_rows + total.written_back_rows)
    if known >= num_batches or not known:
        return Expectation(
            cache_slots, num_steps, total.lookups, total.hit_lookups, total.first_touch_rows, total.fetched_rows,
            total.written_back_rows, record_bytes,
        )  # fmt: skip
    new_rows = _NewRows(course, batches_per_epoch, num_rows)
    left = num_batches - known
    first_touches = new_rows(num_batches)
    quarter = sum(course[3 * known // 4 :], CacheCounters())
    is_full = quarter.evicted_rows > 0
    if is_full:
        moved = evicted = left * quarter.moved_rows / (known - 3 * known // 4)
    else:
        filled = new_rows.batches_until(cache_slots - total.moved_rows, num_batches)
        evicted = (num_batches - filled) * (new_rows(filled + 1) - new_rows(filled))
        moved = new_rows(filled) + evicted
    half = sum(course[known // 2 :], CacheCounters())
    lookups = total.lookups / known * left
    per_miss = (half.lookups - half.hit_lookups) / half.moved_rows if half.moved_rows else 0.0
    return Expectation(
        cache_slots,
        num_steps,
        total.lookups + lookups,
        total.hit_lookups + max(0.0, lookups - per_miss * moved),
        total.first_touch_rows + first_touches,
        total.fetched_rows + max(0.0, moved - first_touches),
        total.written_back_rows + evicted,
        record_bytes,
    )


class _NewRows:
    """Rows that are touched first after the sample, as a function of the batches trained by then.

    Args:
        course: the sample.
        batches_per_epoch: after which no row is new.
        num_rows: of all tables.
    """

    def __init__(self, course: Sequence[CacheCounters], batches_per_epoch: int, num_rows: int) -> None:
        self._known = len(course)
        self._end = batches_per_epoch
        self._left = num_rows - sum(one.first_touch_rows for one in course)
        quarter, half = self._known // 4, self._known // 2
        earlier = sum(one.first_touch_rows for one in course[quarter:half])
        self._latest = sum(one.first_touch_rows for one in course[half:])  # between the half and the whole
        # Between n and 2 n batches lie 2**exponent times as many as between n / 2 and n.
        self._exponent = min(1.0, math.log2(self._latest / earlier)) if earlier and self._latest else 0.0

    def __call__(self, batches: int) -> float:
        """Rows touched first between the sample's end and ``batches``."""
        doublings = math.log2(max(self._known, min(batches, self._end)) / self._known)
        exponent = self._exponent
        if abs(exponent) < 1e-6:
            return min(self._left, self._latest * doublings)
        return min(self._left, self._latest * (2 ** (exponent * doublings) - 1) / (1 - 2**-exponent))

    def batches_until(self, rows: int, num_batches: int) -> int:
        """The number of batches after which so many rows are new; ``num_batches`` if they never are."""
        low, high = self._known, num_batches
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self(middle) >= rows else (middle + 1, high)
        return low
