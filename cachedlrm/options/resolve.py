"""Fills in options that were left open, and says what they ask of the data."""

import itertools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import choose_device, free_device_bytes, usable_processors
from cachedlrm.base.units import format_bytes
from cachedlrm.data.batch import Dataset, Source
from cachedlrm.data.spec import DataRequest, ReferenceStream
from cachedlrm.options.architecture import Architecture, build_architecture
from cachedlrm.options.config import BatchOptions, HardwareOptions, ModelOptions, Options
from cachedlrm.options.optimisation import OptimisationOptions, ResolvedOptimisation, RowOptimizer, definite
from cachedlrm.options.profiles import load_options
from cachedlrm.options.resolved import (
    Resolved,
    ResolvedBatches,
    ResolvedCache,
    ResolvedModel,
    ResolvedRun,
    ResolvedStore,
)
from cachedlrm.options.schedule import Schedule
from cachedlrm.store.records import OPTIMIZERS

_EVALUATIONS_PER_RUN = 10  # with --test-freq left open
_NEVER = -1  # of --test-freq
_MOST_THREADS = 1024  # of --threads
# Multiplications of a forward pass; see docs/log/run.md.
_WORTH_THREADS = 10**8
_WORTH_PREFETCHING = 10**7
_PREFETCH_DEPTH = 2
# MLPerf's DLRM-DCNv2 has 3 layers of rank 512; DCN V2's authors find a quarter of the width to lose next to nothing.
_CROSS_LAYERS, _MOST_CROSS_RANK = 3, 512
_SHARE_OF_FREE = 0.9  # of the GPU's memory, for --gpu-budget auto without a device profile


