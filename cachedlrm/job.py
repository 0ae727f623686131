"""From options and data to everything a run needs, decided and checked before the first step."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
import psutil
import torch

from cachedlrm.architecture import Architecture, build_architecture
from cachedlrm.budget import CacheRequest, DeviceSizes, GroupShape, Workload, format_bytes, size_device
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.policies import Static
from cachedlrm.cache.table_group import CacheSettings, GroupSizes
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.config import ModelOptions, Options
from cachedlrm.data.batch import Batch, Dataset, Source
from cachedlrm.data.lookups import Router
from cachedlrm.data.open import DataRequest
from cachedlrm.data.reference import ReferenceStream
from cachedlrm.errors import UserError
from cachedlrm.initial import initial_parameters
from cachedlrm.model.learning_rate import LearningRate
from cachedlrm.model.losses import make_loss
from cachedlrm.store.init import RowInit
from cachedlrm.trainer import Trainer

_EVALUATIONS_PER_RUN = 10  # with --test-freq left open
_STAGING_ROWS = 16384


@dataclass(frozen=True)
class _SourceDefaults:
    """What an option left open becomes; chosen per source, as a step over 2,048 samples suits no small data set."""

    mini_batch_size: int = 2048
    optimizer: Literal["sgd", "adagrad", "rwsadagrad", "adam"] = "adagrad"
    learning_rate: float = 0.01
    dim: int = 16
    mlp_bot: tuple[int, ...] = (512, 256, 64)
    mlp_top: tuple[int, ...] = (512, 256, 1)
    loss: Literal["mse", "bce"] = "bce"
    init: Literal["counter", "reference"] = "counter"
    evaluates: bool = True


_DEFAULTS = {
    "flights": _SourceDefaults(mini_batch_size=1024, learning_rate=0.003),
    "reference": _SourceDefaults(
        mini_batch_size=1,
        optimizer="sgd",
        dim=2,
        mlp_bot=(3,),
        mlp_top=(4, 2, 1),
        loss="mse",
        init="reference",
        evaluates=False,
    ),
}


def data_request(options: Options) -> DataRequest:
    """What the options say of the data.

    Raises:
        UserError: an option of the reference's generators without ``--data reference``.
    """
    model, batches = options.model, options.batches
    reference = None
    if options.data.data == "reference":
        reference = _reference_stream(options)
        if batches.max_ind_range > 0:
            raise UserError(
                f"--max-ind-range {batches.max_ind_range}: facebookresearch/dlrm folds the ids of data sets only, "
                "not of its generators; lower --arch-embedding-size instead"
            )
    else:
        given = [name for name, value in asdict(options.reference).items() if value is not None]
        if given:
            name = given[0].replace("_", "-")
            raise UserError(f"--{name} belongs to --data reference and --data is {options.data.data}; drop one of them")
    num_dense = model.arch_mlp_bot[0] if model.arch_mlp_bot else None
    return DataRequest(
        model.arch_embedding_size,
        num_dense,
        batches.numpy_rand_seed,
        batches.max_ind_range,
        reference,
        model.round_targets,
    )


def _reference_stream(options: Options) -> ReferenceStream:
    """The options of facebookresearch/dlrm's generators, with its defaults."""
    defaults = ReferenceStream(
        generation="random",
        data_size=1,
        num_batches=options.batches.num_batches,
        mini_batch_size=options.batches.mini_batch_size or _DEFAULTS["reference"].mini_batch_size,
        num_indices_per_lookup=10,
        num_indices_per_lookup_fixed=False,
        rand_data_dist="uniform",
        rand_data_min=0.0,
        rand_data_max=1.0,
        rand_data_mu=-1.0,
        rand_data_sigma=1.0,
        data_trace_file="./input/dist_emb_j.log",
        data_trace_enable_padding=False,
        round_targets=options.model.round_targets,
        seed=options.batches.numpy_rand_seed,
    )
    given = {name: value for name, value in asdict(options.reference).items() if value is not None}
    generation = given.pop("data_generation", "random")
    return replace(defaults, generation=generation, **given)


