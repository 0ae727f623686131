"""GPU tests, speed, copies and memory on a CUDA device, in one call of at most 8 minutes; writes profiles/*.md.

``make gpu-check`` runs it. Without a CUDA device it writes a report that says what was not run. Each measurement has a
process of its own (``gpu_measure.py``) and what is left of the time; one that no longer fits is skipped, and the
report says so. Exit status 1 if a test or a measurement failed, or the tests did not end in their time.
"""

import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import gpu_tables as tables
import numpy as np
import torch
from gpu_processes import Measure, Measured, TimeBudget, in_process, run
from measuring import write_profile
from resident import opened

from cachedlrm.base.kernels import table_offsets
from cachedlrm.report.environment import commit, cpu_model

BUDGET_S = 465  # of 480: what starts this program and what a killed process still does takes time too
TESTS = (
    "tests/gpu/test_cuda.py",
    "tests/library/test_collections.py",
    "tests/library/test_embedding_bags.py",
)  # all that have tests for a GPU
TESTS_S = 200
GIB = 1 << 30

ON_CUDA = ("--device=cuda", "--test-freq=-1")
STEPS = 1000  # of the default job: an epoch, in whose second half caches of 1 % and of 5 % evict
BATCH_SIZE = 2048
ADAGRAD_BYTES = 7 * GIB  # of a device on which all rows of the default job fit with their sums; else without: sgd
MOST_ROUNDS = 3
CACHES = {
    "cache, 1 %": ("--gpu-cache-ratio=0.01",),
    "cache, 5 %": ("--gpu-cache-ratio=0.05",),
    "cache, 5 %, CUDA graphs": ("--gpu-cache-ratio=0.05", "--cuda-graphs"),
    tables.ALL_CACHED: ("--gpu-cache-ratio=1.0",),
}

TERABYTE = ("--profile=criteo-1tb", "--gpu-cache-ratio=0.01")
TERABYTE_STEPS = ("--steps=120", "--print-freq=60")
# Without adagrad: with its sums a row takes 1,024 B, and slots alone 1.9 GB.
TERABYTE_RUNS = {
    "sgd": ("--optimizer=sgd", *TERABYTE_STEPS),
    "rwsadagrad": ("--optimizer=rwsadagrad", *TERABYTE_STEPS),
    "sgd, in one pass": ("--optimizer=sgd", "--micro-batch-size=16384", *TERABYTE_STEPS),
}

CARDS = {"4 GiB": 4 * GIB, "8 GiB": 8 * GIB}
CARD_RESERVED_BYTES = 768 << 20  # as in profiles/devices
CARD_JOBS = {
    "Criteo 1TB": ("--profile=criteo-1tb", "--steps=40", "--print-freq=20"),
    "default job": ("--steps=200", "--print-freq=100"),
}


def write_samples(folder: Path, arguments: Sequence[str], num_samples: int) -> list[str]:
    """Writes the samples of a job as npy files; the options that train them there.

    So training from data on disk is measured, and not the drawing of samples.
    """
    _, dataset = opened(arguments)
    source, first_rows = dataset.train, table_offsets(dataset.train.table_rows)[:-1]
    dense = np.empty((num_samples, source.num_dense), np.float32)
    sparse = np.empty((num_samples, len(first_rows)), np.int32)
    labels = np.empty((num_samples, 1), np.int32)
    for start in range(0, num_samples, 1 << 16):
        part = slice(start, min(start + (1 << 16), num_samples))
        batch = source.read(part.start, part.stop)
        dense[part] = batch.dense
        sparse[part] = batch.rows.reshape(-1, len(first_rows)) - first_rows
        labels[part] = batch.labels[:, None]
    for name, values in (("dense", dense), ("sparse", sparse), ("labels", labels)):
        np.save(folder / f"day_{name}.npy", values)
    sizes = "-".join(map(str, source.table_rows))
    return [f"--data=npy:{folder}", f"--arch-embedding-size={sizes}"]


def measure_round(measure: Measure, options: Sequence[str]) -> dict[str, Measured]:
    """Each share of cached rows, and all rows in one tensor."""
    results = {name: measure("cached", [*options, *cache], 20, 0) for name, cache in CACHES.items()}
    return {**results, tables.RESIDENT: measure("resident", options, 20, 0)}


def measure_cards(measure: Measure, device_bytes: int | None) -> dict[str, Measured]:
    """Each job with the budget that a card leaves, where torch may take no more of the device than the card has."""
    results: dict[str, Measured] = {}
    for job, options in CARD_JOBS.items():
        for card, card_bytes in CARDS.items():
            name = f"{card}, {job}"
            if device_bytes is not None and device_bytes < 0.9 * card_bytes:
                results[name] = {"note": f"not run: the device has {device_bytes / GIB:.1f} GiB"}
                continue
            budget = f"--gpu-budget={card_bytes - CARD_RESERVED_BYTES}"
            results[name] = measure("cached", [*options, *ON_CUDA, budget], 20, card_bytes)
    return results


