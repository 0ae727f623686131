"""From options and data to everything a run needs, decided and checked before the first step."""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import choose_device, usable_processors
from cachedlrm.base.units import format_bytes
from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.table_group import CacheSettings, Durability
from cachedlrm.data.batch import Dataset
from cachedlrm.export.initial import initial_parameters
from cachedlrm.export.started import Started, start_from
from cachedlrm.model.dlrm import Dlrm
from cachedlrm.model.graphed_pass import CudaRecorder
from cachedlrm.model.losses import Loss, make_loss
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.schedule import Schedule
from cachedlrm.plan.id_pass import Tell, inform_policies, tell_nobody
from cachedlrm.plan.tiers import MOST_STAGING_ROWS, Tiers, size_tiers
from cachedlrm.run.checkpoint import check_data, keeps_log, open_durability, restore_trainer
from cachedlrm.run.evaluation import table_number
from cachedlrm.run.trainer import Trainer
from cachedlrm.store.checkpoint_value import Checkpoint
from cachedlrm.store.init import RowInit


@dataclass(frozen=True)
class Job:
    """A run ready to start.

    Attributes:
        options: every option resolved.
        architecture: of the model.
        dataset: training and held-out samples.
        schedule: steps and evaluations.
        device: where training happens.
        tiers: sizes of the tiers.
        trainer: cache, model and optimizers.
        note: what a user should know of a loaded model, or of a run that goes on; else None.
        group_by: number of the table of ``--gauc-table``.
        started: where the run began, if it goes on from a finished one.
        checkpoint: from which ``--resume`` goes on; None: from the beginning.
    """

    options: Resolved
    architecture: Architecture
    dataset: Dataset
    schedule: Schedule
    device: torch.device
    tiers: Tiers
    trainer: Trainer
    note: str | None
    group_by: int | None = None
    started: Started | None = None
    checkpoint: Checkpoint | None = None

    @property
    def first_batch(self) -> int:
        """The first batch to train: not the next planned, the next that was not trained."""
        return 0 if self.checkpoint is None else self.checkpoint.batches

    def inform_policies(self, run_dir: Path, tell: Tell) -> None:
        """Reads the ids once for a policy that needs to know them; see `cachedlrm.plan.id_pass.inform_policies`."""
        cache = self.trainer.cache
        policies = [group.policy for group in cache.groups]
        num_rows = [group.num_rows for group in self.tiers.step.groups]
        inform_policies(
            [policies],
            num_rows,
            self.architecture.router(),
            self.schedule,
            self.options,
            run_dir=run_dir,
            row_counts=self.dataset.row_counts,
            tell=tell,
            first_batch=self.first_batch,
        )

    def close(self) -> None:
        """Lets others open the store."""
        self.trainer.cache.close()


def build_job(options: Resolved, dataset: Dataset, run_dir: Path, tell: Tell = tell_nobody) -> Job:
    """Sizes the tiers and builds the trainer; with ``--resume`` as the last checkpoint has it.

    Args:
        options: resolved.
        dataset: what they were resolved with.
        run_dir: the run's directory.
        tell: see `size_tiers`.

    Raises:
        UserError: something does not fit; says what to change.
    """
    device = choose_device(options.run.device)
    torch.set_num_threads(options.run.threads or usable_processors())
    if options.run.deterministic:
        torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = options.optimisation.tf32
    schedule = Schedule(options, dataset.train)
    group_by = table_number(options.evaluation.gauc_table, dataset.table_names or (), len(dataset.train.table_rows))
    architecture = build_architecture(options.model, options.optimisation)
    tiers = size_tiers(options, architecture, dataset, device, tell)
    if device.type == "cuda":
        _limit_allocator(device, options.cache.gpu_budget)
    started = None
    if options.run.start_from is not None:
        started = start_from(options.run.start_from, options, architecture, device, dataset.vocabulary)
    initial = started.parameters if started else initial_parameters(options, architecture, device, dataset.vocabulary)
    dataset = replace(dataset, vocabulary=initial.vocabulary)
    dlrm = architecture.dlrm(options.batches.numpy_rand_seed)
    if initial.dense:
        dense = {name: torch.from_numpy(values) for name, values in initial.dense.items()}
        dlrm.load_state_dict(dense, strict=False)  # facebookresearch/dlrm draws none for interactions it does not have
    loss = make_loss(options.model.loss_function, options.model.loss_weights, device)
    durability = checkpoint = data_note = None
    with ExitStack() as undo:
        if keeps_log(options):
            shapes = [(group.num_rows, group.layout.width) for group in tiers.step.groups]
            durability, checkpoint = open_durability(
                options, run_dir, shapes, tiers.host.records, dataset.vocabulary_fingerprint
            )
            undo.callback(durability.database.close)
            data_note = check_data(durability.database, dataset, options.run.resume, checkpoint is not None)
        cache = _cache(
            options,
            architecture,
            tiers,
            inits=initial.rows,
            counts_min=options.cache.report_min and (checkpoint is None or _compares_with_min(checkpoint)),
            device=device,
            durability=durability,
        )
        trainer = _trainer(options, cache, dlrm.to(device), loss)
        if checkpoint is not None:
            _check_end(checkpoint, schedule, options)
            restore_trainer(trainer, checkpoint)
        else:
            trainer.steps_before = initial.steps
            if initial.dense_state:
                trainer.load_optimizer_state(initial.dense_state)
        undo.pop_all()
    note = "\n".join(filter(None, (initial.note, data_note))) or None
    return Job(options, architecture, dataset, schedule, device, tiers, trainer, note, group_by, started, checkpoint)


