"""The planner without training: what caches of several sizes would do on a stream of ids, in one pass over it."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from cachedlrm.cache.counters import CacheCounters, with_bytes
from cachedlrm.cache.minimum import MinimumMoves
from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import Policy, make_policy
from cachedlrm.cache.table_group import GroupSlots
from cachedlrm.cache.working_set import AddressBook, WorkingSet
from cachedlrm.data.batch import Dataset
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.resolved import Resolved, ResolvedCache
from cachedlrm.options.schedule import Schedule
from cachedlrm.plan.device_tier import CacheRequest, DeviceSizes, size_device
from cachedlrm.plan.id_pass import inform_policies
from cachedlrm.plan.step_bytes import StepShape
from cachedlrm.plan.tiers import step_shape
from cachedlrm.store.records import GroupShape

_Cache = TypeVar("_Cache")
_NO_LIMIT = 2**62  # bytes: sizes are asked for, and nothing is allocated
HIT_MARGIN = 0.01
"""Share of all lookups by which the recommended cache may fall short of the best one."""


@dataclass(frozen=True)
class CurvePoint:
    """The work of a cache of one size: the counters of a training run with it.

    Attributes:
        ratio: ``--gpu-cache-ratio``.
        cache_slots: rows it keeps.
        device_bytes: all that the device holds beside and in them: slots, batches, layers, activations.
        counters: of the whole stream.
    """

    ratio: float
    cache_slots: int
    device_bytes: int
    counters: CacheCounters


@dataclass(frozen=True)
class Curve:
    """A miss-ratio curve.

    Attributes:
        table_rows: all rows.
        num_steps: of the stream.
        points: in the order of the ratios.
    """

    table_rows: int
    num_steps: int
    points: tuple[CurvePoint, ...]

    @property
    def touched_rows(self) -> int:
        """Rows that the stream touches at all; larger caches hold all of them, and differ in nothing."""
        return self.points[0].counters.first_touch_rows

    def recommended(self, limit_bytes: int | None) -> CurvePoint | None:
        """The smallest of the points within a limit whose hits are near the best of them, as `smallest_enough` says."""
        fitting = [point for point in self.points if limit_bytes is None or point.device_bytes <= limit_bytes]
        return smallest_enough(fitting, lambda point: (point.cache_slots, point.counters.hit_ratio))


def miss_ratio_curve(options: Resolved, dataset: Dataset, ratios: Sequence[float]) -> Curve:
    """Simulates caches of several sizes on the ids of the run that ``options`` describe.

    The counters of each size are those of a training run with that ``--gpu-cache-ratio``. Policies ``static`` and
    ``oracle`` read the ids once more.

    Args:
        options: resolved; ``cache`` says the policy and its window, the prefetch depth, and whether MIN is counted.
        dataset: what they were resolved with.
        ratios: slots as shares of all rows, each above 0 and at most 1.

    Raises:
        UserError: ids are wrong, or next uses do not fit the temporary folder.
    """
    architecture = build_architecture(options.model, options.optimisation)
    step = step_shape(options, architecture, dataset, torch.device(options.run.device))
    sizes = sizes_at(step, ratios)
    totals = [CacheCounters()] * len(sizes)
    for counters in planned_batches(options, dataset, [size.groups for size in sizes]):
        totals = [total + one for total, one in zip(totals, counters, strict=True)]
    points = zip(ratios, sizes, totals, strict=True)
    return Curve(
        step.num_rows,
        Schedule(options, dataset.train).num_steps,
        tuple(CurvePoint(ratio, size.quota_slots, size.total_bytes, counters) for ratio, size, counters in points),
    )


def smallest_enough(caches: Sequence[_Cache], slots_and_hits: Callable[[_Cache], tuple[int, float]]) -> _Cache | None:
    """The smallest cache whose hit ratio is at most `HIT_MARGIN` below the best one's; None if there are no caches."""
    best = max((slots_and_hits(cache)[1] for cache in caches), default=0.0)
    enough = [cache for cache in caches if slots_and_hits(cache)[1] >= best - HIT_MARGIN]
    return min(enough, key=lambda cache: slots_and_hits(cache)[0], default=None)


def sizes_at(step: StepShape, ratios: Sequence[float]) -> list[DeviceSizes]:
    """Sizes of caches given as shares of all rows, whether they fit or not."""
    return [
        size_device(step, CacheRequest(ratio, None, None), _NO_LIMIT, lambda: step.working_set_bounds)
        for ratio in ratios
    ]


def planned_batches(
    options: Resolved, dataset: Dataset, caches: Sequence[Sequence[GroupSlots]]
) -> Iterator[list[CacheCounters]]:
    """Simulates caches on the ids of a run: the counters of each cache, batch by batch.

    Args:
        options: resolved.
        dataset: what they were resolved with.
        caches: slots of each group of each cache.

    Raises:
        UserError: ids are wrong, or next uses do not fit the temporary folder.
    """
    schedule = Schedule(options, dataset.train)
    architecture = build_architecture(options.model, options.optimisation)
    router = architecture.router()
    groups = architecture.shapes
    num_rows = [group.num_rows for group in groups]
    window = min(options.cache.lookahead, schedule.num_batches)
    planned = [_PlannedCache(groups, slots, options.cache, window) for slots in caches]
    books = [AddressBook(rows) for rows in num_rows]
    with tempfile.TemporaryDirectory(prefix="cachedlrm-") as folder:
        policies = [cache.policies for cache in planned]
        inform_policies(
            policies, num_rows, router, schedule, options, run_dir=Path(folder), row_counts=dataset.row_counts
        )
        waiting: deque[list[WorkingSet]] = deque()
        for index, batch in enumerate(schedule.batches()):
            lookups = router(batch)
            working_sets = [
                book.working_set(index, part.rows, part.offsets) for book, part in zip(books, lookups, strict=True)
            ]
            for cache in planned:
                cache.announce(working_sets)
            waiting.append(working_sets)
            if len(waiting) > planned[0].policies[0].window:  # that of all
                working_sets = waiting.popleft()
                yield [cache.plan(working_sets) for cache in planned]
        while waiting:
            working_sets = waiting.popleft()
            yield [cache.plan(working_sets) for cache in planned]


class _PlannedCache:
    """The planners of all groups for one size.

    Args:
        groups: rows and records of each.
        slots: of each group.
        options: policy, prefetch depth, and whether MIN is counted.
        window: batches known ahead.
    """

    def __init__(
        self,
        groups: Sequence[GroupShape],
        slots: Sequence[GroupSlots],
        options: ResolvedCache,
        window: int,
    ) -> None:
        self.policies: list[Policy] = []
        self._planners = []
        self._record_bytes = [group.layout.record_bytes for group in groups]
        for group, own in zip(groups, slots, strict=True):
            policy = make_policy(options.policy, own.total, group.num_rows, window)
            minimum = MinimumMoves(own.quota) if options.report_min else None
            self.policies.append(policy)
            self._planners.append(Planner(own.quota, own.total, policy, options.prefetch_depth, minimum=minimum))

    def announce(self, working_sets: Sequence[WorkingSet]) -> None:
        """Takes the next batch."""
        for planner, working_set in zip(self._planners, working_sets, strict=True):
            planner.announce(working_set)

    def plan(self, working_sets: Sequence[WorkingSet]) -> CacheCounters:
        """Plans the oldest batch not planned yet; the counters of all groups together."""
        total = CacheCounters()
        for planner, working_set, record_bytes in zip(self._planners, working_sets, self._record_bytes, strict=True):
            total += with_bytes(planner.plan(working_set).counters, record_bytes)
        return total
