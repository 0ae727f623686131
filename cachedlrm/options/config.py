"""The options of a run: the fields of the dataclasses below, with their docstrings as help.

Options whose type is `MayChange` may be given anew on ``--resume``; all others decide the numbers of a run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from cachedlrm.options.evaluation import EvaluationOptions
from cachedlrm.options.optimisation import OptimisationOptions
from cachedlrm.options.types import (
    AbsolutePath,
    Budget,
    Bytes,
    Count,
    Depth,
    EmbeddingBits,
    Flag,
    Frequency,
    Lookups,
    MayChange,
    MlpBits,
    MlpBot,
    MlpTop,
    Names,
    Number,
    PerSecond,
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
    """The model, in facebookresearch/dlrm's options; those left open follow the data."""

    arch_sparse_feature_size: Positive | None = None
    """Embedding dimension: numbers in a row. Default: what --arch-mlp-bot ends in, else 16; 2 for reference data."""
    arch_embedding_size: Sizes | None = None
    """Rows of each table, joined by dashes. Default: the data's; for zipf those of Criteo-Kaggle's 26 tables."""
    arch_mlp_bot: MlpBot | None = None
    """Layer sizes of the bottom MLP, from the number of dense features to the embedding dimension. Default:
    N-512-256-64-16 for N dense features, 0-16 for none (one learned vector for all samples); N-3-2 for reference
    data."""
    arch_mlp_top: MlpTop | None = None
    """Layer sizes of the top MLP after the interaction, down to 1; its input size is derived. Default: 512-256-1;
    4-2-1 for reference data."""
    arch_interaction_op: Literal["dot", "cat", "dcn", "projection"] = "dot"
    """How the bottom MLP's output and the pooled embeddings interact: dot (products of all pairs), cat (side by side),
    dcn (side by side through low-rank cross layers) or projection (the products of what two MLPs make of them)."""
    arch_interaction_itself: Flag = False
    """Include each vector's product with itself in the dot interaction."""
    dcn_num_layers: Positive | None = None
    """Cross layers of the dcn interaction. Default: 3."""
    dcn_low_rank_dim: Positive | None = None
    """Rank of the matrices of a cross layer. Default: a quarter of the numbers side by side, at most 512."""
    interaction_branch1_layer_sizes: Sizes | None = None
    """Layer sizes of the first MLP of the projection interaction, down to a multiple of what --arch-mlp-bot ends in;
    its input size is derived."""
    interaction_branch2_layer_sizes: Sizes | None = None
    """Those of the second MLP."""
    pooling: Literal["sum", "mean"] = "sum"
    """How the rows of a bag become one vector: their sum or their mean; that of an empty bag is 0."""
    weighted_pooling: Literal["fixed", "learned"] | None = None
    """Weight of each row when its bag is summed: fixed (all 1, which changes no number) or learned (from 1 on).
    Default: no weights."""
    activation_function: Literal["relu", "gelu", "silu", "tanh", "sigmoid"] = "relu"
    """Activation between the layers of both MLPs (facebookresearch/dlrm has relu alone)."""
    loss_function: Literal["mse", "bce", "wbce"] | None = None
    """Loss, averaged over the batch; wbce weights samples by label. Default: bce; mse for reference data."""
    loss_weights: Weights = (1.0, 1.0)
    """Weights of samples with label 0, 1, ... for --loss-function wbce."""
    loss_threshold: Threshold = 0.0
    """Keep predictions between this and one minus this; 0: as they are."""
    round_targets: Switch = False
    """Round labels to 0 or 1."""
    qr_flag: Flag = False
    """Quotient-remainder trick: two small tables in place of each large one."""
    qr_threshold: Count = 200
    """Split tables with more rows than this."""
    qr_operation: Literal["mult", "add", "concat"] = "mult"
    """How the vectors of the two tables combine; concat needs a bottom MLP that ends in twice the embedding
    dimension."""
    qr_collisions: Positive = 4
    """Rows of the remainder table, and so the number of ids that share a row of the quotient table."""
    md_flag: Flag = False
    """Mixed dimensions: narrower rows and a projection for larger tables."""
    md_threshold: Count = 200
    """Give tables with more rows than this a dimension of their own."""
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
    """Samples, steps and epochs, in facebookresearch/dlrm's options, for every source of data."""

    mini_batch_size: Positive | None = None
    """Samples of a step. Default: 2048; 1024 for flights, 1 for reference data."""
    micro_batch_size: Positive | None = None
    """The most samples that go through the layers at a time; the gradients of a mini-batch's passes are added up.
    Fewer take less memory on the device. Default: the mini-batch."""
    num_batches: Count = 0
    """The most steps of an epoch; 0: all."""
    nepochs: MayChange[Count] = 1
    """Passes over the data."""
    numpy_rand_seed: Count = 123
    """Seed of everything random: initial parameters and generated data."""
    max_ind_range: PositiveOrOff = -1
    """Fold ids: take each modulo this, in every table; -1: as they are."""
    test_freq: MayChange[Frequency | None] = None
    """Steps between evaluations, and one more at the end; epoch: at the end of each epoch; -1: never. Default: ten
    evaluations a run; -1 for reference data and for data without held-out samples."""
    test_mini_batch_size: MayChange[PositiveOrOff] = -1
    """Samples of an evaluation step; -1: as many as go through the layers at a time in training."""
    print_freq: MayChange[Positive] = 50
    """Steps between lines of metrics; 1 also writes every loss to report.json."""


