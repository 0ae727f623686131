"""The options of a run, typed: fields of the dataclasses below are the options, their docstrings the help."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from cachedlrm.options.types import (
    Budget,
    Bytes,
    Count,
    Depth,
    EmbeddingBits,
    Flag,
    Flops,
    LearningRate,
    Lookups,
    MayChange,
    MlpBits,
    MlpBot,
    MlpTop,
    Names,
    Number,
    Positive,
    PositiveOrOff,
    Rate,
    Ratio,
    Sizes,
    Switch,
    Threads,
    Threshold,
    TracedSteps,
    Weights,
    option_group,
)


@option_group("Model", 1)
@dataclass(frozen=True)
class ModelOptions:
    """Options of facebookresearch/dlrm; left open, they follow the data."""

    arch_sparse_feature_size: Positive | None = None
    """Embedding dimension. Default: 16; 2 for reference data."""
    arch_embedding_size: Sizes | None = None
    """Rows of each table, joined by dashes. Default: the data's; for zipf Criteo-Kaggle's 26 tables."""
    arch_mlp_bot: MlpBot | None = None
    """Layer sizes of the bottom MLP from the dense features to the embedding dimension. Default: N-512-256-64-16."""
    arch_mlp_top: MlpTop | None = None
    """Layer sizes of the top MLP after the interaction; its input size is derived. Default: 512-256-1."""
    arch_interaction_op: Literal["dot", "cat"] = "dot"
    """How the bottom MLP's output and the pooled embeddings meet."""
    arch_interaction_itself: Flag = False
    """Include each vector's product with itself in the dot interaction."""
    weighted_pooling: Literal["fixed", "learned"] | None = None
    """A weight for each row when its bag is summed: fixed (all 1, the numbers without) or learned, from 1 on."""
    activation_function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    """Between the layers of both MLPs (the reference knows relu alone)."""
    loss_function: Literal["mse", "bce", "wbce"] | None = None
    """Loss, averaged over the batch; wbce weighs samples by label. Default: bce; mse for reference data."""
    loss_weights: Weights = (1.0, 1.0)
    """Weight of a sample with label 0, with label 1, ... for wbce."""
    loss_threshold: Threshold = 0.0
    """Predictions are kept within this and one minus this; 0: as they are."""
    round_targets: Switch = False
    """Round labels to 0 or 1."""
    qr_flag: Flag = False
    """Quotient-remainder trick: two small tables in place of each large one."""
    qr_threshold: Count = 200
    """Tables with more rows than this are split."""
    qr_operation: Literal["mult", "add", "concat"] = "mult"
    """How the two vectors combine; concat needs twice the embedding dimension in the bottom MLP's end."""
    qr_collisions: Positive = 4
    """Rows of the remainder table: so many ids share a row of the quotient table."""
    md_flag: Flag = False
    """Mixed dimensions: larger tables get narrower rows and a projection."""
    md_threshold: Count = 200
    """Tables with more rows than this get their own dimension."""
    md_temperature: Rate = 0.3
    """How fast dimensions fall with the number of rows; 0: not at all."""
    md_round_dims: Flag = False
    """Round dimensions to powers of two."""

    @property
    def vectors_per_feature(self) -> int:
        """Vectors of the embedding dimension side by side in what a feature gives to the interaction."""
        return 2 if self.qr_flag and self.qr_operation == "concat" else 1