def resolve(options: Options, dataset: Dataset) -> Options:
    """Fills every option that was left open; the result repeats the run whatever the defaults become.

    Raises:
        UserError: sizes that do not fit each other.
    """
    defaults = _DEFAULTS.get(options.data.data, _SourceDefaults())
    batch_size = options.batches.mini_batch_size or defaults.mini_batch_size
    test_batch_size = options.batches.test_mini_batch_size
    learning_rate = options.optimisation.learning_rate
    resolved = replace(
        options,
        model=_resolve_model(options.model, dataset.train, defaults),
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
        store=replace(options.store, init=options.store.init or defaults.init),
        run=replace(options.run, steps=0) if options.inference.inference_only else options.run,
    )
    num_steps = Schedule(resolved, dataset.train).num_steps
    test_freq = options.batches.test_freq
    if test_freq is None:
        test_freq = max(1, num_steps // _EVALUATIONS_PER_RUN) if defaults.evaluates else -1
    return replace(resolved, batches=replace(resolved.batches, test_freq=test_freq))


def _resolve_model(model: ModelOptions, source: Source, defaults: _SourceDefaults) -> ModelOptions:
    """Layer sizes from each other, from the data and from the defaults."""
    mlp_bot, width = model.arch_mlp_bot, model.vectors_per_feature
    dim = model.arch_sparse_feature_size or (mlp_bot[-1] // width if mlp_bot else defaults.dim)
    mlp_bot = mlp_bot or (source.num_dense, *defaults.mlp_bot, dim * width)
    if mlp_bot[-1] != dim * width:
        raise UserError(
            f"--arch-mlp-bot ends in {mlp_bot[-1]} but --arch-sparse-feature-size is {dim}; end it in {dim * width}"
        )
    return replace(
        model,
        arch_sparse_feature_size=dim,
        arch_embedding_size=source.table_rows,
        arch_mlp_bot=mlp_bot,
        arch_mlp_top=model.arch_mlp_top or defaults.mlp_top,
        loss_function=model.loss_function or defaults.loss,
    )


class Schedule:
    """Which samples each step trains, and when the model is evaluated.

    A step trains one mini-batch. Samples are taken in their order; the last batch of an epoch may be smaller. With
    ``--steps`` epochs repeat, or end early, as it takes. With ``--mlperf-grad-accum-iter`` N, steps come N at a time: N
    mini-batches are planned and trained as one batch, after which parameters move; the last of an epoch may be fewer.

    Args:
        options: resolved but for ``test_freq``.
        source: training samples.
    """

    def __init__(self, options: Options, source: Source) -> None:
        batches = options.batches
        assert batches.mini_batch_size is not None
        self._source = source
        self._mini_batch_size = batches.mini_batch_size
        self._steps_per_batch = options.optimisation.mlperf_grad_accum_iter
        self._test_freq = batches.test_freq
        self.steps_per_epoch = -(-source.num_samples // self._mini_batch_size)
        if batches.num_batches > 0:
            self.steps_per_epoch = min(self.steps_per_epoch, batches.num_batches)
        steps = options.run.steps
        self.num_steps = batches.nepochs * self.steps_per_epoch if steps is None else steps

    @property
    def num_batches(self) -> int:
        """Batches of the run: as many as steps, unless gradients are accumulated."""
        epochs, rest = divmod(self.num_steps, self.steps_per_epoch)
        size = self._steps_per_batch
        return epochs * -(-self.steps_per_epoch // size) + -(-rest // size)

    def epoch(self, step: int) -> int:
        """Epoch of step ``step``, both from 0."""
        return step // self.steps_per_epoch

    def steps(self, batch: int) -> tuple[int, int]:
        """First step of batch ``batch`` and the one behind its last, all from 0."""
        batches_per_epoch = -(-self.steps_per_epoch // self._steps_per_batch)
        epoch, number = divmod(batch, batches_per_epoch)
        first = epoch * self.steps_per_epoch + number * self._steps_per_batch
        last = min(first + self._steps_per_batch, (epoch + 1) * self.steps_per_epoch, self.num_steps)
        return first, last

    def batches(self) -> Iterator[Batch]:
        """The batches of the run."""
        for batch in range(self.num_batches):
            first, last = self.steps(batch)
            start = first % self.steps_per_epoch * self._mini_batch_size
            stop = start + (last - first) * self._mini_batch_size
            yield self._source.read(start, min(stop, self._source.num_samples))

    def one_epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch, as far as the run goes."""
        return itertools.islice(self.batches(), -(-self.steps_per_epoch // self._steps_per_batch))

    def evaluates_after(self, batch: int) -> bool:
        """Whether the model is evaluated after batch ``batch`` (from 0), as one of its steps is due for it."""
        if self._test_freq is None or self._test_freq <= 0:
            return False
        first, last = self.steps(batch)
        return last // self._test_freq > first // self._test_freq or last == self.num_steps

    def largest_working_sets(self, router: Router) -> tuple[int, ...]:
        """The most unique rows in one batch of the run, counted, in each group of tables."""
        counts = [[len(np.unique(lookups.rows)) for lookups in router(batch)] for batch in self.one_epoch()]
        return tuple(map(max, zip(*counts, strict=True)))


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

    @property
    def table_bytes(self) -> int:
        """Bytes of all records, those of untouched rows included."""
        pairs = zip(self.architecture.groups, self.architecture.layouts, strict=True)
        return sum(table.num_rows * layout.record_bytes for group, layout in pairs for table in group)


def build_job(options: Options, dataset: Dataset) -> Job:
    """Sizes the tiers and builds the trainer.

    Args:
        options: resolved.
        dataset: what they were resolved with.

    Raises:
        UserError: something does not fit; says what to change.
    """
    optimisation, batches = options.optimisation, options.batches
    assert optimisation.optimizer is not None
    assert optimisation.learning_rate is not None
    assert batches.mini_batch_size is not None
    assert options.model.loss_function is not None
    device = choose_device(options.run.device)
    torch.set_num_threads(options.run.threads or usable_processors())
    if options.run.deterministic:
        torch.use_deterministic_algorithms(True)
    schedule = Schedule(options, dataset.train)
    architecture = build_architecture(options.model, optimisation.optimizer)
    router = architecture.router()
    workload = Workload(
        groups=tuple(
            GroupShape(tuple(table.num_rows for table in group), layout)
            for group, layout in zip(architecture.groups, architecture.layouts, strict=True)
        ),
        num_features=len(architecture.embeddings),
        lookups_per_bag=dataset.train.max_lookups_per_bag,
        mini_batch_size=min(batches.mini_batch_size, dataset.train.num_samples),
        mlp_bot=architecture.mlp_bot,
        mlp_top=architecture.mlp_top,
        prefetch_depth=options.cache.prefetch_depth,
        staging_rows=_STAGING_ROWS if device.type == "cuda" else 0,
        num_mini_batches=optimisation.mlperf_grad_accum_iter,
        test_batch_size=_test_batch_size(options, dataset),
        dot=options.model.arch_interaction_op == "dot",
        keeps_inputs=options.model.activation_function in ("gelu", "silu"),
    )
    cache_options = options.cache
    request = CacheRequest(cache_options.gpu_cache_ratio, cache_options.gpu_cache_rows, cache_options.gpu_budget)
    if request == CacheRequest(None, None, None):
        request = replace(request, ratio=1.0)
    device_limit = cache_options.gpu_budget or _free_bytes(device)
    if options.inference.inference_only:  # rows are read where they are: no slots, no training step
        workload = replace(workload, mini_batch_size=1, num_mini_batches=1)
        request, device_limit = CacheRequest(None, 1, None), _free_bytes(device)
    sizes = size_device(workload, request, device_limit, lambda: schedule.largest_working_sets(router))
    host_limit = options.store.host_budget or _free_host_bytes(sizes, device)
    initial = initial_parameters(options, architecture, device)
    dlrm = architecture.dlrm(batches.numpy_rand_seed)
    if initial.dense:
        dlrm.load_state_dict({name: torch.from_numpy(values) for name, values in initial.dense.items()})
    settings = CacheSettings(
        policy=options.cache.policy,
        window=min(options.cache.lookahead, schedule.num_batches),
        prefetch_depth=options.cache.prefetch_depth,
        staging_rows=_STAGING_ROWS,
    )
    cache = _build_cache(router, workload, sizes, host_limit, initial.rows, settings, device)
    _count_uses(cache, schedule)
    trainer = Trainer(
        cache,
        dlrm.to(device),
        LearningRate(
            optimisation.learning_rate,
            optimisation.lr_num_warmup_steps,
            optimisation.lr_decay_start_step,
            optimisation.lr_num_decay_steps,
        ),
        make_loss(options.model.loss_function, options.model.loss_weights, device),
        batches.mini_batch_size,
    )
    if initial.dense_state:
        trainer.load_optimizer_state(initial.dense_state)
    return Job(options, architecture, dataset, schedule, device, sizes, device_limit, host_limit, trainer, initial.note)


def _count_uses(cache: EmbeddingCache, schedule: Schedule) -> None:
    """Policy ``static`` ranks rows by the batches of an epoch that use them; one pass over its ids."""
    if not isinstance(cache.groups[0].policy, Static):
        return
    books = [AddressBook(group.sizes.num_rows) for group in cache.groups]
    for index, batch in enumerate(schedule.one_epoch()):
        for group, book, lookups in zip(cache.groups, books, cache.router(batch), strict=True):
            assert isinstance(group.policy, Static)
            group.policy.count([book.working_set(index, lookups.rows, lookups.offsets)])


def _free_host_bytes(sizes: DeviceSizes, device: torch.device) -> int:
    """Memory the store may take where no budget is given; on the CPU the device tier shares it."""
    available = int(psutil.virtual_memory().available)
    return max(1, available - sizes.total_bytes) if device.type == "cpu" else available


def _test_batch_size(options: Options, dataset: Dataset) -> int:
    """Samples of an evaluation step; 0 if the run has none."""
    if dataset.test is None or (options.batches.test_freq or 0) <= 0:
        return 0
    return min(options.batches.test_mini_batch_size, dataset.test.num_samples)


def _free_bytes(device: torch.device) -> int:
    """Memory that training may take where no budget is given."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _build_cache(
    router: Router,
    workload: Workload,
    sizes: DeviceSizes,
    host_limit: int,
    inits: tuple[RowInit, ...],
    settings: CacheSettings,
    device: torch.device,
) -> EmbeddingCache:
    all_bytes = sum(group.num_rows * group.layout.record_bytes for group in workload.groups)
    groups = []
    for group, slots, init in zip(workload.groups, sizes.groups, inits, strict=True):
        store_rows = max(1, host_limit * group.num_rows // all_bytes)  # all groups are full at once
        groups.append((GroupSizes(group.table_rows, slots.quota, slots.total, store_rows), group.layout, init))
    try:
        return EmbeddingCache(router, groups, settings, device)
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError and a subclass
        raise UserError(
            f"{format_bytes(sizes.breakdown['slab'])} of slots or {format_bytes(host_limit)} of host records cannot be "
            "reserved; lower --gpu-cache-ratio or --host-budget"
        ) from error