@option_group("Data", 4)
@dataclass(frozen=True)
class DataOptions:
    """Where samples come from."""

    data: str = "zipf"
    """zipf (generated, Criteo-Kaggle-shaped; zipf:samples=N,hot=H for bags of 0 to H ids, hot=3-2-1 for bags of so many
    in each table), flights (real records, optional package), npy:DIR (*_dense.npy, *_sparse.npy, *_labels.npy,
    memory-mapped; with bags of several ids *_sparse_values.npy and *_sparse_offsets.npy, or *_sparse_multi_hot.npz;
    prepared data has its held-out part there, npy:DIR:test=day_23 holds out the samples of that prefix, and
    npy:DIR:only=train reads those of that prefix alone), criteo:PATH (raw files, for a first look), parquet:PATH or
    parquet:PATH:label=L:dense=A,B:sparse=C,D (a file or folder; ids as they are; the types of columns decide where they
    are not named), or reference (facebookresearch/dlrm's generators: its numbers from its seed, and its defaults).
    torchrec stands before a command line of its torchrec_dlrm/dlrm_main.py."""
    test_data: MayChange[str | None] = None
    """Held-out samples, spelled like --data. Default: the data's own, where it has some."""
    shuffle: Flag = False
    """Train each epoch in an order of its own, a function of --numpy-rand-seed and the epoch, with every sample once.
    Samples that lie together are read together and mixed with others in memory (256 MiB of them)."""


@option_group("Reference data", 5)
@dataclass(frozen=True)
class ReferenceOptions:
    """Options of facebookresearch/dlrm's generators, for --data reference only."""

    data_generation: Literal["random", "synthetic"] | None = None
    """random, or synthetic: ids by LRU stack distances from trace files. Default: random."""
    data_size: Positive | None = None
    """Samples of an epoch, unless --num-batches is given. Default: 1."""
    num_indices_per_lookup: Lookups | None = None
    """The most ids in a bag. Default: 10."""
    num_indices_per_lookup_fixed: Switch | None = None
    """Draw --num-indices-per-lookup ids for every bag (equal ones count once). Default: False."""
    rand_data_dist: Literal["uniform", "gaussian"] | None = None
    """Distribution of ids. Default: uniform."""
    rand_data_min: Number | None = None
    """Smallest id of the gaussian. Default: 0."""
    rand_data_max: Number | None = None
    """Largest id of the gaussian. Default: 1."""
    rand_data_mu: Number | None = None
    """Mean of the gaussian; -1: halfway between smallest and largest id. Default: -1."""
    rand_data_sigma: Rate | None = None
    """Standard deviation of the gaussian. Default: 1."""
    data_trace_file: str | None = None
    """Trace file of each table; every letter j in it becomes the table's number. Default: ./input/dist_emb_j.log."""
    data_trace_enable_padding: Switch | None = None
    """Draw no new ids once all have been drawn. Default: False."""


