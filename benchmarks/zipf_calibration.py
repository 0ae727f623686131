"""The default generated data beside published statistics of Criteo's Kaggle set: python benchmarks/zipf_calibration.py

The statistics are of 24,540 samples drawn evenly from all 45.8 M (568,123 lookups that are not missing values).
"""

from collections import OrderedDict

import numpy as np

from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, ZipfSource

PUBLISHED = {
    "distinct ids": 88_222,
    "share of ids seen once": 0.724,
    "share of lookups that are first touches": 0.155,
    "share of lookups to the top 1 % of ids": 0.625,
    "LRU hit ratio at 1 % of the ids": 0.52,
    "LRU hit ratio at 5 % of the ids": 0.67,
    "LRU hit ratio at 10 % of the ids": 0.73,
    "LRU hit ratio at 25 % of the ids": 0.80,
}


def lru_hit_ratio(ids: np.ndarray, capacity: int) -> float:
    """Share of lookups found in one least-recently-used cache."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in ids.tolist():
        if row in cache:
            cache.move_to_end(row)
            hits += 1
        else:
            cache[row] = None
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hits / len(ids)


def statistics(ids: np.ndarray) -> list[float]:
    """The figures of `PUBLISHED` for a stream of ids."""
    unique, counts = np.unique(ids, return_counts=True)
    top = np.sort(counts)[::-1][: len(unique) // 100].sum()
    shares = [float((counts == 1).mean()), len(unique) / len(ids), float(top / len(ids))]
    return [len(unique), *shares, *(lru_hit_ratio(ids, int(len(unique) * s)) for s in (0.01, 0.05, 0.1, 0.25))]


def main() -> None:
    """Prints both columns; the generated one leaves out as many lookups as are missing values in the real one."""
    samples = 568_123 // len(CRITEO_KAGGLE_ROWS)
    source = ZipfSource(CRITEO_KAGGLE_ROWS, 13, seed=123, num_samples=45_800_000)
    stride = 45_800_000 // samples
    ids = np.concatenate([source.read(i * stride, i * stride + 1).rows for i in range(samples)])
    print(f"{'':44}{'Criteo':>10}{'generated':>12}")
    for (name, published), generated in zip(PUBLISHED.items(), statistics(ids), strict=True):
        print(f"{name:44}{published:10,.10g}{generated:12,.3f}")


if __name__ == "__main__":
    main()
