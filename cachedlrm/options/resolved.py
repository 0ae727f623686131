"""Options made definite: every one that decides a number has its value, whatever the defaults become."""

from dataclasses import dataclass, field  # field() takes away the default that the open option has
from typing import Literal

from cachedlrm.options.config import (
    BatchOptions,
    CacheOptions,
    ModelOptions,
    Options,
    RunOptions,
    StoreOptions,
)
from cachedlrm.options.optimisation import ResolvedOptimisation
from cachedlrm.options.types import Bytes, Depth, MlpBot, MlpTop, Positive, PositiveOrOff, Sizes, Threads


@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelOptions):
    """The model, with the sizes of its tables and layers."""

    arch_sparse_feature_size: Positive = field()
    arch_embedding_size: Sizes = field()
    arch_mlp_bot: MlpBot = field()
    arch_mlp_top: MlpTop = field()
    loss_function: Literal["mse", "bce", "wbce"] = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedBatches(BatchOptions):
    """Batches, with their sizes."""

    mini_batch_size: Positive = field()
    micro_batch_size: Positive = field()
    test_freq: PositiveOrOff = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedCache(CacheOptions):
    """The cache; at least one of its three sizes is given, none is "auto"."""

    gpu_budget: Bytes | None = None
    prefetch_depth: Depth = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedStore(StoreOptions):
    """The store, with the kind of initial weights."""

    init: Literal["counter", "reference"] = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedRun(RunOptions):
    """How to run, with the device and the number of threads."""

    device: Literal["cpu", "cuda"] = field()
    threads: Threads = field()


@dataclass(frozen=True, kw_only=True)
class Resolved(Options):
    """All options of a run, definite. What stays None means what its help says, such as ``--steps``: the epochs."""

    model: ResolvedModel = field()
    batches: ResolvedBatches = field()
    optimisation: ResolvedOptimisation = field()
    cache: ResolvedCache = field()
    store: ResolvedStore = field()
    run: ResolvedRun = field()