@option_group("Cache", 7)
@dataclass(frozen=True)
class CacheOptions:
    """Rows on the device, and which leave it."""

    gpu_cache_ratio: MayChange[Ratio | None] = None
    """Rows kept on the device, as a share of all rows. Default: 1, unless --gpu-cache-rows or --gpu-budget is given."""
    gpu_cache_rows: MayChange[Positive | None] = None
    """Rows kept on the device, in place of --gpu-cache-ratio."""
    gpu_budget: MayChange[Budget | None] = None
    """The most bytes to use on the device (2GiB), for everything; alone, it decides how many rows are kept. auto:
    what a device profile leaves, or nine tenths of what is free on the GPU; implies --predict. Default: what is
    free."""
    policy: MayChange[Literal["lru", "lfu", "lrfu", "static", "lookahead", "oracle"]] = "lrfu"
    """Which rows to evict. static, lookahead and oracle read all ids once before training; prepared data has counts
    that spare static and lookahead this. lookahead knows --lookahead batches ahead, and how many lookups of each row
    are left after them. oracle moves as few rows as possible, for comparison, and keeps 4 bytes on disk for each row
    of each batch."""
    lookahead: MayChange[Positive] = 200
    """Batches that --policy lookahead knows ahead; each waits in host memory (about 2 MB at 2,048 samples)."""
    count_rows: MayChange[Flag] = True
    """For --policy lookahead: read all ids once before training, to know how many lookups of each row are left;
    prepared data has the counts. --count-rows=False: start at once, and move a few percent more rows."""
    prefetch_depth: MayChange[Depth | None] = None
    """Batches prepared before they are needed; 0: each when it is needed, in the training thread. Preparing runs
    ahead only while the slots hold one working set more than that. Default: 2; 0 on the CPU where steps are small."""
    report_min: MayChange[Flag] = False
    """Count how few rows any policy could have moved (Belady's MIN) and report it; always with --policy oracle."""
    predict: MayChange[Flag] = False
    """Before training, predict hits, rows moved and the highest speed from the ids of the first batches, and report
    them beside what was measured."""


@option_group("Store", 8)
@dataclass(frozen=True)
class StoreOptions:
    """Rows that the device does not hold."""

    store: MayChange[Literal["host", "lmdb"]] = "host"
    """Where rows are that the device does not hold. host: in memory. lmdb: as many in memory as --host-budget holds,
    the others on disk."""
    store_path: MayChange[Path | None] = None
    """Folder of the rows on disk, with --store lmdb or --checkpoint-every. Default: store in the run directory."""
    host_budget: MayChange[Bytes | None] = None
    """The most bytes of rows in memory (16GiB). Default: what is free; half of it with --store lmdb."""
    init: Literal["counter", "reference"] | None = None
    """Initial weights. counter: a pure function of seed and row. reference: facebookresearch/dlrm's numbers, drawn
    with whole tables in memory. Default: counter; reference for reference data."""


