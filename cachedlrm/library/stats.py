"""The work and the contents of a cache, for people: one line, a table of rich, scalars of TensorBoard."""

from dataclasses import dataclass
from typing import Any, Protocol

from rich.table import Table

from cachedlrm.base.units import format_bytes
from cachedlrm.cache.counters import CacheCounters
from cachedlrm.library.engine import Engine


class ScalarWriter(Protocol):
    """The part of ``torch.utils.tensorboard.SummaryWriter`` that is needed."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Adds a number."""
        ...


@dataclass(frozen=True)
class Stats:
    """The state of a cache at one moment. ``print(bags.stats)`` is one line; rich shows a table.

    Attributes:
        steps: taken.
        counters: of all batches so far.
        table_rows: rows of all tables.
        slots: rows that the device may keep.
        resident_rows: that it keeps.
        store_rows: records in host memory.
        device_bytes: of the cache's tensors on the device.
        host_bytes: of the records in host memory.
        disk_bytes: of the store on disk; 0 without one.
    """

    steps: int
    counters: CacheCounters
    table_rows: int
    slots: int
    resident_rows: int
    store_rows: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int

    @classmethod
    def of(cls, engine: Engine, counters: CacheCounters, steps: int) -> "Stats":
        """Of a cache as it is now."""
        cache = engine.cache
        return cls(
            steps=steps,
            counters=counters,
            table_rows=engine.tables.num_rows,
            slots=sum(engine.slots),
            resident_rows=cache.resident_rows,
            store_rows=cache.store_records,
            device_bytes=sum(cache.device_bytes.values()),
            host_bytes=cache.store_bytes,
            disk_bytes=cache.disk_bytes()[0] or 0,
        )

    @property
    def hit_ratio(self) -> float:
        """Share of lookups whose row was on the device when its batch was planned."""
        return self.counters.hit_ratio

    @property
    def moved_of_min(self) -> float | None:
        """Rows brought in for each that Belady's MIN brings in; None without ``report_min=True``."""
        return self.counters.moved_of_min

    def __str__(self) -> str:
        words = [
            f"step {self.steps:,}",
            f"{self.hit_ratio:.1%} hits",
            f"{self.counters.moved_rows:,} rows in",
            f"{self.counters.evicted_rows:,} out",
            f"{self.resident_rows:,} of {self.slots:,} slots",
            f"device {format_bytes(self.device_bytes)}",
            f"host {format_bytes(self.host_bytes)}",
        ]
        if self.moved_of_min is not None:
            words.insert(3, f"{self.moved_of_min:.2f} x MIN")
        if self.disk_bytes:
            words.append(f"disk {format_bytes(self.disk_bytes)}")
        return ", ".join(words)

    def __rich__(self) -> Table:
        """For ``rich.print`` and ``rich.live.Live``."""
        counters = self.counters
        lines = {
            "steps": f"{self.steps:,}",
            "hits": f"{self.hit_ratio:.2%} of {counters.lookups:,} lookups",
            "rows of the batches on the device": f"{counters.unique_hit_ratio:.2%}",
            "first touches": f"{counters.first_touch_rows:,}",
            "fetched": f"{counters.fetched_rows:,} ({format_bytes(counters.fetched_bytes)})",
            "evicted, written back": f"{counters.evicted_rows:,} ({format_bytes(counters.written_back_bytes)})",
            "slots in use": f"{self.resident_rows:,} of {self.slots:,}, for {self.table_rows:,} rows",
            "device": format_bytes(self.device_bytes),
            "host memory": f"{format_bytes(self.host_bytes)}, {self.store_rows:,} records",
        }
        if self.moved_of_min is not None:
            lines["rows moved, of MIN's"] = f"{self.moved_of_min:.3f}"
        if self.disk_bytes:
            lines["disk"] = format_bytes(self.disk_bytes)
        table = Table("cached tables", "", show_edge=False, pad_edge=False)
        for name, value in lines.items():
            table.add_row(name, value)
        return table

    def scalars(self) -> dict[str, float]:
        """All of it as numbers, by the names that ``python -m cachedlrm.train --tensorboard`` gives them."""
        numbers = {f"cache/{name}": float(value) for name, value in self.counters.as_json().items()}
        if self.moved_of_min is not None:
            numbers["cache/moved_of_min"] = self.moved_of_min
        for name in ("device_bytes", "host_bytes", "disk_bytes"):
            numbers[f"memory/{name}"] = float(getattr(self, name))
        return {**numbers, "memory/resident_slots": float(self.resident_rows)}

    def log(self, writer: ScalarWriter, step: int | None = None) -> None:
        """Adds the scalars to a ``SummaryWriter``, at ``step`` or else at the steps taken."""
        for tag, value in self.scalars().items():
            writer.add_scalar(tag, value, self.steps if step is None else step)