def _cache(
    options: Resolved,
    architecture: Architecture,
    tiers: Tiers,
    *,
    inits: tuple[RowInit, ...],
    counts_min: bool,
    device: torch.device,
    durability: Durability | None,
) -> EmbeddingCache:
    """The cache over all tiers.

    Raises:
        UserError: memory cannot be reserved.
    """
    settings = CacheSettings(
        policy=options.cache.policy,
        window=tiers.window,
        prefetch_depth=options.cache.prefetch_depth,
        staging_rows=tiers.step.staging_rows or MOST_STAGING_ROWS,
        report_min=counts_min,
        seed=options.batches.numpy_rand_seed,
        averages=options.model.pooling == "mean",
    )
    try:
        return EmbeddingCache(
            architecture.router(),
            groups=tiers.step.groups,
            slots=tiers.device.groups,
            store_rows=tiers.host.store_rows,
            inits=inits,
            settings=settings,
            device=device,
            durability=durability,
        )
    except (MemoryError, RuntimeError) as error:  # torch's allocators raise RuntimeError and a subclass
        raise UserError(
            f"{format_bytes(tiers.device.breakdown['slab'])} of slots or {format_bytes(tiers.host.records)} of "
            "host records cannot be reserved; lower --gpu-cache-ratio or --host-budget"
        ) from error


def _trainer(options: Resolved, cache: EmbeddingCache, dlrm: Dlrm, loss: Loss) -> Trainer:
    """Model and optimizers around the cache, at the first step."""
    optimisation, batches = options.optimisation, options.batches
    return Trainer(
        cache,
        dlrm,
        optimisation.row_rate,
        loss,
        batches.mini_batch_size,
        micro_batch_size=batches.micro_batch_size,
        dtype=torch.bfloat16 if optimisation.bf16 else torch.float32,
        record=CudaRecorder() if optimisation.cuda_graphs else None,
        dense=optimisation.dense,
        dense_learning_rate=optimisation.dense_rate,
        eps=optimisation.eps,
        weight_decay=optimisation.weight_decay,
        clip_grad_norm=optimisation.clip_grad_norm,
    )


def _limit_allocator(device: torch.device, budget: int | None) -> None:
    """Makes torch's allocator give idle segments back to the driver before it holds more than ``--gpu-budget``.

    The account bounds what is in use at a time. Segments that one part of a step leaves idle may be too small for the
    tensors of the next, so without a limit the allocator would reserve more.
    """
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (budget or total) / total), device)


def _compares_with_min(checkpoint: Checkpoint) -> bool:
    """Whether MIN was counted so far; a part of its moves would stand beside all of the run's."""
    counters = checkpoint.progress.get("counters")
    return not checkpoint.batches or (isinstance(counters, dict) and counters.get("moved_rows_min") != 0)


def _check_end(checkpoint: Checkpoint, schedule: Schedule, options: Resolved) -> None:
    """The run may end later than it did, but not before what is trained, nor in a batch that was cut short."""
    if checkpoint.batches > schedule.num_batches:
        raise UserError(
            f"--resume {options.run.resume}: {checkpoint.batches:,} batches are trained and the run is now to end "
            f"after {schedule.num_batches:,}; raise --steps or --nepochs"
        )
    accumulated, trained = options.optimisation.mlperf_grad_accum_iter, checkpoint.progress.get("steps")
    if accumulated > 1 and checkpoint.batches and trained not in (None, schedule.steps(checkpoint.batches - 1)[1]):
        raise UserError(
            f"--resume {options.run.resume}: it ended after step {trained}, which cut {accumulated} mini-batches of "
            f"--mlperf-grad-accum-iter short, and parameters have moved; start it again with --steps a multiple of "
            f"{accumulated}"
        )
