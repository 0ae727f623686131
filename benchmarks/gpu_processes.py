"""Measurements in processes of their own, within a budget of time."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from measuring import ROOT

Measured = Mapping[str, Any]
Measure = Callable[[str, Sequence[str], float, int], Measured]
"""From kind (``cached``, ``resident``, ``link``), options, the seconds it takes at least, and the bytes of an emulated
card (0: none), to what ``gpu_measure.py`` found; or to a ``note`` that says why not, ``failed`` if that is a fault."""


class TimeBudget:
    """Seconds that are left of a call.

    Args:
        seconds: of all of it.
        clock: of seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = seconds
        self._start = clock()

    @property
    def spent(self) -> float:
        return self._clock() - self._start

    @property
    def left(self) -> float:
        return max(0.0, self._seconds - self.spent)

    def lacks(self, seconds: float) -> str | None:
        """Why a measurement of ``seconds`` or more is not run; None if there is time for it."""
        if self.left >= seconds:
            return None
        return f"not run: {self.left:.0f} s of {self._seconds:.0f} s were left and it takes {seconds:.0f} s or more"


def run(command: Sequence[str], seconds: float) -> tuple[int | None, str, str]:
    """Exit status, output and errors of a command in the repository's root; status None: killed after ``seconds``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in training
    # Files, not pipes: a pipe that somebody else holds open could not be waited for within the time.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=errors) as process:
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                status = None
            except BaseException:
                process.kill()
                raise
        output.seek(0)
        errors.seek(0)
        return status, output.read(), errors.read()


def in_process(budget: TimeBudget) -> Measure:
    """Measures in processes, each of which may take what is left of the budget, and tells how it went."""

    def measure(kind: str, options: Sequence[str], at_least_s: float, card_bytes: int) -> Measured:
        found = _measured(budget, kind, options, at_least_s, card_bytes)
        said = found.get("note") or f"{found.get('rate') or 0:,.0f} samples/s, peak {found.get('device_peak_bytes')} B"
        shown = [option for option in options if not option.startswith(("--data", "--arch"))]
        print(f"{budget.spent:4.0f} s: {kind} {' '.join(shown)}: {said}", flush=True)
        return found

    return measure


def _measured(budget: TimeBudget, kind: str, options: Sequence[str], at_least_s: float, card_bytes: int) -> Measured:
    if lacking := budget.lacks(at_least_s):
        return {"note": lacking}
    seconds = budget.left
    program = str(ROOT / "benchmarks" / "gpu_measure.py")
    status, output, errors = run([sys.executable, program, kind, str(card_bytes), *options], seconds)
    if status is None:
        return {"note": f"stopped after {seconds:.0f} s, when the time was over"}
    if status:
        last = (errors.strip() or f"exit status {status}").splitlines()[-1]
        return {"note": f"failed: {last[:300].replace('|', '/')}", "failed": True}  # for a cell of a table
    found: Measured = json.loads(output.splitlines()[-1])
    return found
