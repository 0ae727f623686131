"""Definitions of the cache's counters and of a step's phases."""

import operator
from typing import NamedTuple

import msgspec

PHASES = ("plan", "wait", "evict", "admit", "forward", "backward", "dense_step", "row_step")


PREPARING_PHASES = ("plan", "evict", "admit")
"""Those that make a batch's rows ready; a prefetch thread spends them beside the others."""


TABLE_COUNTS = ("lookups", "hit_lookups", "working_set_rows", "first_touch_rows")
"""Counted for each table too: columns of the arrays [tables, 4] int64, named as in `CacheCounters`."""


class Span(NamedTuple):
    """A piece of a thread's work.

    Attributes:
        name: a phase, or ``read`` for reading samples.
        start: seconds, of `time.perf_counter`.
        end: the same.
    """

    name: str
    start: float
    end: float


class CacheCounters(msgspec.Struct, frozen=True):
    """The cache's work, over one batch or summed over many.

    A Struct, as every step makes several: a frozen dataclass takes ten times as long to make.

    Attributes:
        lookups: lookups in all bags.
        hit_lookups: lookups whose row was resident when the batch's plan was made; first touches are misses, and so is
            every further lookup of a missing row in the same batch.
        working_set_rows: unique rows of each batch.
        resident_rows: those of them that were resident when the plan was made.
        first_touch_rows: rows created by init.
        fetched_rows: rows read from a lower tier.
        evicted_rows: rows that left the device.
        written_back_rows: rows copied down; every trained row is dirty, so as many as were evicted.
        fetched_bytes: bytes of the fetched rows' records.
        written_back_bytes: bytes of the written-back rows' records.
        moved_rows_min: what `moved_rows` would be under Belady's MIN with all rows of a batch resident together, on the
            stream up to here; 0 unless ``--report-min`` is given.
    """

    lookups: int = 0
    hit_lookups: int = 0
    working_set_rows: int = 0
    resident_rows: int = 0
    first_touch_rows: int = 0
    fetched_rows: int = 0
    evicted_rows: int = 0
    written_back_rows: int = 0
    fetched_bytes: int = 0
    written_back_bytes: int = 0
    moved_rows_min: int = 0

    def __add__(self, other: "CacheCounters") -> "CacheCounters":
        return CacheCounters(*map(operator.add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))

    def __sub__(self, other: "CacheCounters") -> "CacheCounters":
        return CacheCounters(*map(operator.sub, msgspec.structs.astuple(self), msgspec.structs.astuple(other)))

    def as_json(self) -> dict[str, float | int]:
        """The keys and values of ``report.json`` and ``cachedlrm.simulate``."""
        return {
            "lookups": self.lookups,
            "hit_ratio": self.hit_ratio,
            "working_set_rows": self.working_set_rows,
            "unique_hit_ratio": self.unique_hit_ratio,
            "first_touch_rows": self.first_touch_rows,
            "fetched_rows": self.fetched_rows,
            "evicted_rows": self.evicted_rows,
            "written_back_rows": self.written_back_rows,
            "fetched_bytes": self.fetched_bytes,
            "written_back_bytes": self.written_back_bytes,
        }

    @property
    def moved_rows(self) -> int:
        """Rows brought in, created or fetched."""
        return self.first_touch_rows + self.fetched_rows

    @property
    def moved_of_min(self) -> float | None:
        """Rows brought in for each that MIN brings in; None unless ``--report-min`` is given."""
        return self.moved_rows / self.moved_rows_min if self.moved_rows_min else None

    @property
    def hit_ratio(self) -> float:
        """Share of lookups that hit; 0 without lookups."""
        return self.hit_lookups / self.lookups if self.lookups else 0.0

    @property
    def unique_hit_ratio(self) -> float:
        """Share of working-set rows that were resident; 0 without any."""
        return self.resident_rows / self.working_set_rows if self.working_set_rows else 0.0


def with_bytes(counters: CacheCounters, record_bytes: int) -> CacheCounters:
    """Counters of rows with records of one size, and their bytes."""
    return counters + CacheCounters(
        fetched_bytes=counters.fetched_rows * record_bytes,
        written_back_bytes=counters.written_back_rows * record_bytes,
    )
