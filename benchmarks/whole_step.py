"""The whole training step of a DLRM, ours and others'.

python benchmarks/whole_step.py [ROUNDS] [WARM_UP_BLOCKS] [kaggle|dcnv2] [ROW_DTYPES]

kaggle (the default): Criteo-Kaggle's tables (33.8 M rows), dim 16, 13-512-256-64-16 and 512-256-1, 2,048 samples of one
id a table. dcnv2: MLPerf's DLRM-DCNv2 (profile dlrm-dcnv2) scaled down: a sixteenth of its rows, a quarter of its dim
(32), half of its rank (256); its bags, 214 ids a sample, and its MLPs. So a number of an embedding meets as many
multiplications as there, 593 (there 585).

Ours as a user runs it (options, job, prefetch thread, threads and bookkeeping of `cachedlrm.train`) with slots for 1 %
and 5 % of the rows and for all. With every row resident: FBGEMM's table-batched operator (see peers.py) before layers
of torch.nn with autograd and torch.optim, and before our dense pass and optimizer, so that only the embeddings differ;
torch.nn.EmbeddingBag; and TorchRec's DLRM_DCN over FBGEMM's operator. All begin with the same parameters and train the
same batches in turn, in blocks of 20 steps (dcnv2: 5). Batches are read before the clock starts, and for others made
into tensors. Nothing is prepared ahead of a block, so in its first step ours waits.

With adagrad dcnv2 has --eps 0.01. At 1e-10 the first step moves every weight of the layers by the whole rate, however
small its gradient: the loss jumps from 0.66 to 9.9, in double precision too, and from there on each sum in another
order ends in another loss (by 1e-2 to 1e-1 of it, between any two of ours, the others and double precision). At 0.01
losses differ by less than 1e-4 of them over 45 steps.

Caches are filled first, until those of 1 % and 5 % evict, by batches whose rows come and go untrained; the first round
does not count. With ROW_DTYPES, bf16 or fp16 or both with a comma, ours has rows of these beside those of fp32, with
every optimizer of rows, and others are left out. Writes profiles/whole-step-<workload>[-<ROW_DTYPES>]-
<OMP_WAIT_POLICY>_<date>.md: medians and p10-p90 over ROUNDS (default 30) blocks. Takes 8 GiB; 10 with ROW_DTYPES.
"""

import gc
import itertools
import os
import queue
import re
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

# As cachedlrm.train has them, for all. Waiting threads that spin make steps faster on a quiet machine: measure with
# OMP_WAIT_POLICY=ACTIVE, too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import numpy as np
import torch
from measuring import Neighbours, described, made_by, write_profile
from other_trainers import FBGEMM, FBGEMM_AND_OURS, TORCH, TORCHREC, Block, Training, others

from cachedlrm.cache.embedding_cache import PreparedBatch
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.data.batch import Batch
from cachedlrm.data.open import open_dataset
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.run.job import build_job
from cachedlrm.run.progress import Progress
from cachedlrm.store.records import OPTIMIZERS as ALL_OPTIMIZERS
from cachedlrm.store.records import ROW_DTYPES