@dataclass(frozen=True)
class _SourceDefaults:
    """Defaults of open options, by source of data: a step of 2,048 samples suits no small data set."""

    mini_batch_size: int = 2048
    optimizer: RowOptimizer = "adagrad"
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
    """The request that options make of the data.

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
        table_rows=model.arch_embedding_size,
        num_dense=num_dense,
        seed=batches.numpy_rand_seed,
        max_ind_range=batches.max_ind_range,
        reference=reference,
        round_targets=model.round_targets,
        least_rows=None if options.run.start_from is None else _rows_of(options.run.start_from),
    )


def _rows_of(run_dir: Path) -> tuple[int, ...] | None:
    """Rows of the tables of a run."""
    return load_options(run_dir / "config.toml").model.arch_embedding_size


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


def resolve(options: Options, dataset: Dataset, device: torch.device | None = None, is_here: bool = True) -> Resolved:
    """Fills in every option that was left open; the result repeats the run whatever the defaults become.

    Args:
        options: as the user gave them.
        dataset: the samples they name.
        device: device to train on, present or not; None: the one of this machine that ``--device`` names.
        is_here: whether the free memory of the device of this machine bounds ``--gpu-budget auto``.

    Raises:
        UserError: sizes that do not fit each other, a device that is missing, or evaluations without samples.
    """
    describes_cpu = options.run.device == "auto" and options.hardware.device_type == "cpu"
    device = device or choose_device("cpu" if describes_cpu else options.run.device)
    if options.optimisation.tf32 and device.type != "cuda":
        raise UserError("--tf32 is for CUDA and this run is on the CPU; drop it, or use --bf16")
    if options.optimisation.cuda_graphs and device.type != "cuda":
        raise UserError(
            "--cuda-graphs is for CUDA and this run is on the CPU; drop it, or say --cuda-graphs=False where a profile "
            "or the run to resume has it"
        )
    trains = not options.inference.inference_only
    defaults = _DEFAULTS.get(options.data.data, _SourceDefaults())
    model, batches = _resolve_model(options.model, dataset.train, defaults), _resolve_batches(options.batches, defaults)
    if options.optimisation.cuda_graphs and batches.micro_batch_size < batches.mini_batch_size:
        raise UserError(
            f"--cuda-graphs takes steps of one pass and --micro-batch-size {batches.micro_batch_size} divides them; "
            f"raise it to --mini-batch-size {batches.mini_batch_size}, or drop --cuda-graphs"
        )
    optimisation = _resolve_optimisation(options.optimisation, defaults)
    multiplications = batches.mini_batch_size * _multiplications_per_sample(build_architecture(model, optimisation))
    resolved = Resolved(
        **_kept(options, Resolved),
        model=model,
        batches=batches,
        optimisation=optimisation,
        cache=_resolve_cache(options, device, multiplications, is_here),
        store=_resolve_store(options, defaults),
        run=ResolvedRun(
            **_kept(replace(options.run, steps=options.run.steps if trains else 0), ResolvedRun),
            device="cuda" if device.type == "cuda" else "cpu",
            threads=options.run.threads or _threads(multiplications),
        ),
    )
    schedule = Schedule(resolved, dataset.train)
    resolved = replace(resolved, optimisation=definite(resolved.optimisation, schedule.num_batches))
    test_freq = _resolve_test_freq(options, dataset, schedule, defaults)
    if trains:
        _check_evaluations(options, dataset, schedule.num_steps, test_freq)
    return replace(resolved, batches=replace(batches, test_freq=test_freq))


def _kept(group: object, resolved: type) -> dict[str, Any]:
    """The fields of a group that its ``resolved`` type takes as they are."""
    return {name: value for name, value in vars(group).items() if name not in resolved.__annotations__}


def _resolve_model(model: ModelOptions, source: Source, defaults: _SourceDefaults) -> ResolvedModel:
    """Layer sizes from each other, from the data and from the defaults."""
    mlp_bot, width = model.arch_mlp_bot, model.vectors_per_feature
    dim = model.arch_sparse_feature_size or (mlp_bot[-1] // width if mlp_bot else defaults.dim)
    hidden = defaults.mlp_bot if source.num_dense else ()  # nothing to learn from: one vector for all samples
    mlp_bot = mlp_bot or (source.num_dense, *hidden, dim * width)
    if model.arch_interaction_op == "dcn":
        rank = min(_MOST_CROSS_RANK, max(1, (len(source.table_rows) + 1) * mlp_bot[-1] // 4))
        model = replace(
            model,
            dcn_num_layers=model.dcn_num_layers or _CROSS_LAYERS,
            dcn_low_rank_dim=model.dcn_low_rank_dim or rank,
        )
    return ResolvedModel(
        **_kept(model, ResolvedModel),
        arch_sparse_feature_size=dim,
        arch_embedding_size=source.table_rows,
        arch_mlp_bot=mlp_bot,
        arch_mlp_top=model.arch_mlp_top or defaults.mlp_top,
        loss_function=model.loss_function or defaults.loss,
    )


def _resolve_optimisation(optimisation: OptimisationOptions, defaults: _SourceDefaults) -> ResolvedOptimisation:
    optimizer, learning_rate = optimisation.optimizer or defaults.optimizer, optimisation.learning_rate
    if optimisation.row_state_dtype != "fp32" and not OPTIMIZERS[optimizer].state_keys:
        raise UserError(
            f"--row-state-dtype {optimisation.row_state_dtype}: --optimizer {optimizer} keeps no state of rows; drop it"
        )
    return ResolvedOptimisation(
        **_kept(optimisation, ResolvedOptimisation),
        optimizer=optimizer,
        learning_rate=defaults.learning_rate if learning_rate is None else learning_rate,
    )


def _resolve_batches(batches: BatchOptions, defaults: _SourceDefaults) -> ResolvedBatches:
    """Sizes of batches; ``test_freq`` depends on the number of steps and follows."""
    size = batches.mini_batch_size or defaults.mini_batch_size
    micro, test = min(batches.micro_batch_size or size, size), batches.test_mini_batch_size
    sized = replace(batches, test_mini_batch_size=test if test > 0 else micro)
    return ResolvedBatches(
        **_kept(sized, ResolvedBatches), mini_batch_size=size, micro_batch_size=micro, test_freq=_NEVER
    )


def _resolve_cache(options: Options, device: torch.device, multiplications: int, is_here: bool) -> ResolvedCache:
    """Without a size all rows are kept, said as a ratio, so that a repeated run too is refused if they do not fit."""
    cache, trains = options.cache, not options.inference.inference_only
    cache = replace(cache, report_min=cache.report_min or (trains and cache.policy == "oracle"))
    budget, depth = cache.gpu_budget, cache.prefetch_depth
    if budget == "auto":
        budget, cache = _automatic_budget(options.hardware, device, is_here), replace(cache, predict=trains)
    if (cache.gpu_cache_ratio, cache.gpu_cache_rows, budget) == (None, None, None):
        cache = replace(cache, gpu_cache_ratio=1.0)
    if depth is None:
        depth = 0 if device.type == "cpu" and multiplications < _WORTH_PREFETCHING else _PREFETCH_DEPTH
    return ResolvedCache(**_kept(cache, ResolvedCache), gpu_budget=budget, prefetch_depth=depth)


def _automatic_budget(hardware: HardwareOptions, device: torch.device, is_here: bool) -> int:
    """Bytes that a device profile leaves for a run, or most of the free memory; fragments need the rest."""
    memory, reserved = hardware.device_memory, hardware.device_reserved or 0
    if memory is not None and memory <= reserved:
        raise UserError(
            f"--device-reserved {format_bytes(reserved)} leaves nothing of --device-memory {format_bytes(memory)}; "
            "lower it"
        )
    free = None
    if is_here and device.type == "cuda" and torch.cuda.is_available():
        free = int(_SHARE_OF_FREE * free_device_bytes(device))
    if memory is not None:  # of a card like this one, or of a smaller one
        return memory - reserved if free is None else min(memory - reserved, free)
    if free is not None:
        return free
    raise UserError(
        "--gpu-budget auto takes the free memory of a CUDA device and there is none here; name a device by --profile "
        "(such as rtx3050-4gb), or give its --device-memory or a --gpu-budget in bytes"
    )


def _multiplications_per_sample(architecture: Architecture) -> int:
    """Multiplications of a forward pass through the layers for one sample."""
    layers = [*itertools.pairwise(architecture.mlp_bot), *itertools.pairwise(architecture.mlp_top)]
    num_vectors, dim = len(architecture.embeddings) + 1, architecture.mlp_bot[-1]
    matrices = architecture.interaction.matrices(num_vectors, dim)
    return sum(inputs * outputs for inputs, outputs in (*layers, *matrices))


def _threads(multiplications: int) -> int:
    """All processors, or one where a step is so small that every operator's barrier costs more than threads save."""
    return min(usable_processors(), _MOST_THREADS) if multiplications >= _WORTH_THREADS else 1


