"""From options and data to everything a run needs, decided and checked before the first step."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import psutil
import torch

from cachedlrm.budget import CacheRequest, DeviceSizes, Workload, format_bytes, size_device
from cachedlrm.cache.embedding_cache import CacheSettings, EmbeddingCache
from cachedlrm.cache.policies import Static
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.config import Options
from cachedlrm.data.batch import Batch, Dataset, Source
from cachedlrm.errors import UserError
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.store.records import RecordLayout
from cachedlrm.trainer import Trainer

_EVALUATIONS_PER_RUN = 10  # with --test-freq left open
_STAGING_ROWS = 16384


@dataclass(frozen=True)
class _SourceDefaults:
    """What an option left open becomes; chosen per source, as a step over 2,048 samples suits no small data set."""

    mini_batch_size: int
    optimizer: Literal["sgd", "adagrad", "rwsadagrad", "adam"]
    learning_rate: float
    dim: int


_DEFAULTS = {
    "flights": _SourceDefaults(mini_batch_size=1024, optimizer="adagrad", learning_rate=0.003, dim=16),
}
_OTHER_DEFAULTS = _SourceDefaults(mini_batch_size=2048, optimizer="adagrad", learning_rate=0.01, dim=16)


def resolve(options: Options, dataset: Dataset) -> Options:
    """Fills every option that was left open; the result repeats the run whatever the defaults become.

    Raises:
        UserError: sizes that do not fit each other.
    """
    defaults = _DEFAULTS.get(options.data.data, _OTHER_DEFAULTS)
    source, model = dataset.train, options.model
    mlp_bot = model.arch_mlp_bot
    dim = model.arch_sparse_feature_size or (mlp_bot[-1] if mlp_bot else defaults.dim)
    mlp_bot = mlp_bot or (source.num_dense, 512, 256, 64, dim)
    if mlp_bot[-1] != dim:
        raise UserError(
            f"--arch-mlp-bot ends in {mlp_bot[-1]} but --arch-sparse-feature-size is {dim}; make them equal"
        )
    batch_size = options.batches.mini_batch_size or defaults.mini_batch_size
    test_batch_size = options.batches.test_mini_batch_size
    learning_rate = options.optimisation.learning_rate
    resolved = replace(
        options,
        model=replace(
            model,
            arch_sparse_feature_size=dim,
            arch_embedding_size=source.table_rows,
            arch_mlp_bot=mlp_bot,
            arch_mlp_top=model.arch_mlp_top or (512, 256, 1),
            loss_function=model.loss_function or "bce",
        ),
        batches=replace(
            options.batches,
            mini_batch_size=batch_size,
            test_mini_batch_size=test_batch_size if test_batch_size > 0 else batch_size,
        ),
        optimisation=replace(
            options.optimisation,
            optimizer=options.optimisation.optimizer or defaults.optimizer,
            learning_rate=defaults.learning_rate if learning_rate is None else learning_rate,
        ),
    )
    num_steps = Schedule(resolved, source).num_steps
    test_freq = options.batches.test_freq
    if test_freq is None:
        test_freq = max(1, num_steps // _EVALUATIONS_PER_RUN)
    return replace(resolved, batches=replace(resolved.batches, test_freq=test_freq))


class Schedule:
    """Which samples each step trains, and when the model is evaluated.

    Samples are taken in their order; the last batch of an epoch may be smaller. With ``--steps`` epochs repeat, or end
    early, as it takes.

    Args:
        options: resolved but for ``test_freq``.
        source: training samples.
    """

    def __init__(self, options: Options, source: Source) -> None:
        batches = options.batches
        assert batches.mini_batch_size is not None
        self._source = source
        self._batch_size = batches.mini_batch_size
        self._test_freq = batches.test_freq
        self.batches_per_epoch = -(-source.num_samples // self._batch_size)
        if batches.num_batches > 0:
            self.batches_per_epoch = min(self.batches_per_epoch, batches.num_batches)
        steps = options.run.steps
        self.num_steps = batches.nepochs * self.batches_per_epoch if steps is None else steps

    def epoch(self, step: int) -> int:
        """Epoch of step ``step``, both from 0."""
        return step // self.batches_per_epoch

    def batches(self) -> Iterator[Batch]:
        """The batches of all steps."""
        for step in range(self.num_steps):
            start = step % self.batches_per_epoch * self._batch_size
            yield self._source.read(start, min(start + self._batch_size, self._source.num_samples))

    def evaluates_after(self, step: int) -> bool:
        """Whether the model is evaluated after step ``step`` (from 0)."""
        if self._test_freq is None or self._test_freq <= 0:
            return False
        return (step + 1) % self._test_freq == 0 or step + 1 == self.num_steps

    def largest_working_set(self) -> int:
        """The most unique rows in one batch of the run, counted."""
        one_epoch = (batch for _, batch in zip(range(self.batches_per_epoch), self.batches(), strict=False))
        return max((len(np.unique(batch.rows)) for batch in one_epoch), default=0)


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
        dataset: training and held-out samples.
        schedule: steps and evaluations.
        device: where training happens.
        sizes: of the device tier.
        host_limit_bytes: ``--host-budget``, or the memory that was free.
        device_limit_bytes: the budget, or the memory that was free; what ``sizes`` had to fit.
        trainer: cache, model and optimizers.
    """

    options: Options
    dataset: Dataset
    schedule: Schedule
    device: torch.device
    sizes: DeviceSizes
    device_limit_bytes: int
    host_limit_bytes: int
    trainer: Trainer