SAMPLES = 2048
OPTIMIZERS = ("sgd", "rwsadagrad")
BASES = (FBGEMM, FBGEMM_AND_OURS, TORCHREC, "ours, all resident")


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        shape: for the reader of the figures.
        options: of the model.
        eps: of adagrad; None: its own.
        data: samples without their number.
        block: steps.
        ratios: of slots to rows, by name.
        others: who stands beside ours.
    """

    shape: str
    options: tuple[str, ...]
    data: str
    block: int
    ratios: dict[str, float]
    others: tuple[str, ...]
    eps: float | None = None


MLPERF = parse_command_line(["--profile=dlrm-dcnv2"])
assert MLPERF.model.arch_embedding_size is not None
SIXTEENTHS = "-".join(str(max(3, rows // 16)) for rows in MLPERF.model.arch_embedding_size)
WORKLOADS = {
    "kaggle": Workload(
        "Criteo-Kaggle's 26 tables, dim 16, 13-512-256-64-16 and 512-256-1, 2,048 samples of one id a table",
        options=(),
        data="zipf:hot=1",
        block=20,
        ratios={"ours, 1 %": 0.01, "ours, 5 %": 0.05, "ours, all resident": 1.0},
        others=(FBGEMM, FBGEMM_AND_OURS, TORCH),
    ),
    "dcnv2": Workload(
        "MLPerf's DLRM-DCNv2 scaled down: its 26 tables with a sixteenth of the rows, dim 32, 13-512-256-32, 3 cross "
        "layers of rank 256, 1024-1024-512-256-1, 2,048 samples of 214 ids",
        options=(
            f"--arch-embedding-size={SIXTEENTHS}", "--arch-sparse-feature-size=32",
            "--arch-mlp-bot=13-512-256-32", "--arch-mlp-top=1024-1024-512-256-1", "--arch-interaction-op=dcn",
            "--dcn-num-layers=3", "--dcn-low-rank-dim=256", "--learning-rate=0.005",
        ),
        data=re.sub("samples=[0-9]+,", "", MLPERF.data.data),
        block=5,
        ratios={"ours, 5 %": 0.05, "ours, all resident": 1.0},
        others=(FBGEMM_AND_OURS, TORCHREC),
        eps=0.01,
    ),
}  # fmt: skip


class Ours:
    """A run of the program, block by block."""

    def __init__(self, workload: Workload, optimizer: str, ratio: float, row_dtype: str, steps: int) -> None:
        options = parse_command_line(
            [
                f"--data={workload.data},samples={steps * SAMPLES}", f"--optimizer={optimizer}",
                f"--gpu-cache-ratio={ratio}", f"--row-dtype={row_dtype}", f"--mini-batch-size={SAMPLES}",
                f"--steps={steps}", f"--print-freq={workload.block}", "--test-freq=-1", *workload.options,
                *([] if workload.eps is None or optimizer == "sgd" else [f"--eps={workload.eps}"]),
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
        self._prefetcher = Prefetcher(prepared, depth, cache.trained, lambda index: (index + 1) % workload.block == 0)
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


def named(cache: str, row_dtype: str) -> str:
    """Ours with one cache and rows of one dtype."""
    return cache if row_dtype == "fp32" else f"{cache}, {row_dtype}"


def measure(
    workload: Workload, optimizer: str, row_dtypes: list[str], rounds: int, warm_up: int
) -> tuple[dict[str, list[Block]], str]:
    """Measured blocks, by name, round by round; and what else was seen of them."""
    steps = (warm_up + 1 + rounds) * workload.block
    with ExitStack() as closes:
        ours = {
            named(cache, dtype): closes.enter_context(closing(Ours(workload, optimizer, ratio, dtype, steps)))
            for cache, ratio in workload.ratios.items()
            for dtype in row_dtypes
        }
        job = ours["ours, all resident"].job
        beside = others(job, workload.others) if row_dtypes == ["fp32"] else {}
        trainings: dict[str, Training] = {**ours, **beside}
        source = job.dataset.train
        blocks: dict[str, list[Block]] = {name: [] for name in trainings}
        gc.collect()
        gc.freeze()  # as cachedlrm.train does
        order = list(trainings)
        for block in range(steps // workload.block):
            first, length = block * workload.block * SAMPLES, workload.block * SAMPLES
            starts = range(first, first + length, SAMPLES)
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
    difference = loss_difference(blocks, workload, row_dtypes)
    assert not beside or difference < (1e-5 if optimizer == "sgd" else 1e-3), "others train another model"
    seen = (
        f"Losses of blocks differ from {'ours' if beside else 'those of fp32'} by at most {difference:.1e} of them. "
        f"Other processes used {busy:.2f} processors meanwhile."
    )
    for name in workload.others if beside else ():
        if name not in blocks and not (name == TORCH and optimizer == "rwsadagrad"):
            seen += f" {name} could not be loaded."
    return {name: each[1:] for name, each in blocks.items()}, seen


def loss_difference(blocks: dict[str, list[Block]], workload: Workload, row_dtypes: list[str]) -> float:
    """The largest relative difference of a block's loss from ours; of a dtype they are the same bits in all caches."""
    losses = {name: np.array([block.loss for block in each]) for name, each in blocks.items()}
    resident = losses["ours, all resident"]
    for cache, dtype in itertools.product(workload.ratios, row_dtypes):
        same = losses[named(cache, dtype)] == losses[named("ours, all resident", dtype)]
        assert same.all(), f"{named(cache, dtype)} lost a bit"
    return max(float(np.abs(each / resident - 1).max()) for each in losses.values())


def table(blocks: dict[str, list[Block]], row_dtypes: list[str]) -> str:
    """One line for each; ratios are taken round by round, those of dtypes to fp32 with the same cache."""
    compares_dtypes = row_dtypes != ["fp32"]
    bases = ["fp32"] if compares_dtypes else [base for base in BASES if base in blocks]
    lines = [
        f"| | ms a step | {' | '.join(f'of {base}' for base in bases)} | wait ms | after the first step | its share | "
        "rows evicted a step |",
        f"|---|{'---:|' * (len(bases) + 5)}",
    ]
    for name, each in blocks.items():
        cells = [described([block.step_ms for block in each])]
        for base in [re.sub(", (bf|fp)16$", "", name)] if compares_dtypes else bases:
            ratios = [one.step_ms / other.step_ms for one, other in zip(each, blocks[base], strict=True)]
            cells.append("1" if name == base else described(ratios, 3))
        if name.startswith("ours"):
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
    name = sys.argv[3] if len(sys.argv) > 3 else "kaggle"
    workload = WORKLOADS[name]
    row_dtypes = ["fp32", *(sys.argv[4].split(",") if len(sys.argv) > 4 else [])]
    if not set(row_dtypes) <= set(ROW_DTYPES):
        sys.exit(f"ROW_DTYPES are of {', '.join(ROW_DTYPES)}")
    compares_dtypes = len(row_dtypes) > 1
    torch.sparse.check_sparse_tensor_invariants.disable()  # torch.nn's optimizer builds valid ones; else it warns
    made, parts = made_by(__file__), []
    for optimizer in ALL_OPTIMIZERS if compares_dtypes else OPTIMIZERS:
        blocks, seen = measure(workload, optimizer, row_dtypes, rounds, warm_up)
        gc.unfreeze()
        gc.collect()  # gigabytes of tables
        parts += [f"## {optimizer}", table(blocks, row_dtypes), seen]
    policy = os.environ["OMP_WAIT_POLICY"]
    write_profile(
        "-".join(["whole-step", name, *row_dtypes[1:], policy.lower()]),
        "# The whole training step",
        f"{made}, {torch.get_num_threads()} threads, OMP_WAIT_POLICY={policy}. {workload.shape}, policy lrfu, prefetch "
        f"depth 2. Wall time, median (p10-p90) of {rounds} blocks of {workload.block} steps after "
        f"{warm_up * workload.block:,} batches that filled the caches and {workload.block} steps that do not count; "
        "all in turn in one process, ratios round by round. Losses of ours were equal to the last bit"
        f"{', by dtype' if compares_dtypes else ''}. Nothing is prepared ahead of a block, so ours waits in its first "
        "step: waiting is given with that step, then without it and as a share of the step's time."
        f"{'' if compares_dtypes else ' Others have their ids as tensors before the clock starts.'}",
        *parts,
    )


if __name__ == "__main__":
    main()
