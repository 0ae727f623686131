"""From options and data to everything a run needs, decided and checked before the first step."""

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cachedlrm.architecture import Architecture, build_architecture
from cachedlrm.budget import CacheRequest, DeviceSizes, GroupShape, Workload, size_device
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.table_group import CacheSettings, Durability, GroupSizes
from cachedlrm.checkpoint import Checkpoint, keeps_log, open_durability, restore_trainer
from cachedlrm.config import Options
from cachedlrm.data.batch import Dataset
from cachedlrm.data.lookups import Router
from cachedlrm.errors import UserError
from cachedlrm.foresight import inform_policies
from cachedlrm.initial import initial_parameters
from cachedlrm.memory import free_device_bytes, free_host_bytes
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.schedule import Schedule
from cachedlrm.store.init import RowInit
from cachedlrm.store.lmdb_store import frames_for
from cachedlrm.trainer import Trainer
from cachedlrm.units import format_bytes

_STAGING_ROWS = 16384


def choose_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda`` on the command line.

    Raises:
        UserError: CUDA is asked for and not there.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
        )
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def usable_processors() -> int:
    """Processors this process may use; fewer than the machine has under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Job:
    """A run ready to start.

    Attributes:
        options: every option resolved.
        architecture: of the model.
        dataset: training and held-out samples.
        schedule: steps and evaluations.
        device: where training happens.
        sizes: of the device tier.
        host_limit_bytes: ``--host-budget``, or the memory that was free.
        device_limit_bytes: the budget, or the memory that was free; what ``sizes`` had to fit.
        trainer: cache, model and optimizers.
        note: what a user should know of a loaded model; else None.
        checkpoint: from which ``--resume`` goes on; None: from the beginning.
    """

    options: Options
    architecture: Architecture
    dataset: Dataset
    schedule: Schedule
    device: torch.device
    sizes: DeviceSizes
    device_limit_bytes: int
    host_limit_bytes: int
    trainer: Trainer
    note: str | None
    checkpoint: Checkpoint | None = None

    @property
    def first_batch(self) -> int:
        """The first batch to train: not the next planned, the next that was not trained."""
        return 0 if self.checkpoint is None else self.checkpoint.batches

    def close(self) -> None:
        """Lets others open the store."""
        self.trainer.cache.close()

    @property
    def table_bytes(self) -> int:
        """Bytes of all records, those of untouched rows included."""
        pairs = zip(self.architecture.groups, self.architecture.layouts, strict=True)
        return sum(table.num_rows * layout.record_bytes for group, layout in pairs for table in group)


def build_job(options: Options, dataset: Dataset, run_dir: Path) -> Job:
    """Sizes the tiers and builds the trainer; with ``--resume`` as the last checkpoint has it.

    Args:
        options: resolved.
        dataset: what they were resolved with.
        run_dir: the run's directory.

    Raises:
        UserError: something does not fit; says what to change.
    """
    optimisation, batches = options.optimisation, options.batches
    assert optimisation.optimizer is not None
    assert batches.mini_batch_size is not None
    assert options.model.loss_function is not None
    assert options.cache.prefetch_depth is not None
    device = choose_device(options.run.device)
    torch.set_num_threads(options.run.threads or usable_processors())
    if options.run.deterministic:
        torch.use_deterministic_algorithms(True)
    schedule = Schedule(options, dataset.train)
    architecture = build_architecture(options.model, optimisation.optimizer)
    router = architecture.router()
    workload = build_workload(options, architecture, dataset, device)
    if workload.batch_host_bytes > free_host_bytes():
        raise UserError(
            f"a batch takes up to {format_bytes(workload.batch_host_bytes)} of host memory and "
            f"{format_bytes(free_host_bytes())} are free; lower --mini-batch-size, the ids of a bag, or the "
            "first size of --arch-mlp-bot"
        )
    request, device_limit = _request(options, device)
    sizes = size_device(workload, request, device_limit, lambda: schedule.largest_working_sets(router))
    window = min(options.cache.lookahead, schedule.num_batches)
    host_limit = _host_limit(options, workload, sizes, window, device)
    initial = initial_parameters(options, architecture, device)
    dlrm = architecture.dlrm(batches.numpy_rand_seed)
    if initial.dense:
        dlrm.load_state_dict({name: torch.from_numpy(values) for name, values in initial.dense.items()})
    settings = CacheSettings(
        options.cache.policy, window, options.cache.prefetch_depth, _STAGING_ROWS, options.cache.report_min
    )
    loss = make_loss(options.model.loss_function, options.model.loss_weights, device)
    durability = checkpoint = None
    with ExitStack() as undo:
        if keeps_log(options):
            durability, checkpoint = open_durability(options, run_dir, len(workload.groups), host_limit)
            undo.callback(durability.database.close)
        cache = _build_cache(router, workload, sizes, host_limit, initial.rows, settings, device, durability)
        policies = [group.policy for group in cache.groups]
        num_rows = [group.num_rows for group in workload.groups]
        inform_policies([policies], num_rows, router, schedule, options, run_dir, dataset.row_counts)
        trainer = Trainer(cache, dlrm.to(device), _learning_rate(options), loss, batches.mini_batch_size)
        if checkpoint is not None:
            _check_not_beyond(checkpoint, schedule, options)
            restore_trainer(trainer, checkpoint)
        elif initial.dense_state:
            trainer.load_optimizer_state(initial.dense_state)
        undo.pop_all()
    return Job(
        options, architecture, dataset, schedule, device, sizes, device_limit, host_limit, trainer, initial.note,
        checkpoint,
    )  # fmt: skip


def build_workload(options: Options, architecture: Architecture, dataset: Dataset, device: torch.device) -> Workload:
    """The sizes of a step; of an evaluation alone for inference, where rows are read where they are."""
    batches, inference = options.batches, options.inference.inference_only
    assert batches.mini_batch_size is not None
    assert options.cache.prefetch_depth is not None
    return Workload(
        groups=tuple(
            GroupShape(tuple(table.num_rows for table in group), layout)
            for group, layout in zip(architecture.groups, architecture.layouts, strict=True)
        ),
        num_features=len(architecture.embeddings),
        lookups_per_bag=dataset.train.max_lookups_per_bag,
        mini_batch_size=1 if inference else min(batches.mini_batch_size, dataset.train.num_samples),
        mlp_bot=architecture.mlp_bot,
        mlp_top=architecture.mlp_top,
        prefetch_depth=options.cache.prefetch_depth,
        staging_rows=_STAGING_ROWS if device.type == "cuda" else 0,
        num_mini_batches=1 if inference else options.optimisation.mlperf_grad_accum_iter,
        test_batch_size=_test_batch_size(options, dataset),
        dot=options.model.arch_interaction_op == "dot",
        keeps_inputs=options.model.activation_function in ("gelu", "silu"),
    )


def _test_batch_size(options: Options, dataset: Dataset) -> int:
    """Samples of an evaluation step; 0 if the run has none."""
    evaluates = (options.batches.test_freq or 0) > 0 or options.inference.inference_only
    if dataset.test is None or not evaluates:
        return 0
    return min(options.batches.test_mini_batch_size, dataset.test.num_samples)


def _request(options: Options, device: torch.device) -> tuple[CacheRequest, int]:
    """The slots that are asked for, and the bytes the device may hold."""
    cache = options.cache
    if options.inference.inference_only:
        return CacheRequest(None, 1, None), free_device_bytes(device)
    request = CacheRequest(cache.gpu_cache_ratio, cache.gpu_cache_rows, cache.gpu_budget)
    if request == CacheRequest(None, None, None):
        request = replace(request, ratio=1.0)
    return request, cache.gpu_budget or free_device_bytes(device)


def _host_limit(options: Options, workload: Workload, sizes: DeviceSizes, window: int, device: torch.device) -> int:
    """Bytes of records the host store may hold: ``--host-budget``, or what is left of the free memory.

    Raises:
        UserError: maps of the rows or the batches of policy ``lookahead`` alone do not fit.
    """
    free = free_host_bytes()
    maps = 4 * workload.num_rows  # from row to address; the only thing that grows with the tables
    if maps > free:
        raise UserError(
            f"{workload.num_rows:,} rows need {format_bytes(maps)} of host memory for their map and "
            f"{format_bytes(free)} are free; fold ids with --max-ind-range or lower --arch-embedding-size"
        )
    ahead = window * workload.batch_host_bytes if options.cache.policy == "lookahead" else 0
    if ahead > free - maps:
        most = (free - maps) // workload.batch_host_bytes
        raise UserError(
            f"--lookahead {options.cache.lookahead} keeps {window:,} batches, up to {format_bytes(ahead)} of host "
            f"memory, and {format_bytes(free - maps)} are free; use --lookahead {most} or less"
        )
    if options.store.host_budget is not None:
        return options.store.host_budget
    shared = sizes.total_bytes if device.type == "cpu" else 0
    left = max(1, free - maps - ahead - shared)
    return left // 2 if options.store.store == "lmdb" else left  # the system keeps pages of the store in the other


def _check_not_beyond(checkpoint: Checkpoint, schedule: Schedule, options: Options) -> None:
    if checkpoint.batches > schedule.num_batches:
        raise UserError(
            f"--resume {options.run.resume}: {checkpoint.batches:,} batches are trained and the run is now to end "
            f"after {schedule.num_batches:,}; raise --steps or --nepochs"
        )


def _learning_rate(options: Options) -> LearningRate:
    optimisation = options.optimisation
    assert optimisation.learning_rate is not None
    return LearningRate(
        optimisation.learning_rate,
        optimisation.lr_num_warmup_steps,
        optimisation.lr_decay_start_step,
        optimisation.lr_num_decay_steps,
    )


def _build_cache(
    router: Router,
    workload: Workload,
    sizes: DeviceSizes,
    host_limit: int,
    inits: tuple[RowInit, ...],
    settings: CacheSettings,
    device: torch.device,
    durability: Durability | None,
) -> EmbeddingCache:
    spills = durability is not None and durability.spills
    if spills:
        host_limit = host_limit * 3 // 4  # the rest is for what waits to be written
    all_bytes = sum(group.num_rows * group.layout.record_bytes for group in workload.groups)
    groups = []
    for group, slots, init in zip(workload.groups, sizes.groups, inits, strict=True):
        share = host_limit * group.num_rows // all_bytes  # all groups are full at once, so of records
        if spills:
            share = frames_for(share * group.layout.record_bytes, group.layout.record_bytes, group.num_rows)
        store_rows = max(1, share)
        groups.append((GroupSizes(group.table_rows, slots.quota, slots.total, store_rows), group.layout, init))
    try:
        return EmbeddingCache(router, groups, settings, device, durability)
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError and a subclass
        raise UserError(
            f"{format_bytes(sizes.breakdown['slab'])} of slots or {format_bytes(host_limit)} of host records cannot be "
            "reserved; lower --gpu-cache-ratio or --host-budget"
        ) from error
