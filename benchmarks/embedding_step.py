"""One step of the embeddings, ours and others'.

python benchmarks/embedding_step.py [STEPS] [THREADS] [ROW_DTYPES] [SAMPLES]

Criteo-Kaggle's tables (33.8 M rows), dim 16, batches of SAMPLES (default 2,048) of one id a table, from ids in memory
to moved rows. Ours with slots for 1 % and 5 % of the rows and for all: "prepare" is working set, plan, eviction,
write-back, fetch and first touches, "train" is pooling and moving the rows. Others with every row resident: one
torch.nn.EmbeddingBag over all tables with sparse gradients, and FBGEMM's table-batched operator if it can be loaded
(see peers.py). All take the same batches in turn, so that a machine whose speed drifts treats them alike; caches are
filled first, until they evict. Medians and p10-p90 over STEPS (default 200) steps. With ROW_DTYPES, bf16 or fp16 or
both with a comma, ours has rows of these beside those of fp32, and others are left out; fp32 alone is as none. Writes
profiles/embedding-step-of-<THREADS>[-<ROW_DTYPES>][-<SAMPLES>]_<date>.md. THREADS:

1, the default: all work in one thread, nothing prepared ahead, step by step in an order drawn anew for each. The clock
    is the thread's processor time, which neighbours on a shared machine stretch less than they stretch wall time.
2: ours as in a run, where a prefetch thread prepares what another trains. Wall time of blocks of 40 steps in turn, from
    nothing prepared to all trained. Others with one thread of torch and with two.
"""

import gc
import os
import queue
import random
import statistics
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages, as in `cachedlrm.train`, for everybody's tables

import torch
from measuring import described, made_by, write_profile
from peers import fbgemm_operator, table_major

from cachedlrm.base.kernels import table_offsets
from cachedlrm.cache.embedding_cache import EmbeddingCache, PreparedBatch
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.table_group import CacheSettings, GroupSlots
from cachedlrm.data.batch import Batch
from cachedlrm.data.lookups import Router, TablePart
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource
from cachedlrm.model.row_optimizers import RowStep
from cachedlrm.store.init import CounterInit
from cachedlrm.store.records import OPTIMIZERS, ROW_DTYPES, GroupShape, RecordLayout

ROWS = CRITEO_KAGGLE_ROWS
DIM, SAMPLES, RATE = 16, 2048, 0.01
RATIOS = {"1 %": 0.01, "5 %": 0.05, "all": 1.0}
CPU = torch.device("cpu")
WARM_UP = 920  # batches of 2,048 samples; slots for 5 % of the rows are all in use by then
BLOCK = 40  # steps

Step = Callable[[Batch], dict[str, float]]
"""Trains a batch; milliseconds by name."""

Clock = Callable[[], float]


class Ours:
    """A cache, fed batch by batch.

    Args:
        optimizer: of the rows.
        ratio: slots, of the rows.
        depth: batches prepared ahead.
        row_dtype: how weights are kept.
        rows: of the tables.
    """

    def __init__(self, optimizer: str, ratio: float, depth: int, row_dtype: str, rows: tuple[int, ...] = ROWS) -> None:
        slots = int(sum(rows) * ratio)
        router = Router(rows, [[TablePart(feature, count) for feature, count in enumerate(rows)]])
        layout = RecordLayout(DIM, optimizer, row_dtype=row_dtype)
        self._cache = EmbeddingCache(
            router,
            groups=[GroupShape(rows, layout)],
            slots=[GroupSlots(slots, slots)],
            store_rows=[sum(rows)],
            inits=[CounterInit(1, rows, layout, CPU)],
            settings=CacheSettings(prefetch_depth=depth),
            device=CPU,
        )
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        prepared = self._cache.prepare(iter(self._batches.get, None))
        self._prefetcher = Prefetcher(prepared, depth, self._cache.trained, lambda index: False)
        self._prepared = iter(self._prefetcher)

    def feed(self, batch: Batch) -> None:
        """Lets a batch be prepared."""
        self._batches.put(batch)

    def prepared(self) -> PreparedBatch:
        """The next batch."""
        return next(self._prepared)

    def train(self, batch: PreparedBatch, grad: torch.Tensor) -> None:
        """Pools its rows and moves them by the gradient of the pooled vectors."""
        updates = self._cache.begin(batch)
        updates[0].step(grad, RowStep(RATE, batch.tensors.index + 1))
        self._cache.finish(batch, updates)

    def close(self) -> None:
        """Ends its thread."""
        self._batches.put(None)
        self._prefetcher.close()


