"""One step of the library's modules beside the trainer's cache and FBGEMM: python benchmarks/library_step.py [STEPS]

From ids in memory to moved rows, the tables of `embedding_step.py` (Criteo-Kaggle's, 33.8 M rows, dim 16, 2,048 samples
of one id a table) with slots for 5 % of the rows, and those of the tutorial in docs/library.md (three tables, 500
samples). Everybody has the same batches in turn, step by step in an order drawn anew for each, in one thread with
nothing prepared ahead; the clock is its processor time. Medians and p10-p90 over STEPS (default 200) steps, and the
median as a multiple of the trainer's. Writes profiles/library-step_<date>.md.

trainer: the cache as `cachedlrm.train` uses it. Ids, local to their tables, are checked and made rows (`make_batch`,
    which all sources of data call), prepared, pooled and moved by a gradient that is there.
trainer, from rows: the same without `make_batch`.
CachedEmbeddingBags: the same ids as a tensor [B, T]. ``forward``, what ``backward`` does from the gradient of its
    result on until the module's own vectors have theirs, and ``step``. The rest of ``backward``, autograd's start and
    end around a model's layers, is the model's; two hooks say when the clock runs.
CachedEmbeddingBagCollection: the same, ids a dictionary of values and offsets of each feature.
…, all of backward: with a whole call of ``backward`` on the result alone, which a model calls for its layers anyhow.
FBGEMM, resident: its operator with every row resident, whose ``backward`` moves the rows, all of it; measured if it can
    be loaded (see peers.py).
"""

import random
import statistics
import sys
import time
from collections.abc import Callable

import embedding_step
import torch
from embedding_step import DIM, SAMPLES, Ours, of_fbgemm
from measuring import described, made_by, write_profile

from cachedlrm import CachedEmbeddingBagCollection, CachedEmbeddingBags, EmbeddingTable
from cachedlrm.base.kernels import table_offsets
from cachedlrm.data.batch import Batch, make_batch
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource

Step = Callable[[Batch], dict[str, float]]
"""Trains a batch; milliseconds by name."""

CASES = {
    "Criteo-Kaggle": (CRITEO_KAGGLE_ROWS, 2048, 0.05, 300),
    "tutorial": ((1_000_000, 50_000, 300), 500, 0.004, 300),
}
"""Rows, samples, slots as a share of the rows, steps before the first that counts."""
RATE = 0.01


def of_trainer(rows: tuple[int, ...], optimizer: str, ratio: float, grad: torch.Tensor) -> Step:
    """The cache as the trainer uses it."""
    cache = Ours(optimizer, ratio, depth=0, row_dtype="fp32", rows=rows)
    first_rows = table_offsets(rows)[:-1]

    def step(batch: Batch) -> dict[str, float]:
        ids = (batch.rows.reshape(-1, len(rows)) - first_rows).reshape(-1)
        started = time.thread_time()
        of_ids = make_batch(batch.dense, ids, batch.offsets, batch.labels, rows, where="", first_sample=0)
        from_rows = time.thread_time()
        cache.feed(of_ids)
        cache.train(cache.prepared(), grad)
        ended = time.thread_time()
        return {"trainer": (ended - started) * 1e3, "trainer, from rows": (ended - from_rows) * 1e3}

    return step


def of_bags(rows: tuple[int, ...], optimizer: str, ratio: float, grad: torch.Tensor) -> Step:
    """`CachedEmbeddingBags`, ids [B, T]."""
    bags = CachedEmbeddingBags(rows, DIM, optimizer=optimizer, learning_rate=RATE, cache_ratio=ratio, seed=1)
    first_rows = torch.from_numpy(table_offsets(rows)[:-1])
    grads = grad.view(-1, len(rows), DIM)

    def step(batch: Batch) -> dict[str, float]:
        ids = torch.from_numpy(batch.rows).view(-1, len(rows)) - first_rows
        return timed("CachedEmbeddingBags", bags, lambda: bags(ids), grads)

    return step


