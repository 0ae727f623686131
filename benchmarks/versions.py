"""``make versions [PAIR...]``: the test suite under each pair of Python and torch, and a table of what came of it.

    python benchmarks/versions.py                           # all pairs for which this machine has a Python
    python benchmarks/versions.py 3.11:2.8.0 3.12:newest    # these

Each pair gets an environment of its own in ``.versions/``, which stays; from constraints.txt all versions but torch's.
``newest`` is the newest that pip offers. A build of torch with CUDA takes some 5 GB. The table goes into profiles/.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from measuring import ROOT, made_by, write_profile

PAIRS = ("3.11:2.8.0", "3.11:2.13.0", "3.11:newest", "3.12:newest", "3.13:newest")
ENVIRONMENTS = ROOT / ".versions"


class Outcome(NamedTuple):
    """What a suite came to.

    Attributes:
        pair: Python and torch, as tested.
        counts: pytest's, such as ``2,365 passed, 177 skipped``.
        failed: names of the tests that failed.
        minutes: that it took.
    """

    pair: str
    counts: str
    failed: tuple[str, ...]
    minutes: float


def find_python(version: str) -> str | None:
    """The interpreter ``python3.N``: of this process, on the path, or of pyenv."""
    if version == ".".join(map(str, sys.version_info[:2])):
        return sys.executable
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(of_pyenv[-1]) if of_pyenv else shutil.which(f"python{version}")


def environment(python: str, version: str, torch: str) -> Path:
    """The interpreter of a pair's environment, which is made if it is missing."""
    folder = ENVIRONMENTS / f"python{version}-torch{torch}"
    inside = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("torch==")]
        if torch != "newest":
            pins.append(f"torch=={torch}")
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        install = [inside, "-m", "pip", "install", "--quiet", "-c", constraints, "-e", f"{ROOT}[flights,dev]"]
        subprocess.run(install, check=True)
        (folder / "installed").touch()
    return inside


def run_suite(python: Path, version: str) -> Outcome:
    """Runs all tests in an environment."""
    torch = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    started = time.monotonic()
    done = subprocess.run(
        [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    minutes = (time.monotonic() - started) / 60
    lines = done.stdout.splitlines()
    counts = next((line for line in reversed(lines) if re.search(r"\d+ (passed|failed|error)", line)), "no test ran")
    failed = tuple(line.split(" - ")[0].split(maxsplit=1)[1] for line in lines if line.startswith(("FAILED", "ERROR")))
    return Outcome(f"{version} | {torch}", re.sub(r" in [\d.]+s.*", "", counts).strip("= "), failed, minutes)


def main(pairs: list[str]) -> None:
    """Tests the pairs and writes the table; ends with status 1 if a test failed."""
    outcomes, missing = [], []
    for pair in pairs or PAIRS:
        version, torch = pair.split(":")
        python = find_python(version)
        if python is None:
            missing.append(version)
            continue
        outcomes.append(run_suite(environment(python, version, torch), version))
        print(outcomes[-1], flush=True)
    table = ["| Python | torch | tests | failed | minutes |", "|---|---|---|---|---:|"]
    for outcome in outcomes:
        names = ", ".join(f"`{name}`" for name in outcome.failed) or "-"
        table.append(f"| {outcome.pair} | {outcome.counts} | {names} | {outcome.minutes:.1f} |")
    without = f" Not run, as this machine has no Python {', '.join(missing)}." if missing else ""
    write_profile(
        "versions", "# The test suite under other versions", f"{made_by(__file__, pairs)}.{without}", "\n".join(table)
    )
    if any(outcome.failed or "passed" not in outcome.counts for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