def measured(measure: Measure, budget: TimeBudget) -> tuple[str, list[str], bool]:
    """The device's name, the report's sections, and whether nothing failed."""
    link = measure("link", [], 10, 0)
    device_bytes = link.get("device_bytes")
    optimizer = "sgd" if device_bytes is not None and device_bytes < ADAGRAD_BYTES else "adagrad"
    with tempfile.TemporaryDirectory() as folder:
        options = [*ON_CUDA, f"--optimizer={optimizer}", f"--steps={STEPS}", f"--print-freq={STEPS // 2}"]
        options += write_samples(Path(folder), ["--device=cpu"], STEPS * BATCH_SIZE)
        started = time.monotonic()
        rounds = [measure_round(measure, options)]
        round_s = time.monotonic() - started
        terabyte = {
            name: measure("cached", [*TERABYTE, *more, *ON_CUDA], 30, 0) for name, more in TERABYTE_RUNS.items()
        }
        cards = measure_cards(measure, device_bytes)
        while len(rounds) < MOST_ROUNDS and not budget.lacks(20 + 1.2 * round_s):
            rounds.append(measure_round(measure, options))
    moving = {f"default job, {name}": result for name, result in rounds[0].items() if name != tables.RESIDENT}
    moving |= {f"Criteo 1TB, {name}": result for name, result in terabyte.items()} | cards
    sections = [
        "## Targets",
        tables.targets(rounds, terabyte, cards),
        f"## Speed of the default job ({optimizer}), rows cached and rows resident",
        "All read the same samples from npy files, a thread ahead. The plain program is `benchmarks/resident.py`. "
        f"Last {STEPS - STEPS // 2} of {STEPS} steps, {len(rounds)} rounds in turn: median (range). Wait: for rows, on "
        "the device. Between steps: the device has nothing to do, as the host is late.",
        tables.rates(rounds),
        "## Between host and device",
        tables.link(link),
        "What runs moved; every copy of a staging buffer lay between two events on the copy stream:",
        tables.copies(moving, link),
        "## Criteo 1TB: 188 M rows, dim 128, 1 % cached, batches of 16,384",
        f"Beside {tables.PREDECESSOR_BYTES / 1e9} GB, which CachedEmbedding (ColossalAI) published for an A100, sgd. "
        "Device peak: of what torch's allocator had given out; allocator: of what it held. In 8 passes gradients of a "
        "batch are accumulated: its rows are cached and its parameters move as those of one batch.",
        tables.terabyte(terabyte),
        "## Emulated cards",
        "The card is what torch's allocator may take (`torch.cuda.set_per_process_memory_fraction`); the budget is the "
        "card less 768 MiB. In use: of all of the "
        "device, contexts of processes included.",
        tables.cards(cards),
    ]
    everything = [link, *(result for results in rounds for result in results.values()), *moving.values()]
    return link.get("device", "cuda"), sections, not any(result.get("failed") for result in everything)


def run_tests(budget: TimeBudget) -> tuple[str, bool]:
    """pytest's last line, and whether all tests passed."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    seconds = min(TESTS_S, budget.left)
    status, output, _ = run(command, seconds)
    summary = output.strip().splitlines()[-1] if output.strip() else "no output"
    if status is None:
        summary = f"not finished, stopped after {seconds:.0f} s at {summary}"
    return summary, status == 0


def main() -> int:
    """Prints and writes the report; 1 if a test or a measurement failed."""
    budget = TimeBudget(BUDGET_S)
    has_gpu = torch.cuda.is_available()  # nothing more of CUDA in this process: a context of its own takes memory
    summary, fine = run_tests(budget)
    print(f"{budget.spent:4.0f} s: {summary}", flush=True)
    if has_gpu:
        device, sections, all_ran = measured(in_process(budget), budget)
        fine = fine and all_ran
    else:
        device, fine = "no-cuda", True
        sections = [
            "**Not run:** this machine has no CUDA device, so all GPU tests were skipped and nothing was measured: not "
            "the speed of caches beside one resident tensor, no copies between host and device, no peak under emulated "
            "cards of 4 GiB and 8 GiB, no bytes of the Criteo-1TB shape."
        ]
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    write_profile(
        f"criteo-kaggle_{name}",
        "# GPU check",
        f"`make gpu-check` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {cpu_model()}, {os.cpu_count()} cores, device: {device}; it took "
        f"{budget.spent:.0f} s.",
        "## GPU tests and exactness with deterministic algorithms",
        f"`pytest -m gpu {' '.join(TESTS)}`: {summary}",
        *sections,
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
