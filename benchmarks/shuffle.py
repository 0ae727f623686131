"""What --shuffle costs and how well it mixes: python benchmarks/shuffle.py FOLDER cost|mixing [SAMPLES] [ROUNDS]

Writes generated samples of Criteo-Kaggle's shape into FOLDER as npy arrays. `cost` (default 3,000,000 samples, 3
rounds): processor time of reading an epoch in the order of the files and shuffled, in turn, beside that of a step of
the default job; one thread. `mixing` (default 1,200,000 samples, 8 seeds; a further number is the first seed): AUC
after an epoch of training on samples sorted by label, with --shuffle, beside that on the same samples permuted. A seed
decides the initial weights, the same for both, and both orders; the difference of the two comes with its standard error
over the seeds. The learning rate falls to 0 and the vectors are not multiplied (--arch-interaction-op cat), so that
chance decides less. The pool is as small against the data as the real one against Criteo's 40 million samples.
"""

import functools
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cachedlrm.data.open import open_dataset
from cachedlrm.data.shuffle import POOL_BYTES, ShuffledEpochs
from cachedlrm.data.spec import DataRequest
from cachedlrm.options import schedule
from cachedlrm.train import main as train

BATCH, WRITTEN = 2048, 1 << 16


CRITEO_SAMPLES = 40_000_000


def write(folder: Path, order: str, samples: int, seed: int = 0) -> None:
    """An npy triple of `zipf` samples, held-out ones beside it.

    Args:
        folder: where; nothing is done if it is there.
        order: ``drawn``, ``sorted`` by label, or ``permuted``.
        samples: how many to train on.
        seed: of the permutation.
    """
    dataset = open_dataset(f"zipf:samples={samples}", None, DataRequest(None, None, 1, -1))
    first_rows = np.concatenate([[0], np.cumsum(dataset.train.table_rows)[:-1]])
    for name, source in (("train", dataset.train), ("test", dataset.test)):
        target = folder / order / name
        if target.exists():
            continue
        target.mkdir(parents=True)
        parts: dict[str, list[np.ndarray]] = {"dense": [], "sparse": [], "labels": []}
        for start in range(0, source.num_samples, WRITTEN):
            batch = source.read(start, min(start + WRITTEN, source.num_samples))
            parts["dense"].append(batch.dense)
            parts["sparse"].append((batch.rows.reshape(batch.num_samples, -1) - first_rows).astype(np.int32))
            parts["labels"].append(batch.labels.astype(np.int32)[:, None])
        arrays = {part: np.concatenate(values) for part, values in parts.items()}
        places = np.arange(source.num_samples)
        if name == "train" and order == "sorted":
            places = np.argsort(arrays["labels"][:, 0], kind="stable")
        elif name == "train" and order == "permuted":
            places = np.random.default_rng(seed).permutation(source.num_samples)
        for part, values in arrays.items():
            np.save(target / f"{part}.npy", values[places])


def cost(folder: Path, samples: int, rounds: int) -> None:
    write(folder, "drawn", samples)
    source = open_dataset(f"npy:{folder}/drawn/train", None, DataRequest(None, None, 1, -1)).train
    batches = range(0, source.num_samples, BATCH)

    def epoch(read) -> float:
        started = time.process_time()
        for start in batches:
            read(start, min(start + BATCH, source.num_samples))
        return time.process_time() - started

    taken: dict[str, list[float]] = {"in order": [], "shuffled": []}
    ShuffledEpochs(source, 0).read(0, 0, 1)  # compiles
    for number in range(rounds):
        taken["in order"].append(epoch(source.read))
        taken["shuffled"].append(epoch(functools.partial(ShuffledEpochs(source, number).read, number)))
    step = step_seconds()
    for name, seconds in taken.items():
        of_batch = statistics.median(seconds) / len(batches)
        print(f"{name:9} {1e3 * of_batch:6.2f} ms a batch of {BATCH:,}")
    more = (statistics.median(taken["shuffled"]) - statistics.median(taken["in order"])) / len(batches)
    print(f"a step of the default job: {1e3 * step:.1f} ms; --shuffle adds {100 * more / step:.2f} %")


def step_seconds() -> float:
    """Processor time of a step of `python -m cachedlrm.train --gpu-cache-ratio 0.05`, without its first steps."""
    taken = []
    for steps in (20, 20, 60):  # the first run loads kernels
        with tempfile.TemporaryDirectory() as directory:
            started = time.process_time()
            options = ["--gpu-cache-ratio=0.05", "--threads=1", "--ui=off", "--test-freq=-1", f"--steps={steps}"]
            assert train([*options, f"--run-dir={directory}/run"]) == 0
            taken.append(time.process_time() - started)
    return (taken[2] - taken[1]) / 40


def mixing(folder: Path, samples: int, seeds: int, first: int = 0) -> None:
    schedule.ShuffledEpochs = functools.partial(ShuffledEpochs, pool_bytes=POOL_BYTES * samples // CRITEO_SAMPLES)
    write(folder, "sorted", samples)
    print(f"AUC {'--shuffle':>9} permuted  difference", flush=True)
    differences: list[float] = []
    for seed in range(first, first + seeds):
        write(folder, "permuted", samples, seed)
        of_seed = f"--numpy-rand-seed={seed}"
        shuffled = auc(folder / "sorted", ["--shuffle", of_seed])
        permuted = auc(folder / "permuted", [of_seed])
        shutil.rmtree(folder / "permuted")
        differences.append(shuffled - permuted)
        print(f"    {shuffled:9.5f} {permuted:8.5f} {differences[-1]:+11.5f}", flush=True)
    error = statistics.stdev(differences) / seeds**0.5
    print(f"mean difference {statistics.mean(differences):+.5f}, standard error {error:.5f}")
    print(f"sorted, as it is: AUC {auc(folder / 'sorted', []):.5f}")


def auc(folder: Path, options: list[str]) -> float:
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory, "run")
        common = ["--arch-mlp-bot=13-64-16", "--arch-mlp-top=64-1", "--mini-batch-size=1024", "--threads=1", "--ui=off"]
        common += ["--arch-interaction-op=cat", "--lr-policy=linear"]
        data = [f"--data=npy:{folder}/train", f"--test-data=npy:{folder}/test", "--test-freq=1000000"]
        assert train([*common, *data, *options, f"--run-dir={run}"]) == 0
        return json.loads((run / "report.json").read_text())["auc"]


if __name__ == "__main__":
    place, what, *numbers = sys.argv[1:]
    chosen, default = (cost, (3_000_000, 3)) if what == "cost" else (mixing, (1_200_000, 8))
    chosen(Path(place), *map(int, numbers), *default[len(numbers) :])
