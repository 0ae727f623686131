"""Rate of prepare csv beside prepare criteo: python benchmarks/prepare_csv.py FOLDER [SAMPLES] [ROUNDS]

Writes SAMPLES (default 1,000,000) lines in Criteo's form into FOLDER (as `prepare_criteo.py` does), and the same with
commas and a header; then prepares both in turns, each in a process of its own with one thread, ROUNDS times (default
3). Prints processor time of each and the ratio of the medians. The files have equal bytes, but for the header.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

from prepare_criteo import ROOT, generate

DENSE = [f"I{number}" for number in range(1, 14)]
SPARSE = [f"C{number}" for number in range(1, 27)]
COLUMNS = ["--label=label", f"--dense={','.join(DENSE)}", f"--sparse={','.join(SPARSE)}", "--log-dense"]
_PIECE = 1 << 24


def write_csv(raw: Path, path: Path) -> None:
    """The same lines with commas, after a header."""
    with raw.open("rb") as file, path.open("wb") as out:
        out.write(",".join(["label", *DENSE, *SPARSE]).encode() + b"\n")
        while piece := file.read(_PIECE):
            out.write(piece.replace(b"\t", b","))


def processor_s(out: Path, *arguments: str) -> float:
    """Processor time of a preparation."""
    command = [sys.executable, "-m", "cachedlrm.prepare", *arguments, "--out", str(out), "--threads=1", "--ui=off"]
    process = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, status
    subprocess.run(["rm", "-r", str(out)], check=True)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Writes both files, prepares them in turns, compares."""
    folder = Path(sys.argv[1])
    samples, rounds = (int(text) for text in [*sys.argv[2:], *["1000000", "3"][len(sys.argv) - 2 :]])
    folder.mkdir(parents=True, exist_ok=True)
    raw, text = folder / f"criteo-{samples}.tsv", folder / f"criteo-{samples}.csv"
    if not raw.exists():
        generate(raw, samples)
    write_csv(raw, text)
    times: dict[str, list[float]] = {"criteo": [], "csv": []}
    for _ in range(rounds):
        times["criteo"].append(processor_s(folder / "out", "criteo", str(raw)))
        times["csv"].append(processor_s(folder / "out", "csv", str(text), *COLUMNS))
    for name, seconds in times.items():
        print(f"{name}: {', '.join(f'{one:.1f}' for one in seconds)} s of processor for {raw.stat().st_size:,} bytes")
    ratio = statistics.median(times["csv"]) / statistics.median(times["criteo"])
    print(f"prepare csv takes {ratio:.2f} times the processor time of prepare criteo")


if __name__ == "__main__":
    main()
