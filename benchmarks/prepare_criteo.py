"""Rate and memory of cachedlrm.prepare: python benchmarks/prepare_criteo.py FOLDER [SAMPLES] [MEMORY...]

Writes SAMPLES (default 10,000,000) lines in Criteo's form into FOLDER, with Criteo-Kaggle's numbers of categories and a
long tail, then prepares them once for every MEMORY (default 2GiB 768MiB) in a process of its own. Prints the time of
each stage, samples a minute and core (user and system time), and the peak resident memory that the system accounts to
the process. Outputs must be the same bytes. FOLDER keeps the raw file; criteo.tsv in it is used again if it is there.
"""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ROWS = np.array(
    [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
     2173, 4, 7046547, 18, 15, 286181, 105, 142572], np.int64
)  # fmt: skip
OFTEN_MISSING = np.isin(np.arange(26), [18, 19, 21, 24, 25])


@numba.njit(cache=True)
def write_lines(seed, count, rows, often_missing, out):
    """Fills ``out`` with lines; the bytes used. Half of the categories are log-uniform, half uniform."""
    np.random.seed(seed)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    end = 0
    for _ in range(count):
        out[end] = 48 + (np.random.random() < 0.256)
        end += 1
        for integer in range(13):
            out[end] = 9
            end += 1
            if np.random.random() < 0.12:
                continue
            value = int(min(np.exp(np.random.normal(2, 2)), 1e7))
            if integer == 1:
                value -= 2
            if value < 0:
                out[end] = 45
                end += 1
                value = -value
            power = 1
            while power * 10 <= value:
                power *= 10
            while power:
                out[end] = digits[value // power % 10]
                end += 1
                power //= 10
        for table in range(26):
            out[end] = 9
            end += 1
            if often_missing[table] and np.random.random() < 0.4:
                continue
            share = np.random.random()
            rank = int(float(rows[table]) ** share if np.random.random() < 0.5 else rows[table] * share)
            key = ((rank + 1) * 2654435761 + table * 40503) & 0xFFFFFFFF
            for shift in range(28, -4, -4):
                out[end] = digits[(key >> shift) & 15]
                end += 1
        out[end] = 10
        end += 1
    return end


def generate(path: Path, samples: int) -> None:
    """Writes the raw file."""
    piece = 100_000
    out = np.empty(piece * 400, np.uint8)
    with path.with_suffix(".partial").open("wb") as file:
        for number, start in enumerate(range(0, samples, piece)):
            file.write(out[: write_lines(number, min(piece, samples - start), ROWS, OFTEN_MISSING, out)].data)
    path.with_suffix(".partial").rename(path)


def prepare(path: Path, out: Path, memory: str, samples: int) -> None:
    """Prepares the file and prints what it took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "cachedlrm.prepare", "criteo", str(path), "--out", str(out), "--memory", memory]
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    print(
        f"--memory {memory}: {seconds:.1f} s, {cpu:.1f} s of processor, {samples / seconds * 60:,.0f} samples a "
        f"minute, {samples / cpu * 60:,.0f} a minute and core; peak resident memory {usage.ru_maxrss / 1024:,.0f} MiB",
        flush=True,
    )


def digest(folder: Path) -> str:
    """Of all files of an output."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def main() -> None:
    """Generates, prepares, compares."""
    folder, samples, *memories = [*sys.argv[1:], *["10000000"][len(sys.argv) - 2 :]]
    path = Path(folder, "criteo.tsv")
    if not path.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        generate(path, int(samples))
    digests = set()
    for memory in memories or ["2GiB", "768MiB"]:
        out = Path(folder, f"out-{memory}")
        prepare(path, out, memory, int(samples))
        digests.add(digest(out))
        subprocess.run(["rm", "-r", str(out)], check=True)
    assert len(digests) == 1, "outputs depend on the memory"
    print(f"{path.stat().st_size:,} bytes of text; outputs are equal byte for byte")


if __name__ == "__main__":
    main()
