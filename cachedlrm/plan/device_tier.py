"""The slots that fit on the device beside a step, and the options to change if they do not."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cachedlrm.base.errors import UserError
from cachedlrm.base.units import format_bytes
from cachedlrm.cache.shares import share_bytes, share_rows
from cachedlrm.cache.table_group import GroupSlots
from cachedlrm.plan.step_bytes import StepShape

_MOST_PASSES = 16  # that are advised for a mini-batch; more would leave a device idle
_WORTH_COUNTING = 1 / 20  # the share of what the layers leave that the bound may take without a count


@dataclass(frozen=True)
class CacheRequest:
    """The slots and bytes that the user asked for; at most one of ``ratio`` and ``rows``.

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
        groups: slots of each group.
        table_rows: all rows.
        breakdown: bytes by purpose: slab, staging, working_set, dense, activations.
    """

    groups: tuple[GroupSlots, ...]
    table_rows: int
    breakdown: dict[str, int]

    @property
    def quota_slots(self) -> int:
        """Rows the cache keeps."""
        return sum(group.quota for group in self.groups)

    @property
    def num_slots(self) -> int:
        """Quota and temporary slots."""
        return sum(group.total for group in self.groups)

    @property
    def total_bytes(self) -> int:
        return sum(self.breakdown.values())

    def holds(self, working_sets: tuple[int, ...], limit_bytes: int) -> bool:
        """Whether batches of so many unique rows train within the limit."""
        enough = all(group.total >= rows for group, rows in zip(self.groups, working_sets, strict=True))
        return enough and self.total_bytes <= limit_bytes


def size_device(
    step: StepShape,
    request: CacheRequest,
    limit_bytes: int,
    largest_working_sets: Callable[[], tuple[int, ...]],
    is_counted_soon: bool = False,
) -> DeviceSizes:
    """Slots for a request, with temporary slots where a batch may need more than the cache keeps.

    A budget of its own decides the slots; what a step takes beside them depends on the most rows that a batch has. The
    bound on these, all ids different, is taken where it is a small part of the budget; else rows are counted if that is
    soon done, so that no more is kept free than needed. A larger budget then never has fewer slots: just below the one
    from which the bound is taken, there are no more than at that one.

    Args:
        step: the training step.
        request: ratio, rows or budget.
        limit_bytes: the most the device may hold: the budget if there is one, else the free memory.
        largest_working_sets: counts the unique rows of every batch in each group; called only if the bound does not
            fit, or is worth counting.
        is_counted_soon: whether that takes seconds, not minutes or hours.

    Raises:
        UserError: it does not fit; gives the rows needed, the slots there are and the options to change.
    """
    bounds = step.working_set_bounds
    sizes = _sizes(step, request, limit_bytes, bounds)
    plenty = _plenty(step) if is_counted_soon and not request.has_slots else 0
    if sizes.holds(bounds, limit_bytes) and (limit_bytes >= plenty or sizes.quota_slots == step.num_rows):
        return sizes
    needed = largest_working_sets()
    most_slab = plenty - sum(step.fixed_bytes(bounds).values()) if plenty else None
    sizes = _sizes(step, request, limit_bytes, needed, most_slab)
    if sizes.holds(needed, limit_bytes):
        return sizes
    raise UserError(_does_not_fit(step, request, limit_bytes, needed))


def _plenty(step: StepShape) -> int:
    """Bytes of a device from which on the bound on working sets is a small part of them."""
    layers, bound = (
        sum(step.fixed_bytes(rows).values()) for rows in ((0,) * len(step.groups), step.working_set_bounds)
    )
    return layers + int((bound - layers) / _WORTH_COUNTING)


def _sizes(
    step: StepShape,
    request: CacheRequest,
    limit_bytes: int,
    working_sets: tuple[int, ...],
    most_slab_bytes: int | None = None,
) -> DeviceSizes:
    """Slots if every working set has at most so many rows; may exceed the limit, but not ``most_slab_bytes``."""
    fixed = step.fixed_bytes(working_sets)
    room = max(0, limit_bytes - sum(fixed.values()))
    if most_slab_bytes is not None:
        room = min(room, most_slab_bytes)
    quotas = _quotas(step, request, room)
    slots = []
    room -= sum(quota * group.layout.record_bytes for quota, group in zip(quotas, step.groups, strict=True))
    for group, quota, rows in zip(step.groups, quotas, working_sets, strict=True):
        extra = max(0, min(rows - quota, room // group.layout.record_bytes))
        room -= extra * group.layout.record_bytes
        slots.append(GroupSlots(quota, quota + extra))
    slab = sum(g.total * group.layout.record_bytes for g, group in zip(slots, step.groups, strict=True))
    return DeviceSizes(tuple(slots), step.num_rows, {"slab": slab, **fixed})


def _quotas(step: StepShape, request: CacheRequest, room: int) -> list[int]:
    """Slots that each group keeps.

    Args:
        step: groups.
        request: ratio or rows; without them the budget decides.
        room: bytes for slabs.
    """
    if not request.has_slots:
        return share_bytes(step.groups, room)
    rows = request.rows if request.ratio is None else int(request.ratio * step.num_rows)
    return share_rows(step.groups, rows or 0)


def _does_not_fit(step: StepShape, request: CacheRequest, limit_bytes: int, working_sets: tuple[int, ...]) -> str:
    """The message that says what to change; every value it names works."""
    working_sets = tuple(max(1, rows) for rows in working_sets)  # a run of no steps may still not fit
    num_rows, needed = step.num_rows, sum(working_sets)
    step_bytes = sum(step.fixed_bytes(working_sets).values())
    sizes = [group.layout.record_bytes for group in step.groups]
    record_bytes = max(sizes)
    room = max(0, limit_bytes - step_bytes) // record_bytes  # slots beside a step
    asked = _sizes(step, request, limit_bytes, working_sets).quota_slots if request.has_slots else 0
    limit = format_bytes(limit_bytes)
    whose = f"--gpu-budget {limit}" if request.budget_bytes else f"the {limit} free"
    facts = (
        f"a batch needs {needed:,} rows on the device and there are {room:,} slots: {format_bytes(step_bytes)} for the "
        f"step and {record_bytes} bytes a slot exceed {whose}"
    )
    ratio = max(smallest_ratio(rows, group.num_rows) for rows, group in zip(working_sets, step.groups, strict=True))
    at_ratio = _sizes(step, CacheRequest(ratio, None, None), 0, working_sets)
    enough = step_bytes + max(at_ratio.breakdown["slab"], max(needed, asked) * record_bytes)
    least = f"the smallest --gpu-budget {format_bytes(enough)} (where --gpu-cache-ratio {ratio} holds every batch)"
    if room >= needed:
        most = largest_ratio(room, num_rows)
        return f"{asked:,} slots are asked for, {facts}; use --gpu-cache-ratio {most} or less, or {least}"
    return f"{facts}; use {_smaller_step(step, request, limit_bytes, working_sets)}, or {least}"


def _smaller_step(step: StepShape, request: CacheRequest, limit_bytes: int, working_sets: tuple[int, ...]) -> str:
    """Fewer samples in an evaluation or in the layers at a time, else the largest batch that fits.

    With fewer slots, if those asked for leave no room for any batch.
    """

    def fits(samples: int, tested: int) -> bool:
        divided = replace(step, micro_batch_size=samples, test_batch_size=tested)
        return _sizes(divided, request, limit_bytes, working_sets).holds(working_sets, limit_bytes)

    tested = step.test_batch_size
    if most := _largest(tested, lambda fewer: fits(step.pass_size, fewer)):
        return f"--test-mini-batch-size {most} or less"
    for passes in range(2, 1 if step.cuda_graphs else _MOST_PASSES + 1):  # graphs are of whole mini-batches
        samples = -(-step.mini_batch_size // passes)
        if samples < step.pass_size and fits(samples, min(samples, tested)):
            tests = "" if fits(samples, tested) else f" with --test-mini-batch-size {samples}"
            return f"--micro-batch-size {samples}{tests} or less"
    batch_size = largest_batch(step, request, limit_bytes)
    if batch_size:
        return f"--mini-batch-size {batch_size} or less"
    unbound = replace(request, ratio=None, rows=None)
    batch_size = largest_batch(step, unbound, limit_bytes)
    if not batch_size:
        batch_size = largest_batch(replace(step, test_batch_size=min(1, tested)), request, limit_bytes)
        return f"--mini-batch-size {batch_size} with --test-mini-batch-size 1" if batch_size else "smaller MLPs"
    smaller = replace(step, mini_batch_size=batch_size)
    slots = _sizes(smaller, unbound, limit_bytes, smaller.working_set_bounds).quota_slots
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


def largest_batch(step: StepShape, request: CacheRequest, limit_bytes: int) -> int:
    """The largest batch whose step fits the limit whatever its ids, 0 if none does."""

    def fits(batch_size: int) -> bool:
        smaller = replace(step, mini_batch_size=batch_size)
        bounds = smaller.working_set_bounds
        return _sizes(smaller, request, limit_bytes, bounds).holds(bounds, limit_bytes)

    return _largest(step.mini_batch_size, fits)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to ``most`` that fits, as all smaller ones then do; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
