"""The contents of each tier, worked out from options and data before anything is allocated."""

from dataclasses import dataclass, replace

import torch

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import free_device_bytes, free_host_bytes
from cachedlrm.base.units import format_bytes
from cachedlrm.cache.planner import BYTES_PER_SLOT
from cachedlrm.cache.policies import bytes_per_row
from cachedlrm.cache.shares import store_rows
from cachedlrm.data.batch import Dataset
from cachedlrm.model.interaction import samples_multiplied
from cachedlrm.options.architecture import Architecture
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.schedule import Schedule
from cachedlrm.plan.device_tier import CacheRequest, DeviceSizes, size_device
from cachedlrm.plan.id_pass import Tell, knows_counts, tell_nobody
from cachedlrm.plan.step_bytes import StepShape

_ADDRESS_BYTES = 4  # of each row's place in the map to addresses

_COUNTED_LOOKUPS = 2**27  # at most a quarter of a minute of reading

MOST_STAGING_ROWS = 16384
"""Rows that move in one turn, at most."""


@dataclass(frozen=True)
class HostSizes:
    """Bytes of the host tier.

    Attributes:
        maps: of every row: its address, and what the policy keeps; all that grows with the tables.
        slots: of every slot: what the choice of victims takes at most.
        batches: the most that batches known ahead take.
        pinned: the most that buffers take from which and to which the device copies.
        records: ``--host-budget``, or what is left: the most that records may take.
        free: memory that was free.
        store_rows: of each group, records that host memory may hold.
        shuffled: the most that samples take while ``--shuffle`` mixes them.
    """

    maps: int
    slots: int
    batches: int
    pinned: int
    records: int
    free: int
    store_rows: tuple[int, ...]
    shuffled: int = 0


@dataclass(frozen=True)
class Tiers:
    """The sizes of a run.

    Attributes:
        step: the training step.
        window: batches known ahead to policy ``lookahead``.
        device: slots and bytes on the device.
        device_limit: ``--gpu-budget``, or the memory that was free; what ``device`` had to fit.
        host: bytes on the host.
    """

    step: StepShape
    window: int
    device: DeviceSizes
    device_limit: int
    host: HostSizes

    @property
    def table_bytes(self) -> int:
        """Bytes of all records, those of untouched rows included."""
        return sum(group.num_bytes for group in self.step.groups)


def size_tiers(
    options: Resolved, architecture: Architecture, dataset: Dataset, device: torch.device, tell: Tell = tell_nobody
) -> Tiers:
    """Sizes the tiers of a run.

    Args:
        options: resolved.
        architecture: of the model.
        dataset: what they were resolved with.
        device: where training happens; for a plan it need not be there if ``--gpu-budget`` is given.
        tell: takes the share of the batches read so far, again and again, where their rows are counted.

    Raises:
        UserError: something does not fit; says what to change.
    """
    schedule = Schedule(options, dataset.train)
    step = step_shape(options, architecture, dataset, device)
    if step.batch_host_bytes > free_host_bytes():
        raise UserError(
            f"a batch takes up to {format_bytes(step.batch_host_bytes)} of host memory and "
            f"{format_bytes(free_host_bytes())} are free; lower --mini-batch-size, the ids of a bag, or the "
            "first size of --arch-mlp-bot"
        )
    request, limit = _request(options, device)
    sizes = size_device(
        step,
        request,
        limit,
        lambda: schedule.largest_working_sets(architecture.router(), tell),
        is_counted_soon=schedule.lookups_to_count <= _COUNTED_LOOKUPS,
    )
    window = min(options.cache.lookahead, schedule.num_batches)
    counted = knows_counts(options.cache, architecture.router(), dataset.row_counts)
    host = _size_host(
        options,
        step,
        sizes.total_bytes if device.type == "cpu" else 0,
        window=window,
        maps=step.num_rows * (_ADDRESS_BYTES + bytes_per_row(options.cache.policy, counted)),
        slots=sizes.num_slots * BYTES_PER_SLOT,
        shuffled=schedule.shuffled_bytes,
    )
    return Tiers(step, window, sizes, limit, host)