@option_group("Batches", 2)
@dataclass(frozen=True)
class BatchOptions:
    """Options of facebookresearch/dlrm, for every source of data."""

    mini_batch_size: Positive | None = None
    """Samples of a step. Default: 2048; 1024 for flights, 1 for reference data."""
    micro_batch_size: Positive | None = None
    """Samples that go through the layers at a time, at most; gradients of a mini-batch's passes are added up. Fewer
    need less memory on the device. Default: the mini-batch."""
    num_batches: Count = 0
    """Steps of an epoch at most; 0: all."""
    nepochs: MayChange[Count] = 1
    """Passes over the data."""
    numpy_rand_seed: Count = 123
    """Seed of everything: initial parameters and generated data."""
    max_ind_range: PositiveOrOff = -1
    """Fold ids: id modulo this, in every table; -1: as they are."""
    test_freq: MayChange[PositiveOrOff | None] = None
    """Steps between evaluations, and one at the end; -1: never. Default: ten evaluations a run; -1 for reference
    data."""
    test_mini_batch_size: MayChange[PositiveOrOff] = -1
    """Samples of an evaluation step; -1: as many as go through the layers at a time in training."""
    print_freq: MayChange[Positive] = 50
    """Steps between lines of metrics; 1 also records every loss in report.json."""


@option_group("Data", 3)
@dataclass(frozen=True)
class DataOptions:
    """Where samples come from."""

    data: str = "zipf"
    """zipf (generated, Criteo-Kaggle-shaped; zipf:samples=N,hot=H), flights (real records, optional package),
    npy:DIR (*_dense.npy, *_sparse.npy, *_labels.npy; memory-mapped; with the held-out part of prepared data),
    criteo:PATH (raw files, for a first look), parquet:PATH or parquet:PATH:label=L:dense=A,B:sparse=C,D (a file or
    folder; ids as they are; columns not named follow from their types), or reference (facebookresearch/dlrm's
    generators: its numbers from its seed, and its defaults)."""
    test_data: MayChange[str | None] = None
    """Held-out samples, spelled like --data. Default: the data's own, where it has some."""


@option_group("Reference data", 4)
@dataclass(frozen=True)
class ReferenceOptions:
    """Options of facebookresearch/dlrm's generators, for --data reference only."""

    data_generation: Literal["random", "synthetic"] | None = None
    """random, or synthetic: ids by LRU stack distances from trace files. Default: random."""
    data_size: Positive | None = None
    """Samples of an epoch; --num-batches goes before it. Default: 1."""
    num_indices_per_lookup: Lookups | None = None
    """The most ids of a bag. Default: 10."""
    num_indices_per_lookup_fixed: Switch | None = None
    """Draw as many ids for every bag (equal ones count once). Default: False."""
    rand_data_dist: Literal["uniform", "gaussian"] | None = None
    """Distribution of ids. Default: uniform."""
    rand_data_min: Number | None = None
    """Least id of gaussian. Default: 0."""
    rand_data_max: Number | None = None
    """Greatest id of gaussian. Default: 1."""
    rand_data_mu: Number | None = None
    """Mean of gaussian; -1: between least and greatest. Default: -1."""
    rand_data_sigma: Rate | None = None
    """Standard deviation of gaussian. Default: 1."""
    data_trace_file: str | None = None
    """Trace file of each table; every letter j in it becomes the table's number. Default: ./input/dist_emb_j.log."""
    data_trace_enable_padding: Switch | None = None
    """Draw no new ids once all were drawn. Default: False."""


@option_group("Optimisation", 5)
@dataclass(frozen=True)
class OptimisationOptions:
    """Optimizers of rows and dense parameters."""

    optimizer: Literal["sgd", "adagrad", "rwsadagrad", "adam"] | None = None
    """Lazy on rows: only rows of the batch move (adam as torch.optim.SparseAdam). Default: adagrad; sgd for reference
    data."""
    learning_rate: LearningRate | None = None
    """Of rows and dense parameters. Default: 0.01; 0.003 for flights."""
    lr_num_warmup_steps: Count = 0
    """Steps of linear warm-up."""
    lr_decay_start_step: Count = 0
    """Step at which quadratic decay begins, if there are steps of it."""
    lr_num_decay_steps: Count = 0
    """Steps of quadratic decay; the rate stays where it ends."""
    mlperf_grad_accum_iter: Positive = 1
    """Mini-batches whose gradients are added up before parameters move."""
    bf16: Flag = False
    """Layers and interaction in bfloat16 while training. Embeddings, parameters, losses, optimizers and evaluations
    stay in 32 bits."""
    tf32: Flag = False
    """Matrix products in TensorFloat-32, on GPUs that have it (RTX 30 and later): 10 bits of a number count."""
    cuda_graphs: MayChange[Flag] = False
    """Launch forward and backward pass of a whole mini-batch as two CUDA graphs: the same bits, with less work for the
    host where a step is small, and with activations in device memory of their own."""


