"""Parquet files beside npy files of the same samples: python benchmarks/parquet_source.py FOLDER [SAMPLES] [ROUNDS]

Writes SAMPLES (default 2,000,000) samples of 13 dense features and 26 ids into FOLDER, as an npy triple and as a
Parquet file of Arrow's default row groups (1,048,576), then opens each and reads batches of 2,048 from it, on and
backwards, ROUNDS (default 3) times in turn. Prints the medians of the process's time (user and system) and of the
longest read, which is a row group's decoding.
"""

import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest

NUM_DENSE, NUM_TABLES, BATCH = 13, 26, 2048


def write(folder: Path, samples: int) -> None:
    random = np.random.default_rng(1)
    dense = random.random((samples, NUM_DENSE), np.float32)
    most = 1000 * np.arange(1, NUM_TABLES + 1)
    ids = (random.random((samples, NUM_TABLES), np.float32) ** 3 * most).astype(np.int32)
    labels = random.integers(0, 2, (samples, 1)).astype(np.int32)
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in (("dense", dense), ("sparse", ids), ("labels", labels)):
        np.save(folder / f"{part}.npy", values)
    columns = {"label": labels[:, 0]}
    columns |= {f"dense_{column}": dense[:, column] for column in range(NUM_DENSE)}
    columns |= {f"table_{table}": ids[:, table].astype(np.int64) for table in range(NUM_TABLES)}
    pq.write_table(pa.table(columns), folder / "samples.parquet")


def measure(spec: str, backwards: bool) -> tuple[float, float]:
    """Seconds of the process for a pass, opening included, and of the longest read by the clock."""
    started, longest = time.process_time(), 0.0
    source = open_dataset(spec, None, DataRequest(None, None, 1, -1)).train
    batches: Iterable[int] = range(source.num_samples // BATCH)
    for batch in reversed(batches) if backwards else batches:
        asked = time.perf_counter()
        source.read(batch * BATCH, (batch + 1) * BATCH)
        longest = max(longest, time.perf_counter() - asked)
    return time.process_time() - started, longest


def main() -> None:
    folder, *numbers = sys.argv[1:]
    samples, rounds = (*map(int, numbers), *(2_000_000, 3)[len(numbers) :])
    write(Path(folder), samples)
    specs = [f"npy:{folder}", f"parquet:{folder}/samples.parquet"]
    for backwards in (False, True):
        taken = [[measure(spec, backwards) for spec in specs] for _ in range(rounds)]
        for spec, results in zip(specs, zip(*taken, strict=True), strict=True):
            seconds, longest = (statistics.median(values) for values in zip(*results, strict=True))
            order = "backwards" if backwards else "on"
            print(f"{spec.split(':')[0]:8} {order:10} {seconds:.2f} s, longest read {longest:.2f} s")


if __name__ == "__main__":
    main()