def caches_of(row_dtypes: list[str]) -> dict[str, tuple[float, str]]:
    """Ratio of slots and dtype of rows of the caches to measure, by name."""
    return {
        name if dtype == "fp32" else f"{name}, {dtype}": (ratio, dtype)
        for dtype in row_dtypes
        for name, ratio in RATIOS.items()
    }


def ours(cache: Ours, name: str, grad: torch.Tensor, clock: Clock, evicted: list[int]) -> Step:
    """A cache in the training thread."""

    def step(batch: Batch) -> dict[str, float]:
        started = clock()
        cache.feed(batch)
        ready = cache.prepared()
        resident = clock()
        cache.train(ready, grad)
        ended = clock()
        evicted.append(ready.counters.evicted_rows)
        return {
            f"ours, {name}": (ended - started) * 1e3,
            f"ours, {name}: prepare": (resident - started) * 1e3,
            f"ours, {name}: train": (ended - resident) * 1e3,
        }

    return step


def of_torch(optimizer: str, grad: torch.Tensor, clock: Clock) -> Step | None:
    """One table for all, as torch has it; no row-wise Adagrad there."""
    if optimizer == "rwsadagrad":
        return None
    bags = torch.nn.EmbeddingBag(sum(ROWS), DIM, mode="sum", sparse=True, include_last_offset=True)
    optimizers = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.SparseAdam}
    moves = optimizers[optimizer](bags.parameters(), lr=RATE)

    def step(batch: Batch) -> dict[str, float]:
        started = clock()
        moves.zero_grad()
        bags(torch.from_numpy(batch.rows), torch.from_numpy(batch.offsets)).backward(grad)
        moves.step()
        return {"torch.nn.EmbeddingBag, resident": (clock() - started) * 1e3}

    return step


def of_fbgemm(optimizer: str, grad: torch.Tensor, clock: Clock) -> Step | None:
    """FBGEMM's operator, whose backward pass moves the rows; no Adam on the CPU."""
    operator = fbgemm_operator(ROWS, DIM, optimizer, RATE)
    if operator is None:
        return None
    for weights in operator.split_embedding_weights():
        weights.uniform_(-0.01, 0.01)
    first_rows = table_offsets(ROWS)[:-1]
    grads = grad.view(-1, len(ROWS) * DIM)
    offsets = torch.arange(len(grad) + 1)

    def step(batch: Batch) -> dict[str, float]:
        ids, _ = table_major(batch, first_rows)  # made before the clock starts
        started = clock()
        operator(ids, offsets).backward(grads)
        return {"FBGEMM table-batched, resident": (clock() - started) * 1e3}

    return step


def others_of(optimizer: str, row_dtypes: list[str], grad: torch.Tensor, clock: Clock) -> list[Step]:
    """Who else is measured, beside rows of 32 bits."""
    if row_dtypes != ["fp32"]:
        return []
    return [step for step in (of_torch(optimizer, grad, clock), of_fbgemm(optimizer, grad, clock)) if step]