@option_group("Cache", 6)
@dataclass(frozen=True)
class CacheOptions:
    """What the device holds."""

    gpu_cache_ratio: MayChange[Ratio | None] = None
    """Rows kept on the device, as a share of all rows. Default: 1 without --gpu-cache-rows and --gpu-budget."""
    gpu_cache_rows: MayChange[Positive | None] = None
    """Rows kept on the device."""
    gpu_budget: MayChange[Budget | None] = None
    """The most bytes on the device (2GiB), everything included; alone, it decides the rows kept. auto: what a device
    profile says there is, or nine tenths of what is free on the GPU; implies --predict."""
    policy: MayChange[Literal["lru", "lfu", "lrfu", "static", "lookahead", "oracle"]] = "lrfu"
    """Which rows to evict. static, lookahead and oracle read all ids once before training (for the first two, prepared
    data has counts and spares that); lookahead knows --lookahead batches ahead, and beyond them how many lookups are
    left; oracle moves as few rows as possible, for comparison, and keeps 4 bytes for each row of each batch on disk."""
    lookahead: MayChange[Positive] = 200
    """Batches known ahead to --policy lookahead; each waits in host memory (about 2 MB at 2,048 samples)."""
    count_rows: MayChange[Flag] = True
    """Of --policy lookahead: read all ids once before training, to know how often each row is still to be used;
    prepared data has the counts and needs no pass. --count-rows=False: start at once, and move a few percent more."""
    prefetch_depth: MayChange[Depth | None] = None
    """Batches prepared before they are needed; 0: each when it is needed, in the training thread. Preparing runs ahead
    only while the slots hold that many working sets more than one. Default: 2; 0 on the CPU where a step is small."""
    report_min: MayChange[Flag] = False
    """Count how few rows any policy could have moved (Belady's MIN) and report it; always with --policy oracle."""
    predict: MayChange[Flag] = False
    """Before training, predict hits, rows moved and the highest speed from the ids of the first batches, and report
    them beside what was measured."""


@option_group("Store", 7)
@dataclass(frozen=True)
class StoreOptions:
    """Where rows are that the device does not hold."""

    store: MayChange[Literal["host", "lmdb"]] = "host"
    """host: all touched rows in memory. lmdb: as many as --host-budget holds, the others on disk."""
    store_path: MayChange[Path | None] = None
    """Folder of the rows on disk, for --store lmdb and --checkpoint-every. Default: store in the run directory."""
    host_budget: MayChange[Bytes | None] = None
    """The most bytes of rows in memory (16GiB). Default: the memory that is free; half of it for --store lmdb."""
    init: Literal["counter", "reference"] | None = None
    """Initial weights. counter: a pure function of seed and row; reference: facebookresearch/dlrm's numbers, whole
    tables in memory. Default: counter; reference for reference data."""


