"""One step of the library's modules beside the trainer's cache and FBGEMM: python benchmarks/library_step.py [STEPS]

From ids in memory to moved rows, the tables of `embedding_step.py` (Criteo-Kaggle's, 33.8 M rows, dim 16, 2,048 samples
of one id a table) with slots for 5 % of the rows, and those of the tutorial in docs/library.md (three tables, 500
samples). "trainer" is the cache as `cachedlrm.train` uses it, fed with rows; the library's modules take the same ids
as a user's batches have them, give vectors to autograd, and get gradients from it. FBGEMM's operator has every row
resident; it is loaded if it is there (see peers.py). All take the same batches in turn, step by step in an order drawn
anew for each, in one thread with nothing prepared ahead; the clock is its processor time. Medians and p10-p90 over
STEPS (default 200) steps. Writes profiles/library-step_<date>.md.
"""

import random
import sys
import time
from collections.abc import Callable

import embedding_step
import torch
from embedding_step import DIM, SAMPLES, Ours, of_fbgemm
from measuring import described, made_by, write_profile

from cachedlrm import CachedEmbeddingBagCollection, CachedEmbeddingBags, EmbeddingTable
from cachedlrm.base.kernels import table_offsets
from cachedlrm.data.batch import Batch
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource

Step = Callable[[Batch], float]
"""Trains a batch; milliseconds."""

CASES = {
    "Criteo-Kaggle": (CRITEO_KAGGLE_ROWS, 2048, 0.05, 300),
    "tutorial": ((1_000_000, 50_000, 300), 500, 0.004, 300),
}
"""Rows, samples, slots as a share of the rows, steps before the first that counts."""
RATE = 0.01


def of_trainer(rows: tuple[int, ...], optimizer: str, ratio: float, grad: torch.Tensor) -> Step:
    """The cache as the trainer uses it."""
    cache = Ours(optimizer, ratio, depth=0, row_dtype="fp32", rows=rows)

    def step(batch: Batch) -> float:
        started = time.thread_time()
        cache.feed(batch)
        cache.train(cache.prepared(), grad)
        return (time.thread_time() - started) * 1e3

    return step


def of_bags(rows: tuple[int, ...], optimizer: str, ratio: float, grad: torch.Tensor) -> Step:
    """`CachedEmbeddingBags`, ids [B, T]."""
    bags = CachedEmbeddingBags(rows, DIM, optimizer=optimizer, learning_rate=RATE, cache_ratio=ratio, seed=1)
    first_rows = torch.from_numpy(table_offsets(rows)[:-1])
    grads = grad.view(-1, len(rows), DIM)

    def step(batch: Batch) -> float:
        ids = torch.from_numpy(batch.rows).view(-1, len(rows)) - first_rows
        started = time.thread_time()
        bags(ids).backward(grads)
        bags.step()
        return (time.thread_time() - started) * 1e3

    return step


def of_collection(rows: tuple[int, ...], optimizer: str, ratio: float, grad: torch.Tensor) -> Step:
    """`CachedEmbeddingBagCollection`, values and offsets of each feature."""
    tables = [EmbeddingTable(f"t{number}", count, DIM) for number, count in enumerate(rows)]
    slots = round(sum(rows) * ratio)
    bags = CachedEmbeddingBagCollection(tables, optimizer=optimizer, learning_rate=RATE, cache_rows=slots, seed=1)
    first_rows = table_offsets(rows)[:-1]
    grads = grad.view(-1, len(rows) * DIM)
    offsets = torch.arange(len(grads) + 1)

    def step(batch: Batch) -> float:
        columns = (batch.rows.reshape(-1, len(rows)) - first_rows).T.copy()
        features = {table.name: (torch.from_numpy(ids), offsets) for table, ids in zip(tables, columns, strict=True)}
        started = time.thread_time()
        bags(features).values().backward(grads)
        bags.step()
        return (time.thread_time() - started) * 1e3

    return step


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
        everybody["FBGEMM, resident"] = lambda batch: next(iter(fbgemm(batch).values()))
    source = ZipfSource(rows, 1, 1, 1 << 40)
    times: dict[str, list[float]] = {name: [] for name in everybody}
    draw = random.Random(1)
    for number in range(warm_up + steps):
        batch = source.read(number * samples, (number + 1) * samples)
        for name in draw.sample(list(everybody), len(everybody)):
            taken = everybody[name](batch)
            if number >= warm_up:
                times[name].append(taken)
    return times


def main() -> None:
    """Measures, prints and writes the tables."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    parts = []
    for case in CASES:
        results = {}
        for optimizer in ("sgd", "adagrad"):
            results[optimizer] = measure(case, optimizer, steps)
            for name, values in results[optimizer].items():
                print(f"{case:14} {optimizer:8} {name:30} {described(values, 3)}", flush=True)
        names = list(next(iter(results.values())))
        lines = [f"**{case}**", "", f"| | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
        lines += [
            f"| {name} | {' | '.join(described(times[name], 3) for times in results.values())} |" for name in names
        ]
        parts.append("\n".join(lines))
    write_profile(
        "library-step",
        "# One step of the library's modules",
        f"{made_by(__file__)}. Dim {DIM}, one id a table, policy lrfu, one thread with nothing prepared ahead; "
        f"milliseconds of its processor time, median (p10-p90) of {steps} steps, all in turn in one process.",
        "\n\n".join(parts),
    )


if __name__ == "__main__":
    main()
