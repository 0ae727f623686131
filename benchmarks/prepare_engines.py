"""Arrow and Polars on a file in Criteo's form: python benchmarks/prepare_engines.py FILE [ROUNDS]

FILE may be the one that benchmarks/prepare_criteo.py leaves. Both get its first 120 MB in blocks of 8 MiB and give
integers and categories as arrays of numbers; one thread, processes in turn. Needs polars, which cachedlrm does not.
"""

import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

from cachedlrm.data.raw.criteo import Criteo
from cachedlrm.data.raw.samples import Position

BLOCK_BYTES, NUM_BLOCKS = 8 << 20, 15


def arrow(texts: list[bytes]) -> int:
    """Lines parsed by `cachedlrm.data.raw.criteo`'s table and kernels, labels and logarithms included."""
    format_ = Criteo(BLOCK_BYTES)
    return sum(len(format_._parse(text, text.count(b"\n"))) for text in texts)


def polars(texts: list[bytes]) -> int:
    """The same by Polars, without logarithms."""
    import polars as pl  # noqa: PLC0415

    names = ["label", *Criteo.dense_names, *Criteo.table_names]
    schema = {name: pl.String if name.startswith("C") else pl.Int32 for name in names}
    total = 0
    for text in texts:
        frame = pl.read_csv(text, separator="\t", has_header=False, schema=schema, quote_char=None)
        keys = frame.select(pl.col("^C.*$").str.to_integer(base=16, dtype=pl.UInt32).fill_null(0)).to_numpy()
        frame.select(pl.col("^I.*$").fill_null(0)).to_numpy()
        total += len(keys)
    return total


def main() -> None:
    """Runs the engines in turn, or one of them."""
    path, rounds = sys.argv[1], int([*sys.argv, "3"][2])
    if len(sys.argv) < 4:
        for _ in range(rounds):
            for engine in ("arrow", "polars"):
                environment = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
                subprocess.run([sys.executable, __file__, path, "1", engine], env=environment, check=True)
        return
    texts = [block.content for block in islice(Criteo(BLOCK_BYTES).blocks(Path(path), Position()), NUM_BLOCKS)]
    engine = {"arrow": arrow, "polars": polars}[sys.argv[3]]
    engine(texts[:1])  # compiles
    start, processor = time.perf_counter(), time.process_time()
    lines = engine(texts)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    print(f"{sys.argv[3]}: {lines / seconds:,.0f} lines a second, {lines / processor:,.0f} a second of processor")


if __name__ == "__main__":
    main()