@option_group("Run", 8)
@dataclass(frozen=True)
class RunOptions:
    """How to run and what to leave behind."""

    device: MayChange[Literal["auto", "cpu", "cuda"]] = "auto"
    """auto: cuda if there is one."""
    steps: MayChange[Count | None] = None
    """Steps to train; epochs repeat or end early as it takes. 0: build, initialise, report, stop."""
    run_dir: MayChange[Path | None] = None
    """Directory for config.toml, metrics.jsonl, the reports and the final state. Default: runs/DATE-TIME."""
    checkpoint_every: MayChange[Positive | None] = None
    """Steps between checkpoints, from which --resume goes on; one more at the end and at an interrupt. Default: none;
    at the end for --store lmdb."""
    resume: MayChange[Path | None] = None
    """Go on with the run in this directory, from its last checkpoint, with the options it was started with. Options of
    cache, store, run and hardware may change."""
    ui: MayChange[Literal["auto", "live", "plain", "off"]] = "auto"
    """auto: live on a terminal, plain lines elsewhere."""
    save_predictions: MayChange[Flag] = False
    """Write the last evaluation's predictions to predictions.npy."""
    threads: MayChange[Threads | None] = None
    """Threads of torch's operators. Default: the processors this process may use; 1 where a step is small."""
    debug_mode: MayChange[Flag] = False
    """Print the architecture before training: layers, interactions, tables and their bytes."""
    tensorboard: MayChange[Flag] = False
    """Write the numbers of metrics.jsonl for TensorBoard, too, into tensorboard in the run directory."""
    profile_trace: MayChange[TracedSteps] = 0
    """Steps to trace with torch's profiler, with every phase as a range: trace.json in the run directory, for
    https://ui.perfetto.dev. They begin after 5 % of the steps, 100 at most, and are slower. 0: none; at most 1000."""
    deterministic: MayChange[Flag] = False
    """Only deterministic operators, or an error (matters on CUDA)."""
    profile: MayChange[Names] = ()
    """Values from a TOML file, or from a packaged one by name: of a workload (criteo-kaggle) or a device (rtx3050-4gb).
    May be given more than once; a later one overrides an earlier one, the command line all of them."""


@option_group("Hardware", 9)
@dataclass(frozen=True)
class HardwareOptions:
    """The machine trained on, for --gpu-budget auto and for predictions. Device profiles say it."""

    device_memory: MayChange[Bytes | None] = None
    """Memory of the device (4GiB)."""
    device_reserved: MayChange[Bytes | None] = None
    """What driver, display and libraries keep of it. Default: nothing."""
    device_bandwidth: MayChange[Bytes | None] = None
    """Bytes a second between the device and its memory (192GB)."""
    device_flops: MayChange[Flops | None] = None
    """Floating-point operations a second of the device in 32 bits (7e12)."""
    link_bandwidth: MayChange[Bytes | None] = None
    """Bytes a second between host and device, one way (15.75GB)."""


@option_group("Inference", 10)
@dataclass(frozen=True)
class InferenceOptions:
    """Options of facebookresearch/dlrm for models in files and for serving them."""

    load_model: Path | None = None
    """Start from the parameters of this model file (facebookresearch/dlrm's format) instead of --init's. A warm start:
    training begins at the first sample. The file's optimizer state is used if it is --optimizer's."""
    save_model: MayChange[Path | None] = None
    """Write the parameters after the last step to this file, in facebookresearch/dlrm's format."""
    inference_only: MayChange[Flag] = False
    """Train nothing: evaluate on the held-out samples. Rows are read where they are, so the cache is not used."""
    quantize_mlp_with_bit: MayChange[MlpBits] = 32
    """8 (integers) or 16 (floats): weights of both MLPs for --inference-only; 32: as they are."""
    quantize_emb_with_bit: MayChange[EmbeddingBits] = 32
    """8 or 4 (integers, a scale for each row): tables for --inference-only; 32: as they are."""
    save_onnx: MayChange[Flag] = False
    """Write the model to model.onnx in the run directory (optional package onnx)."""


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """All options of a run. None: left open, decided by the data."""

    model: ModelOptions = field(default_factory=ModelOptions)
    batches: BatchOptions = field(default_factory=BatchOptions)
    data: DataOptions = field(default_factory=DataOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    store: StoreOptions = field(default_factory=StoreOptions)
    run: RunOptions = field(default_factory=RunOptions)
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