def build_job(options: Options, dataset: Dataset) -> Job:
    """Sizes the tiers and builds the trainer.

    Args:
        options: resolved.
        dataset: what they were resolved with.

    Raises:
        UserError: something does not fit; says what to change.
    """
    model, optimisation = options.model, options.optimisation
    assert model.arch_sparse_feature_size is not None
    assert model.arch_mlp_bot is not None
    assert model.arch_mlp_top is not None
    assert optimisation.optimizer is not None
    assert options.batches.mini_batch_size is not None
    device = choose_device(options.run.device)
    torch.set_num_threads(options.run.threads or usable_processors())
    if options.run.deterministic:
        torch.use_deterministic_algorithms(True)
    schedule = Schedule(options, dataset.train)
    dlrm = Dlrm(
        len(dataset.train.table_rows),
        model.arch_mlp_bot,
        model.arch_mlp_top,
        model.arch_interaction_op,
        model.arch_interaction_itself,
        options.batches.numpy_rand_seed,
    ).to(device)
    workload = Workload(
        table_rows=dataset.train.table_rows,
        lookups_per_bag=dataset.train.max_lookups_per_bag,
        batch_size=options.batches.mini_batch_size,
        mlp_bot=model.arch_mlp_bot,
        mlp_top=dlrm.mlp_top,
        layout=RecordLayout(model.arch_sparse_feature_size, optimisation.optimizer),
        prefetch_depth=options.cache.prefetch_depth,
        staging_rows=_STAGING_ROWS if device.type == "cuda" else 0,
    )
    cache_options = options.cache
    request = CacheRequest(cache_options.gpu_cache_ratio, cache_options.gpu_cache_rows, cache_options.gpu_budget)
    if request == CacheRequest(None, None, None):
        request = replace(request, ratio=1.0)
    device_limit = cache_options.gpu_budget or _free_bytes(device)
    sizes = size_device(workload, request, device_limit, schedule.largest_working_set)
    host_limit = options.store.host_budget or psutil.virtual_memory().available
    cache = _build_cache(options, workload, sizes, host_limit, schedule.num_steps, device)
    if isinstance(cache.policy, Static):
        book = AddressBook(workload.num_rows)
        cache.policy.count(book.working_set(i, batch.rows, batch.offsets) for i, batch in enumerate(schedule.batches()))
    assert optimisation.learning_rate is not None
    assert model.loss_function is not None
    trainer = Trainer(cache, dlrm, optimisation.learning_rate, model.loss_function)
    return Job(options, dataset, schedule, device, sizes, device_limit, host_limit, trainer)


def _free_bytes(device: torch.device) -> int:
    """Memory that training may take where no budget is given."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _build_cache(
    options: Options, workload: Workload, sizes: DeviceSizes, host_limit: int, num_steps: int, device: torch.device
) -> EmbeddingCache:
    settings = CacheSettings(
        quota_slots=sizes.quota_slots,
        num_slots=sizes.num_slots,
        policy=options.cache.policy,
        window=min(options.cache.lookahead, num_steps),
        prefetch_depth=options.cache.prefetch_depth,
        staging_rows=_STAGING_ROWS,
        store_rows=max(1, host_limit // workload.layout.record_bytes),
    )
    try:
        return EmbeddingCache(workload.table_rows, workload.layout, settings, options.batches.numpy_rand_seed, device)
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError and a subclass
        raise UserError(
            f"{format_bytes(sizes.breakdown['slab'])} of slots or {format_bytes(host_limit)} of host records cannot be "
            "reserved; lower --gpu-cache-ratio or --host-budget"
        ) from error
