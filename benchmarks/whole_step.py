"""The whole training step of a DLRM, ours and others': python benchmarks/whole_step.py [ROUNDS] [WARM_UP_BLOCKS]

Criteo-Kaggle's tables (33.8 M rows), dim 16, 13-512-256-64-16 and 512-256-1, 2,048 samples of one id a table. Ours as a
user runs it (options, job, prefetch thread, threads and bookkeeping of `cachedlrm.train`) with slots for 1 % and 5 % of
the rows and for all. With every row resident: FBGEMM's table-batched operator (see peers.py) before layers of torch.nn
with autograd and torch.optim, and before our dense pass and optimizer, so that only the embeddings differ; and
torch.nn.EmbeddingBag. All begin with the same parameters and train the same batches in turn, in blocks of 20 steps.
Batches are read before the clock starts, and for others made into tensors. Nothing is prepared ahead of a block, so in
its first step ours waits.

Caches are filled first, until those of 1 % and 5 % evict, by batches whose rows come and go untrained; the first round
does not count. Writes profiles/whole-step-<OMP_WAIT_POLICY>_<date>.md: medians and p10-p90 over ROUNDS (default 30)
blocks. Takes 8 GiB.
"""

import gc
import itertools
import os
import queue
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

# As cachedlrm.train has them, for all. Waiting threads that spin make steps faster on a quiet machine: measure with
# OMP_WAIT_POLICY=ACTIVE, too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
from measuring import Neighbours, described, made_by, write_profile
from other_trainers import FBGEMM, FBGEMM_AND_OURS, Block, Training, others

from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.data.batch import Batch
from cachedlrm.data.open import open_dataset
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.run.job import build_job
from cachedlrm.run.progress import Progress

BLOCK = 20  # steps
SAMPLES = 2048
OPTIMIZERS = ("sgd", "rwsadagrad")
RATIOS = {"ours, 1 %": 0.01, "ours, 5 %": 0.05, "ours, all resident": 1.0}
BASES = (FBGEMM, FBGEMM_AND_OURS, "ours, all resident")


class Ours:
    """A run of the program, block by block."""

    def __init__(self, optimizer: str, ratio: float, steps: int) -> None:
        options = parse_command_line(
            [
                f"--data=zipf:samples={steps * SAMPLES}", f"--optimizer={optimizer}", f"--gpu-cache-ratio={ratio}",
                f"--mini-batch-size={SAMPLES}", f"--steps={steps}", f"--print-freq={BLOCK}", "--test-freq=-1",
            ]
        )  # fmt: skip
        dataset = open_dataset(options.data.data, None, data_request(options))
        self.job = build_job(resolve(options, dataset), dataset, Path())
        self._trainer = self.job.trainer
        self._progress = Progress(self.job)
        cache, depth = self._trainer.cache, self.job.options.cache.prefetch_depth
        assert depth is not None
        self._waiting: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        prepared = cache.prepare(iter(self._waiting.get, None))
        self._prefetcher = Prefetcher(prepared, depth, cache.trained, lambda index: (index + 1) % BLOCK == 0)
        self._batches = iter(self._prefetcher)

    def _next(self, batches: list[Batch]) -> Iterator[PreparedBatch]:
        for batch in batches:
            self._waiting.put(batch)
        return itertools.islice(self._batches, len(batches))

    def fill(self, batches: list[Batch]) -> None:
        """Brings the rows of a block into the cache and trains nothing."""
        cache = self._trainer.cache
        for batch in self._next(batches):
            cache.finish(batch, cache.begin(batch))

    def train(self, batches: list[Batch]) -> Block:
        """Trains a block as `cachedlrm.train` does, a snapshot of its metrics at the end included."""
        ready, progress, first_wait = self._next(batches), self._progress, None
        started = time.perf_counter()
        progress.waits()
        for batch in ready:
            if first_wait is None:
                first_wait = (time.perf_counter() - started) * 1e3
            progress.received(batch)
            progress.trained(batch, self._trainer.step(batch))
            progress.waits()
        snapshot = progress.snapshot()
        ended = time.perf_counter()
        wait, rest = snapshot.phase_ms["wait"], max(1, len(batches) - 1)
        assert first_wait is not None
        return Block(
            step_ms=(ended - started) * 1e3 / len(batches),
            loss=snapshot.loss,
            wait_ms=wait,
            steady_wait_ms=max(0.0, wait * len(batches) - first_wait) / rest,
            evicted_rows=snapshot.recent.evicted_rows / len(batches),
        )

    def close(self) -> None:
        """Ends the prefetch thread."""
        self._waiting.put(None)
        self._prefetcher.close()
        self.job.close()