@option_group("Run", 9)
@dataclass(frozen=True)
class RunOptions:
    """How a run goes, and what it writes."""

    device: MayChange[Literal["auto", "cpu", "cuda"]] = "auto"
    """Device to train on. auto: cuda if there is one, else cpu; see --device-type."""
    steps: MayChange[Count | None] = None
    """Steps to train; epochs repeat or end early to match. 0: build, initialise, report, stop. Default: --nepochs
    epochs."""
    run_dir: MayChange[Path | None] = None
    """Directory for config.toml, metrics.jsonl, the reports and the final state. Default: runs/DATE-TIME."""
    checkpoint_every: MayChange[Positive | None] = None
    """Steps between checkpoints, from which --resume goes on; there is one more at the end and at an interrupt.
    Default: none; one at the end with --store lmdb."""
    resume: MayChange[Path | None] = None
    """Go on with the run in this directory from its last checkpoint, with the options it was started with. Those
    that decide its numbers cannot change; those of cache, run and hardware, and of store but for --init, can."""
    start_from: AbsolutePath | None = None
    """Go on from a finished run, on other data: take the rows, optimizer state and layers that it left. Its tables may
    have grown, table by table; options of model and optimizer that are not given are that run's."""
    ui: MayChange[Literal["auto", "live", "plain", "off"]] = "auto"
    """What the terminal shows. auto: live on a terminal, plain lines elsewhere."""
    save_predictions: MayChange[Flag] = False
    """Write the last evaluation's predictions to predictions.npy."""
    threads: MayChange[Threads | None] = None
    """Threads of torch's operators. Default: the processors this process may use; 1 where steps are small."""
    debug_mode: MayChange[Flag] = False
    """Print the architecture before training: layers, interaction and tables, with their shapes and parameters."""
    tensorboard: MayChange[Flag] = False
    """Write the numbers of metrics.jsonl for TensorBoard too, into tensorboard in the run directory."""
    profile_trace: MayChange[TracedSteps] = 0
    """Steps to trace with torch's profiler, with every phase as a range: trace.json in the run directory, for
    https://ui.perfetto.dev. Tracing slows them; it begins after 5 % of the steps, but after 100 at the latest. 0:
    none; at most 1000."""
    deterministic: MayChange[Flag] = False
    """Use deterministic operators only, and fail where there is none (matters on CUDA)."""
    profile: MayChange[Names] = ()
    """Values from a TOML file, or from a packaged one by name: of a workload (criteo-kaggle) or a device
    (rtx3050-4gb). May be given more than once; a later one overrides an earlier one, the command line all of them."""


@option_group("Hardware", 10)
@dataclass(frozen=True)
class HardwareOptions:
    """The machine to train on, for --gpu-budget auto and for predictions; device profiles describe it."""

    device_type: MayChange[Literal["cpu", "cuda"] | None] = None
    """What kind of device is described. With --device auto a plan is for a device of this kind, wherever it is made; a
    run takes the CPU if that is described. Default: that of this machine."""
    device_memory: MayChange[Bytes | None] = None
    """Bytes of the device's memory (4GiB)."""
    device_reserved: MayChange[Bytes | None] = None
    """Bytes of --device-memory that driver, display and libraries keep. Default: none."""
    device_bandwidth: MayChange[Bytes | None] = None
    """Bytes a second between the device and its memory (192GB)."""
    device_flops: MayChange[PerSecond | None] = None
    """Floating-point operations a second of the device, in 32 bits (7e12)."""
    link_bandwidth: MayChange[Bytes | None] = None
    """Bytes a second between host and device, one way (15.75GB)."""
    host_lookup_rate: MayChange[PerSecond | None] = None
    """Lookups a second that one thread of the host prepares: finds, plans and has moved (4e7)."""


@option_group("Inference", 11)
@dataclass(frozen=True)
class InferenceOptions:
    """Models in files and serving them, in facebookresearch/dlrm's options."""

    load_model: Path | None = None
    """Start from the parameters in this model file (facebookresearch/dlrm's format) instead of --init's: a warm
    start, which trains from the first sample on. Optimizer state in the file is used if it is --optimizer's."""
    save_model: MayChange[Path | None] = None
    """Write the parameters after the last step to this file, in facebookresearch/dlrm's format."""
    inference_only: MayChange[Flag] = False
    """Train nothing: evaluate on the held-out samples. Rows are read where they are, so the cache is not used."""
    quantize_mlp_with_bit: MayChange[MlpBits] = 32
    """Bits of the weights of both MLPs, with --inference-only: 8 (integers), 16 (floats) or 32 (as they are)."""
    quantize_emb_with_bit: MayChange[EmbeddingBits] = 32
    """Bits of the numbers in tables, with --inference-only: 4 or 8 (integers, with a scale for each row) or 32 (as
    they are)."""
    save_onnx: MayChange[Flag] = False
    """Write the model to model.onnx in the run directory (needs the optional package onnx)."""


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """All options of a run as the user gave them. None: left open, to be decided by the data."""

    model: ModelOptions = field(default_factory=ModelOptions)
    batches: BatchOptions = field(default_factory=BatchOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    data: DataOptions = field(default_factory=DataOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    store: StoreOptions = field(default_factory=StoreOptions)
    run: RunOptions = field(default_factory=RunOptions)
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
