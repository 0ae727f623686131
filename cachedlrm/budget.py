"""What fits on the device, to the byte, before anything is allocated."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from cachedlrm.errors import UserError
from cachedlrm.store.records import RecordLayout

_OPTIMIZER_STATES = {"sgd": 0, "adagrad": 1, "rwsadagrad": 1, "adam": 2}  # tensors beside each dense parameter


@dataclass(frozen=True)
class Workload:
    """The sizes that decide what a training step needs.

    Attributes:
        table_rows: rows of each of the T tables.
        lookups_per_bag: the most lookups a bag can hold.
        batch_size: B, samples.
        mlp_bot: layer sizes of the bottom MLP, its input first.
        mlp_top: layer sizes of the top MLP, its (derived) input first.
        layout: columns of a record.
        prefetch_depth: batches prepared ahead.
        staging_rows: rows of a staging buffer; 0 on the CPU, which needs none of its own.
    """

    table_rows: tuple[int, ...]
    lookups_per_bag: int
    batch_size: int
    mlp_bot: tuple[int, ...]
    mlp_top: tuple[int, ...]
    layout: RecordLayout
    prefetch_depth: int
    staging_rows: int

    @property
    def num_rows(self) -> int:
        return sum(self.table_rows)

    @property
    def working_set_bound(self) -> int:
        """The most unique rows one batch can have."""
        lookups = self.batch_size * self.lookups_per_bag
        return sum(min(rows, lookups) for rows in self.table_rows)

    def fixed_bytes(self, working_set_rows: int) -> dict[str, int]:
        """Bytes of everything but the slab, for batches of at most ``working_set_rows`` unique rows."""
        num_tables, dim, batch = len(self.table_rows), self.layout.dim, self.batch_size
        lookups = batch * self.lookups_per_bag * num_tables
        # slots, plan's slots and rows (int64), positions and their transpose (int32), dense features and labels
        upload = 32 * working_set_rows + 8 * lookups + 4 * (batch * num_tables + working_set_rows)
        upload += 4 * batch * (self.mlp_bot[0] + 1)
        parameters = sum(
            inputs * outputs + outputs
            for sizes in (self.mlp_bot, self.mlp_top)
            for inputs, outputs in itertools.pairwise(sizes)
        )
        # Each layer keeps its output before and after the activation, pooling and interaction theirs; and gradients.
        vectors = (num_tables + 1) * dim
        units = 2 * (sum(self.mlp_bot) + sum(self.mlp_top)) + num_tables * dim + vectors + (num_tables + 1) ** 2
        return {
            "staging": 4 * self.staging_rows * self.layout.record_bytes,
            "working_set": working_set_rows * (self.layout.record_bytes + 8 * dim) + (self.prefetch_depth + 2) * upload,
            "dense": 4 * parameters * (2 + _OPTIMIZER_STATES[self.layout.optimizer]),
            "activations": 2 * 4 * batch * units,
        }


@dataclass(frozen=True)
class CacheRequest:
    """What the user asked for; at most one of ``ratio`` and ``rows``.

    Attributes:
        ratio: slots as a share of all rows, in (0, 1].
        rows: slots.
        budget_bytes: the most bytes the device may hold, everything included.
    """

    ratio: float | None
    rows: int | None
    budget_bytes: int | None

    @property
    def has_slots(self) -> bool:
        """Whether the number of slots is asked for, not left to the budget."""
        return self.ratio is not None or self.rows is not None


@dataclass(frozen=True)
class DeviceSizes:
    """Slots and bytes of the device tier.

    Attributes:
        quota_slots: rows the cache keeps.
        num_slots: with the temporary slots for a batch whose working set exceeds the quota.
        table_rows: all rows.
        breakdown: bytes by purpose: slab, staging, working_set, dense, activations.
    """

    quota_slots: int
    num_slots: int
    table_rows: int
    breakdown: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.breakdown.values())


def size_device(
    workload: Workload, request: CacheRequest, limit_bytes: int, largest_working_set: Callable[[], int]
) -> DeviceSizes:
    """Slots for a request, with temporary slots where a batch may need more than the cache keeps.

    Args:
        workload: the training step.
        request: ratio, rows or budget.
        limit_bytes: what the device may hold: the budget if there is one, else the memory that is free.
        largest_working_set: counts the unique rows of every batch; called only if the bound does not fit.

    Raises:
        UserError: it does not fit; gives the rows needed, the slots there are and the options to change.
    """
    bound = workload.working_set_bound
    sizes = _sizes(workload, request, limit_bytes, bound)
    if sizes.num_slots >= bound and sizes.total_bytes <= limit_bytes:
        return sizes
    needed = largest_working_set()
    sizes = _sizes(workload, request, limit_bytes, needed)
    if sizes.num_slots >= needed and sizes.total_bytes <= limit_bytes:
        return sizes
    raise UserError(_does_not_fit(workload, request, limit_bytes, needed))


def _sizes(workload: Workload, request: CacheRequest, limit_bytes: int, working_set_rows: int) -> DeviceSizes:
    """Slots if every working set has at most ``working_set_rows`` rows; may exceed the limit."""
    fixed = workload.fixed_bytes(working_set_rows)
    record_bytes = workload.layout.record_bytes
    affordable = max(0, limit_bytes - sum(fixed.values())) // record_bytes
    if request.ratio is not None:
        quota = max(1, int(request.ratio * workload.num_rows))
    elif request.rows is not None:
        quota = min(request.rows, workload.num_rows)
    else:
        quota = min(affordable, workload.num_rows)
    num_slots = max(quota, min(working_set_rows, affordable))
    return DeviceSizes(quota, num_slots, workload.num_rows, {"slab": num_slots * record_bytes, **fixed})


def _does_not_fit(workload: Workload, request: CacheRequest, limit_bytes: int, needed: int) -> str:
    """What to change; every value it names works."""
    record_bytes, num_rows = workload.layout.record_bytes, workload.num_rows
    step_bytes = sum(workload.fixed_bytes(needed).values())
    room = max(0, limit_bytes - step_bytes) // record_bytes  # slots beside a step
    asked = _sizes(workload, request, limit_bytes, needed).quota_slots if request.has_slots else 0
    limit = format_bytes(limit_bytes)
    whose = f"--gpu-budget {limit}" if request.budget_bytes else f"the {limit} free"
    facts = (
        f"a batch needs {needed:,} rows on the device and there are {room:,} slots: {format_bytes(step_bytes)} for the "
        f"step and {record_bytes} bytes a slot exceed {whose}"
    )
    ratio = smallest_ratio(needed, num_rows)
    enough = step_bytes + max(needed, asked, int(ratio * num_rows)) * record_bytes
    least = f"the smallest --gpu-budget {format_bytes(enough)} (where --gpu-cache-ratio {ratio} holds every batch)"
    if room >= needed:
        most = largest_ratio(room, num_rows)
        return f"{asked:,} slots are asked for, {facts}; use --gpu-cache-ratio {most} or less, or {least}"
    return f"{facts}; use {_smaller_step(workload, request, limit_bytes)}, or {least}"


def _smaller_step(workload: Workload, request: CacheRequest, limit_bytes: int) -> str:
    """The largest batch that fits; with fewer slots, if those asked for leave no room for any."""
    batch_size = largest_batch(workload, request, limit_bytes)
    if batch_size:
        return f"--mini-batch-size {batch_size} or less"
    unbound = replace(request, ratio=None, rows=None)
    batch_size = largest_batch(workload, unbound, limit_bytes)
    if not batch_size:
        return "smaller MLPs"
    smaller = replace(workload, batch_size=batch_size)
    slots = _sizes(smaller, unbound, limit_bytes, smaller.working_set_bound).quota_slots
    return f"--mini-batch-size {batch_size} with --gpu-cache-rows {slots} or less"


def smallest_ratio(rows: int, num_rows: int) -> float:
    """The smallest ratio of at most four significant digits that gives ``rows`` slots."""
    ratio = float(f"{rows / num_rows:.3e}")
    while int(ratio * num_rows) < rows:
        ratio = float(f"{ratio * 1.001:.3e}")
    return min(1.0, ratio)


def largest_ratio(rows: int, num_rows: int) -> float:
    """The largest ratio of at most four significant digits that gives at most ``rows`` slots."""
    ratio = float(f"{rows / num_rows:.3e}")
    while int(ratio * num_rows) > rows:
        ratio = float(f"{ratio * 0.999:.3e}")
    return min(1.0, ratio)


def largest_batch(workload: Workload, request: CacheRequest, limit_bytes: int) -> int:
    """The largest batch whose step fits the limit whatever its ids, 0 if none does."""

    def fits(batch_size: int) -> bool:
        smaller = replace(workload, batch_size=batch_size)
        bound = smaller.working_set_bound
        sizes = _sizes(smaller, request, limit_bytes, bound)
        return sizes.num_slots >= bound and sizes.total_bytes <= limit_bytes

    low, high = 0, workload.batch_size
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def format_bytes(num_bytes: int) -> str:
    """Bytes in binary units, rounded up so that the text, read as an option, is enough: 3.1 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{-(-num_bytes * 10 // size) / 10:.1f} {unit}"
    return f"{num_bytes} B"