def measure(
    optimizer: str, source: ZipfSource, samples: int, steps: int, warm_up: int, clock: Clock, row_dtypes: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Milliseconds of each measured step, by name, and rows evicted by every step, by cache."""
    grad = torch.randn(samples * len(ROWS), DIM, generator=torch.Generator().manual_seed(1)) / samples
    evicted: dict[str, list[int]] = {name: [] for name in caches_of(row_dtypes)}
    caches = [
        ours(Ours(optimizer, ratio, 0, dtype), name, grad, clock, evicted[name])
        for name, (ratio, dtype) in caches_of(row_dtypes).items()
    ]
    others = others_of(optimizer, row_dtypes, grad, clock)
    times: dict[str, list[float]] = {}
    draw = random.Random(1)
    for number in range(warm_up + steps):
        batch = source.read(number * samples, (number + 1) * samples)
        everybody = [*caches, *(others if number >= warm_up - 20 else [])]
        # Whoever runs first finds the batch in the processor's caches; others find what the one before left there.
        order = draw.sample(range(len(everybody)), len(everybody))
        taken = {place: everybody[place](batch) for place in order}
        for place in range(len(everybody) if number >= warm_up else 0):  # so that the table is in their own order
            for name, milliseconds in taken[place].items():
                times.setdefault(name, []).append(milliseconds)
    return times, evicted


def measure_blocks(
    optimizer: str, source: ZipfSource, samples: int, steps: int, warm_up: int, row_dtypes: list[str]
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Milliseconds of wall time a step, of each measured block, by name, and rows evicted by every step, by cache."""
    grad = torch.randn(samples * len(ROWS), DIM, generator=torch.Generator().manual_seed(1)) / samples
    evicted: dict[str, list[int]] = {name: [] for name in caches_of(row_dtypes)}
    caches = {name: Ours(optimizer, ratio, 2, dtype) for name, (ratio, dtype) in caches_of(row_dtypes).items()}
    clock = time.perf_counter
    others = others_of(optimizer, row_dtypes, grad, clock)
    times: dict[str, list[float]] = {}
    for first in range(0, warm_up + steps, BLOCK):
        batches = [source.read(number * samples, (number + 1) * samples) for number in range(first, first + BLOCK)]
        taken: dict[str, float] = {}
        torch.set_num_threads(1)
        for name, cache in caches.items():
            started = clock()
            for batch in batches:
                cache.feed(batch)
            for _ in batches:
                ready = cache.prepared()
                cache.train(ready, grad)
                evicted[name].append(ready.counters.evicted_rows)
            taken[f"ours, {name}"] = (clock() - started) * 1e3
        for threads in (1, 2) if first >= warm_up - BLOCK else ():
            torch.set_num_threads(threads)
            for batch in batches:
                for step in others:
                    for name, milliseconds in step(batch).items():
                        key = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
                        taken[key] = taken.get(key, 0.0) + milliseconds
        if first >= warm_up:
            for name, milliseconds in taken.items():
                times.setdefault(name, []).append(milliseconds / BLOCK)
    for cache in caches.values():
        cache.close()
    return times, evicted


def main() -> None:
    """Measures, prints and writes the table."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    row_dtypes = list(dict.fromkeys(["fp32", *(sys.argv[3].split(",") if len(sys.argv) > 3 else [])]))
    samples = int(sys.argv[4]) if len(sys.argv) > 4 else SAMPLES
    warm_up = -(-WARM_UP * SAMPLES // samples)
    if threads not in (1, 2) or not set(row_dtypes) <= set(ROW_DTYPES):
        sys.exit(f"THREADS is 1 or 2, ROW_DTYPES are of {', '.join(ROW_DTYPES)}")
    if threads == 2:
        steps = -(-steps // BLOCK) * BLOCK
    torch.set_num_threads(1)
    torch.sparse.check_sparse_tensor_invariants.disable()
    source = ZipfSource(ROWS, 1, 1, 1 << 40)
    results = {}
    for optimizer in OPTIMIZERS:
        if threads == 1:
            results[optimizer], evicted = measure(
                optimizer, source, samples, steps, warm_up, time.thread_time, row_dtypes
            )
        else:
            results[optimizer], evicted = measure_blocks(optimizer, source, samples, steps, warm_up, row_dtypes)
        gc.collect()
        for name, times in results[optimizer].items():
            print(f"{optimizer:10} {name:45} {described(times)}", flush=True)
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    moved = ", ".join(f"{statistics.mean(rows[-steps:]):,.0f} at {name}" for name, rows in evicted.items())
    how = (
        f"One thread, nothing prepared ahead; milliseconds of its processor time, median (p10-p90) of {steps} steps"
        if threads == 1
        else "Ours beside a prefetch thread; milliseconds of wall time a step, median (p10-p90) of "
        f"{steps // BLOCK} blocks of {BLOCK} steps"
    )
    head = [f"| | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    lines = [*head]
    for name in names:
        cells = [described(times[name]) if name in times else "-" for times in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_profile(
        "-".join([f"embedding-step-of-{threads}", *row_dtypes[1:], *sys.argv[4:]]),
        "# One step of the embeddings alone",
        f"{made_by(__file__)}. Criteo-Kaggle's 26 tables, dim {DIM}, {samples:,} samples of one id a table, policy "
        f"lrfu. {how}, all in turn in one process after {warm_up} steps. Rows evicted a step: {moved}.",
        "\n".join(lines),
        *of_fp32(results, head, row_dtypes[1:]),
    )


def of_fp32(results: dict[str, dict[str, list[float]]], head: list[str], row_dtypes: list[str]) -> list[str]:
    """A paragraph and a table of the time with rows of each dtype as a share of that of fp32, batch by batch."""
    lines = [*head]
    for name in (f"ours, {ratio}, {dtype}" for dtype in row_dtypes for ratio in RATIOS):
        base = name.rpartition(", ")[0]
        pairs = [zip(times[name], times[base], strict=True) for times in results.values()]
        cells = [described([one / other for one, other in pair], 3) for pair in pairs]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return ["Of the time with rows of 32 bits, batch by batch:", "\n".join(lines)] if row_dtypes else []


if __name__ == "__main__":
    main()