def of_collection(rows: tuple[int, ...], optimizer: str, ratio: float, grad: torch.Tensor) -> Step:
    """`CachedEmbeddingBagCollection`, values and offsets of each feature."""
    tables = [EmbeddingTable(f"t{number}", count, DIM) for number, count in enumerate(rows)]
    slots = round(sum(rows) * ratio)
    bags = CachedEmbeddingBagCollection(tables, optimizer=optimizer, learning_rate=RATE, cache_rows=slots, seed=1)
    first_rows = table_offsets(rows)[:-1]
    grads = grad.view(-1, len(rows) * DIM)
    offsets = torch.arange(len(grads) + 1)

    def step(batch: Batch) -> dict[str, float]:
        columns = (batch.rows.reshape(-1, len(rows)) - first_rows).T.copy()
        features = {table.name: (torch.from_numpy(ids), offsets) for table, ids in zip(tables, columns, strict=True)}
        return timed("CachedEmbeddingBagCollection", bags, lambda: bags(features).values(), grads)

    return step


def timed(
    name: str,
    module: CachedEmbeddingBags | CachedEmbeddingBagCollection,
    forward: Callable[[], torch.Tensor],
    grads: torch.Tensor,
) -> dict[str, float]:
    """Milliseconds of a step of the library, without and with the part of ``backward`` that is a model's."""
    come: list[float] = []  # when the gradient of the result was there, and when that of the module's vectors
    started = time.thread_time()
    pooled = forward()
    looked_up = time.thread_time()
    (leaf,) = module.leaves()
    for register in (pooled.register_hook, leaf.register_post_accumulate_grad_hook):
        register(lambda _: come.append(time.thread_time()))
    going_back = time.thread_time()
    pooled.backward(grads)
    del pooled, leaf
    gone_back = time.thread_time()
    module.step()
    ended = time.thread_time()
    around = looked_up - started + ended - gone_back
    return {
        name: (around + come[1] - come[0]) * 1e3,
        f"{name}, all of backward": (around + gone_back - going_back) * 1e3,
    }


def measure(case: str, optimizer: str, steps: int) -> dict[str, list[float]]:
    """Milliseconds of each measured step, by name."""
    rows, samples, ratio, warm_up = CASES[case]
    grad = torch.randn(samples * len(rows), DIM, generator=torch.Generator().manual_seed(1)) / samples
    everybody: dict[str, Step] = {
        "trainer": of_trainer(rows, optimizer, ratio, grad),
        "CachedEmbeddingBags": of_bags(rows, optimizer, ratio, grad),
        "CachedEmbeddingBagCollection": of_collection(rows, optimizer, ratio, grad),
    }
    fbgemm = (
        of_fbgemm(optimizer, grad, time.thread_time) if rows == embedding_step.ROWS and samples == SAMPLES else None
    )
    if fbgemm is not None:
        everybody["FBGEMM"] = lambda batch: {"FBGEMM, resident": next(iter(fbgemm(batch).values()))}
    source = ZipfSource(rows, 1, 1, 1 << 40)
    times: dict[str, list[float]] = {}
    draw = random.Random(1)
    for number in range(warm_up + steps):
        batch = source.read(number * samples, (number + 1) * samples)
        taken = {name: everybody[name](batch) for name in draw.sample(list(everybody), len(everybody))}
        for of_step in (taken[name] for name in everybody if number >= warm_up):  # so that the table is in their order
            for name, milliseconds in of_step.items():
                times.setdefault(name, []).append(milliseconds)
    return times


def compared(times: dict[str, list[float]], name: str) -> str:
    """Milliseconds of ``name``, and of the trainer's how many times as many."""
    return f"{described(times[name], 3)}, {statistics.median(times[name]) / statistics.median(times['trainer']):.2f}"


def main() -> None:
    """Measures, prints and writes the tables."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    parts = []
    for case in CASES:
        results = {}
        for optimizer in ("sgd", "adagrad"):
            results[optimizer] = measure(case, optimizer, steps)
            for name in results[optimizer]:
                print(f"{case:14} {optimizer:8} {name:45} {compared(results[optimizer], name)}", flush=True)
        names = list(next(iter(results.values())))
        lines = [f"**{case}**", "", f"| | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
        lines += [f"| {name} | {' | '.join(compared(times, name) for times in results.values())} |" for name in names]
        parts.append("\n".join(lines))
    write_profile(
        "library-step",
        "# One step of the library's modules",
        f"{made_by(__file__)}. Dim {DIM}, one id a table, policy lrfu, one thread with nothing prepared ahead; "
        f"milliseconds of its processor time, median (p10-p90) of {steps} steps, all in turn in one process, and the "
        "median as a multiple of the trainer's. What each row is, the program says at its top.",
        "\n\n".join(parts),
    )


if __name__ == "__main__":
    main()