def measure(optimizer: str, rounds: int, warm_up: int) -> tuple[dict[str, list[Block]], str]:
    """Measured blocks, by name, round by round; and what else was seen of them."""
    steps = (warm_up + 1 + rounds) * BLOCK
    with ExitStack() as closes:
        ours = {name: closes.enter_context(closing(Ours(optimizer, ratio, steps))) for name, ratio in RATIOS.items()}
        job = ours["ours, all resident"].job
        trainings: dict[str, Training] = {**ours, **others(job)}
        source = job.dataset.train
        blocks: dict[str, list[Block]] = {name: [] for name in trainings}
        gc.collect()
        gc.freeze()  # as cachedlrm.train does
        order = list(trainings)
        for block in range(steps // BLOCK):
            starts = range(block * BLOCK * SAMPLES, (block + 1) * BLOCK * SAMPLES, SAMPLES)
            batches = [source.read(start, start + SAMPLES) for start in starts]
            if block < warm_up:
                for each in ours.values():
                    each.fill(batches)
                continue
            order.append(order.pop(0))  # so that nobody always follows the same one
            for name in order:
                blocks[name].append(trainings[name].train(batches))
            if block == warm_up:
                neighbours = Neighbours()
            shown = ", ".join(f"{name} {each[-1].step_ms:.1f}" for name, each in blocks.items())
            print(f"{optimizer}, round {block - warm_up} of {rounds}, ms a step: {shown}", flush=True)
        busy = neighbours.processors()
    difference = loss_difference(blocks)
    assert optimizer != "sgd" or difference < 1e-5, "others train another model"
    seen = (
        f"Losses of blocks differ from ours by at most {difference:.1e} of them. Other processes used "
        f"{busy:.2f} processors meanwhile."
    )
    if FBGEMM not in blocks:
        seen += " FBGEMM could not be loaded."
    return {name: each[1:] for name, each in blocks.items()}, seen


def loss_difference(blocks: dict[str, list[Block]]) -> float:
    """The largest relative difference of a block's loss from ours; ours are the same bits in all caches."""
    losses = {name: np.array([block.loss for block in each]) for name, each in blocks.items()}
    resident = losses["ours, all resident"]
    for name in RATIOS:
        assert (losses[name] == resident).all(), f"{name} lost a bit"
    return max(float(np.abs(each / resident - 1).max()) for each in losses.values())


def table(blocks: dict[str, list[Block]]) -> str:
    """One line for each; ratios are taken round by round."""
    bases = [base for base in BASES if base in blocks]
    lines = [
        f"| | ms a step | {' | '.join(f'of {base}' for base in bases)} | wait ms | after the first step | its share | "
        "rows evicted a step |",
        f"|---|{'---:|' * (len(bases) + 5)}",
    ]
    for name, each in blocks.items():
        cells = [described([block.step_ms for block in each])]
        for base in bases:
            ratios = [one.step_ms / other.step_ms for one, other in zip(each, blocks[base], strict=True)]
            cells.append("1" if name == base else described(ratios, 3))
        if name in RATIOS:
            cells += [described([getattr(block, wait) for block in each]) for wait in ("wait_ms", "steady_wait_ms")]
            share = statistics.median(block.steady_wait_ms / block.step_ms for block in each)
            cells += [f"{share:.2%}", f"{statistics.mean(block.evicted_rows for block in each):,.0f}"]
        else:
            cells += ["-"] * 4
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes the tables."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    warm_up = int(sys.argv[2]) if len(sys.argv) > 2 else 45
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch.nn's optimizer builds valid ones; else it warns
    made, parts = made_by(__file__), []
    for optimizer in OPTIMIZERS:
        blocks, seen = measure(optimizer, rounds, warm_up)
        gc.unfreeze()
        gc.collect()  # gigabytes of tables
        parts += [f"## {optimizer}", table(blocks), seen]
    policy = os.environ["OMP_WAIT_POLICY"]
    write_profile(
        f"whole-step-{policy.lower()}",
        "# The whole training step",
        f"{made}, {torch.get_num_threads()} threads, OMP_WAIT_POLICY={policy}. "
        "Criteo-Kaggle's 26 tables, dim 16, 13-512-256-64-16 and "
        f"512-256-1, {SAMPLES:,} samples of one id a table, policy lrfu, prefetch depth 2. Wall time, median (p10-p90) "
        f"of {rounds} blocks of {BLOCK} steps after {warm_up * BLOCK:,} batches that filled the caches and {BLOCK} "
        "steps that do not count; all in turn in one process, ratios round by round. Losses of ours were equal to the "
        "last bit. Nothing is prepared ahead of a block, so ours waits in its first step: waiting is given with that "
        "step, then without it and as a share of the step's time. Others have their ids as tensors before the clock "
        "starts.",
        *parts,
    )


if __name__ == "__main__":
    main()