def step_shape(options: Resolved, architecture: Architecture, dataset: Dataset, device: torch.device) -> StepShape:
    """The sizes of a step; of an evaluation alone for inference, where rows are read where they are."""
    batches, inference = options.batches, options.inference.inference_only
    num_vectors = len(architecture.embeddings) + 1
    return StepShape(
        groups=architecture.shapes,
        num_features=len(architecture.embeddings),
        lookups_per_bag=architecture.by_table(_most_lookups(dataset)),
        mini_batch_size=1 if inference else min(batches.mini_batch_size, dataset.train.num_samples),
        mlp_bot=architecture.mlp_bot,
        mlp_top=architecture.mlp_top,
        prefetch_depth=options.cache.prefetch_depth,
        most_staging_rows=MOST_STAGING_ROWS if device.type == "cuda" else 0,
        micro_batch_size=batches.micro_batch_size,
        samples_multiplied=samples_multiplied(num_vectors, architecture.mlp_bot[-1], device),
        num_mini_batches=1 if inference else options.optimisation.mlperf_grad_accum_iter,
        test_batch_size=_test_batch_size(options, dataset),
        interaction=architecture.interaction,
        keeps_inputs=options.model.activation_function in ("gelu", "silu"),
        bf16=options.optimisation.bf16,
        cuda_graphs=options.optimisation.cuda_graphs,
        deterministic=options.run.deterministic,
        averages=options.model.pooling == "mean",
        dense_optimizer=options.optimisation.dense,
        clips=options.optimisation.clip_grad_norm is not None,
    )


def _most_lookups(dataset: Dataset) -> tuple[int, ...]:
    """The most lookups of a bag in each table, of training and held-out samples."""
    train, test = dataset.train, dataset.test or dataset.train
    return tuple(map(max, train.max_lookups_per_bag, test.max_lookups_per_bag))


def _test_batch_size(options: Resolved, dataset: Dataset) -> int:
    """Samples of an evaluation step; 0 if the run has none."""
    evaluates = (options.batches.test_freq or 0) > 0 or options.inference.inference_only
    if dataset.test is None or not evaluates:
        return 0
    return min(options.batches.test_mini_batch_size, dataset.test.num_samples)


def _request(options: Resolved, device: torch.device) -> tuple[CacheRequest, int]:
    """The slots that are asked for, and the bytes the device may hold."""
    cache = options.cache
    request = CacheRequest(cache.gpu_cache_ratio, cache.gpu_cache_rows, cache.gpu_budget)
    if options.inference.inference_only:  # rows are read where they are
        request = replace(request, ratio=None, rows=1)
    elif request == CacheRequest(None, None, None):
        request = replace(request, ratio=1.0)
    return request, cache.gpu_budget or _free_bytes(device)


def _free_bytes(device: torch.device) -> int:
    """Free memory of the device; a plan may be for a device that is not here."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: there is no CUDA device here whose free memory could be planned with; give a --gpu-budget "
            "(alone or with --gpu-cache-ratio), name a device by --profile, or plan with --device cpu"
        )
    return free_device_bytes(device)


def _size_host(
    options: Resolved, step: StepShape, device_bytes: int, *, window: int, maps: int, slots: int, shuffled: int
) -> HostSizes:
    """Bytes that the host tier takes, and those it leaves for records.

    Args:
        options: resolved.
        step: the training step.
        device_bytes: of the device tier where that is in the host's memory; else 0.
        window: batches known ahead to policy ``lookahead``.
        maps: bytes that grow with the tables.
        slots: bytes that grow with the slots.
        shuffled: bytes of the samples that ``--shuffle`` mixes.

    Raises:
        UserError: maps of the rows, the batches of policy ``lookahead`` or the samples that ``--shuffle`` mixes do not
            fit, or ``--host-budget`` is too small.
    """
    free = free_host_bytes()
    if maps > free:
        raise UserError(
            f"{step.num_rows:,} rows need {format_bytes(maps)} of host memory for their maps and "
            f"{format_bytes(free)} are free; fold ids with --max-ind-range or lower --arch-embedding-size"
        )
    ahead = window * step.batch_host_bytes if options.cache.policy == "lookahead" else 0
    if ahead > free - maps:
        most = (free - maps) // step.batch_host_bytes
        raise UserError(
            f"--lookahead {options.cache.lookahead} keeps {window:,} batches, up to {format_bytes(ahead)} of host "
            f"memory, and {format_bytes(free - maps)} are free; use --lookahead {most} or less"
        )
    if shuffled > free - maps - ahead:
        raise UserError(
            f"--shuffle mixes samples in up to {format_bytes(shuffled)} of host memory and "
            f"{format_bytes(free - maps - ahead)} are free; free some, or drop it"
        )
    records, spills = options.store.host_budget, options.store.store == "lmdb"
    if records is None:
        left = max(1, free - maps - slots - ahead - shuffled - device_bytes - step.pinned_bytes)
        records = left // 2 if spills else left  # the other half is for pages of the store
    rows = store_rows(step.groups, records, spills)
    return HostSizes(maps, slots, ahead, step.pinned_bytes, records, free, rows, shuffled)
