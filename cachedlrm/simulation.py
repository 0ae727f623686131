"""The planner without training: what caches of several sizes would do on a stream of ids, in one pass over it."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cachedlrm.architecture import build_architecture
from cachedlrm.budget import CacheRequest, GroupSlots, size_device
from cachedlrm.cache.minimum import MinimumMoves
from cachedlrm.cache.planner import Planner
from cachedlrm.cache.policies import Policy, make_policy
from cachedlrm.cache.working_set import AddressBook, WorkingSet
from cachedlrm.config import CacheOptions, Options
from cachedlrm.data.batch import Dataset
from cachedlrm.foresight import inform_policies
from cachedlrm.job import build_workload, choose_device
from cachedlrm.metrics import CacheCounters, with_bytes
from cachedlrm.schedule import Schedule

_NO_LIMIT = 2**62  # bytes: sizes are asked for, and nothing is allocated


@dataclass(frozen=True)
class CurvePoint:
    """What a cache of one size does: the counters of a training run with it.

    Attributes:
        ratio: ``--gpu-cache-ratio``.
        cache_slots: rows it keeps.
        counters: of the whole stream.
    """

    ratio: float
    cache_slots: int
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


def miss_ratio_curve(options: Options, dataset: Dataset, ratios: Sequence[float]) -> Curve:
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
    assert options.optimisation.optimizer is not None
    schedule = Schedule(options, dataset.train)
    architecture = build_architecture(options.model, options.optimisation.optimizer)
    router = architecture.router()
    workload = build_workload(options, architecture, dataset, choose_device("cpu"))
    num_rows = [group.num_rows for group in workload.groups]
    sizes = [
        size_device(workload, CacheRequest(ratio, None, None), _NO_LIMIT, lambda: workload.working_set_bounds)
        for ratio in ratios
    ]
    window = min(options.cache.lookahead, schedule.num_batches)
    caches = [_PlannedCache(num_rows, size.groups, options.cache, window) for size in sizes]
    record_bytes = [layout.record_bytes for layout in architecture.layouts]
    books = [AddressBook(rows) for rows in num_rows]
    with tempfile.TemporaryDirectory(prefix="cachedlrm-") as folder:
        policies = [cache.policies for cache in caches]
        inform_policies(policies, num_rows, router, schedule, options, Path(folder))
        for index, batch in enumerate(schedule.batches()):
            lookups = router(batch)
            working_sets = [
                book.working_set(index, part.rows, part.offsets) for book, part in zip(books, lookups, strict=True)
            ]
            for cache in caches:
                cache.announce(working_sets)
        points = tuple(
            CurvePoint(ratio, size.quota_slots, cache.finish(record_bytes))
            for ratio, size, cache in zip(ratios, sizes, caches, strict=True)
        )
    return Curve(workload.num_rows, schedule.num_steps, points)


class _PlannedCache:
    """The planners of all groups for one size, and what they counted.

    Args:
        num_rows: rows of each group.
        slots: of each group.
        options: policy, prefetch depth, and whether MIN is counted.
        window: batches known ahead.
    """

    def __init__(
        self, num_rows: Sequence[int], slots: Sequence[GroupSlots], options: CacheOptions, window: int
    ) -> None:
        assert options.prefetch_depth is not None  # resolved
        self.policies: list[Policy] = []
        self._planners = []
        for rows, group in zip(num_rows, slots, strict=True):
            policy = make_policy(options.policy, group.total, rows, window)
            minimum = MinimumMoves(group.quota) if options.report_min else None
            self.policies.append(policy)
            self._planners.append(Planner(rows, group.quota, group.total, policy, options.prefetch_depth, minimum))
        self._waiting = 0
        self._counters = [CacheCounters()] * len(self._planners)

    def announce(self, working_sets: Sequence[WorkingSet]) -> None:
        """Takes the next batch; plans what can be planned."""
        for planner, working_set in zip(self._planners, working_sets, strict=True):
            planner.announce(working_set)
        self._waiting += 1
        while self._planners[0].ready:
            self._plan()

    def _plan(self) -> None:
        for group, planner in enumerate(self._planners):
            _, plan = planner.plan()
            self._counters[group] += plan.counters
        self._waiting -= 1

    def finish(self, record_bytes: Sequence[int]) -> CacheCounters:
        """Plans the rest; the counters of all groups together."""
        while self._waiting:
            self._plan()
        pairs = zip(self._counters, record_bytes, strict=True)
        return sum((with_bytes(counters, size) for counters, size in pairs), CacheCounters())