def _resolve_test_freq(options: Options, dataset: Dataset, schedule: Schedule, defaults: _SourceDefaults) -> int:
    """Steps between evaluations; as many as an epoch has for one at its end, since steps are counted over epochs."""
    test_freq = options.batches.test_freq
    if dataset.test is None:
        if test_freq not in (None, _NEVER):
            raise UserError(
                f"--test-freq {test_freq}: --data {options.data.data} holds out no samples; "
                "name them by --test-data, or drop --test-freq"
            )
        return _NEVER
    if test_freq == "epoch":
        return schedule.steps_per_epoch
    if test_freq is not None:
        return test_freq
    return max(1, schedule.num_steps // _EVALUATIONS_PER_RUN) if defaults.evaluates else _NEVER


def _check_evaluations(options: Options, dataset: Dataset, num_steps: int, test_freq: int) -> None:
    """Refuses what needs an evaluation where there will be none, before the run, not at its end."""
    evaluation = options.evaluation
    asked = [
        name
        for name, given in (
            ("--save-predictions", options.run.save_predictions),
            (f"--stop-after {evaluation.stop_after}", evaluation.stop_after),
            (f"--stop-at-auc {evaluation.stop_at_auc}", evaluation.stop_at_auc),
            ("--keep-best", evaluation.keep_best),
            (f"--gauc-table {evaluation.gauc_table}", evaluation.gauc_table),
        )
        if given
    ]
    if not asked:
        return
    if dataset.test is None:
        raise UserError(f"{asked[0]}: --data {options.data.data} holds out no samples; name them by --test-data")
    if test_freq < 0:
        raise UserError(
            f"{asked[0]} needs evaluations and --test-freq is {test_freq}: never; give --test-freq N, N steps between "
            "evaluations, or epoch"
        )
    if not num_steps:
        raise UserError(
            f"{asked[0]} needs an evaluation and a run of no steps has none; raise --steps or --nepochs, or add "
            "--inference-only"
        )


def _resolve_store(options: Options, defaults: _SourceDefaults) -> ResolvedStore:
    store, run = options.store, options.run
    if store.store_path is not None and store.store == "host" and run.checkpoint_every is None:
        raise UserError(
            f"--store-path {store.store_path} is for rows on disk; add --store lmdb or --checkpoint-every, or drop it"
        )
    if options.inference.inference_only and (store.store == "lmdb" or run.checkpoint_every is not None):
        name = "--store lmdb" if store.store == "lmdb" else f"--checkpoint-every {run.checkpoint_every}"
        raise UserError(f"{name} is for training and --inference-only trains nothing; drop one of them")
    path = None if store.store_path is None else store.store_path.absolute()
    return ResolvedStore(**_kept(replace(store, store_path=path), ResolvedStore), init=store.init or defaults.init)
