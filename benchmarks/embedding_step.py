"""One step of the embeddings alone, ours and others': python benchmarks/embedding_step.py [STEPS] [THREADS]

Criteo-Kaggle's tables (33.8 M rows), dim 16, 2,048 samples of one id a table, from ids in memory to moved rows. Ours
with slots for 1 % and 5 % of the rows and for all: "prepare" is working set, plan, eviction, write-back, fetch and
first touches, here in the thread that trains; "train" is pooling and moving the rows, all that is left to that thread
with a prefetch thread beside it. Others with every row resident: one torch.nn.EmbeddingBag over all tables with sparse
gradients, and FBGEMM's table-batched operator if it can be loaded (see peers.py). All take the same batches in turn,
one step each, so that a machine whose speed drifts treats them alike; caches are filled first, until they evict.
Medians and p10-p90 over STEPS (default 200) steps. With one thread the clock is the thread's processor time, which
neighbours on a shared machine stretch less than they stretch wall time. Writes profiles/embedding-step_<date>.md.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from measuring import described, made_by, write_profile
from peers import fbgemm_operator, table_major

from cachedlrm.cache.embedding_cache import EmbeddingCache
from cachedlrm.cache.table_group import CacheSettings, GroupSizes
from cachedlrm.data.batch import Batch, table_offsets
from cachedlrm.data.lookups import Router, TablePart
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource
from cachedlrm.store.init import CounterInit
from cachedlrm.store.records import OPTIMIZERS, RecordLayout
from cachedlrm.trainer import RowUpdate

ROWS = CRITEO_KAGGLE_ROWS
DIM, SAMPLES, RATE = 16, 2048, 0.01
RATIOS = {"1 %": 0.01, "5 %": 0.05, "all": 1.0}
CPU = torch.device("cpu")

Step = Callable[[Batch], dict[str, float]]
"""Trains a batch; milliseconds by name."""

Clock = Callable[[], float]


def ours(optimizer: str, name: str, grad: torch.Tensor, clock: Clock, evicted: dict[str, list[int]]) -> Step:
    """A cache in the training thread."""
    layout = RecordLayout(DIM, optimizer)
    slots = int(sum(ROWS) * RATIOS[name])
    router = Router(ROWS, [[TablePart(feature, rows) for feature, rows in enumerate(ROWS)]])
    sizes = GroupSizes(ROWS, slots, slots)
    init = CounterInit(1, ROWS, layout, CPU)
    cache = EmbeddingCache(router, [(sizes, layout, init)], CacheSettings(prefetch_depth=0), CPU)
    waiting: list[Batch] = []

    def stream() -> Iterator[Batch]:
        while True:
            yield waiting.pop()

    prepared = cache.prepare(stream())

    def step(batch: Batch) -> dict[str, float]:
        started = clock()
        waiting.append(batch)
        ready = next(prepared)
        resident = clock()
        records = cache.gather(ready)
        update = RowUpdate(layout, records[0], ready.tensors.lookups[0])
        update.step(grad, RATE, ready.tensors.index + 1)
        cache.scatter(ready, records)
        ended = clock()
        evicted[name].append(ready.counters.evicted_rows)
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
    grads = grad.view(SAMPLES, len(ROWS) * DIM)
    offsets = torch.arange(len(ROWS) * SAMPLES + 1)

    def step(batch: Batch) -> dict[str, float]:
        ids = table_major(batch, first_rows)  # made before the clock starts
        started = clock()
        operator(ids, offsets).backward(grads)
        return {"FBGEMM table-batched, resident": (clock() - started) * 1e3}

    return step


def measure(
    optimizer: str, source: ZipfSource, steps: int, warm_up: int, clock: Clock
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Milliseconds of each measured step, by name, and rows evicted by every step, by cache."""
    grad = torch.randn(SAMPLES * len(ROWS), DIM, generator=torch.Generator().manual_seed(1)) / SAMPLES
    evicted: dict[str, list[int]] = {name: [] for name in RATIOS}
    caches = [ours(optimizer, name, grad, clock, evicted) for name in RATIOS]
    others = [step for step in (of_torch(optimizer, grad, clock), of_fbgemm(optimizer, grad, clock)) if step]
    times: dict[str, list[float]] = {}
    for number in range(warm_up + steps):
        batch = source.read(number * SAMPLES, (number + 1) * SAMPLES)
        for step in [*caches, *(others if number >= warm_up - 20 else [])]:
            for name, milliseconds in step(batch).items():
                if number >= warm_up:
                    times.setdefault(name, []).append(milliseconds)
    return times, evicted


def main() -> None:
    """Measures, prints and writes the table."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.sparse.check_sparse_tensor_invariants.disable()
    warm_up = 900  # batches; slots for 5 % of the rows are all in use by then
    source = ZipfSource(ROWS, 1, 1, 1 << 40)
    clock = time.thread_time if threads == 1 else time.perf_counter
    results = {}
    for optimizer in OPTIMIZERS:
        results[optimizer], evicted = measure(optimizer, source, steps, warm_up, clock)
        gc.collect()
        for name, times in results[optimizer].items():
            print(f"{optimizer:10} {name:40} {described(times)}", flush=True)
    names = list(dict.fromkeys(name for times in results.values() for name in times))
    moved = ", ".join(f"{statistics.mean(rows[-steps:]):,.0f} at {name}" for name, rows in evicted.items())
    lines = [f"| | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for name in names:
        cells = [described(times[name]) if name in times else "-" for times in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_profile(
        "embedding-step",
        "# One step of the embeddings alone",
        f"{made_by(__file__)}, {threads} threads. Criteo-Kaggle's 26 tables, dim {DIM}, {SAMPLES:,} samples of one id "
        "a table, policy lrfu, nothing prepared ahead. "
        f"Milliseconds{' of processor time' if threads == 1 else ''}, median (p10-p90) of {steps} steps after "
        f"{warm_up}; all in turn in one process. Rows evicted a step: {moved}.",
        "\n".join(lines),
    )


if __name__ == "__main__":
    main()
