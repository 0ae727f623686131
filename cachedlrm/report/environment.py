"""Where a run ran, and what it takes to repeat it."""

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from cachedlrm import __version__
from cachedlrm.base.text import as_utf8


def environment(device: str, arguments: Sequence[str]) -> dict[str, str | int | None]:
    """Everything needed to repeat a run of this process elsewhere, besides its data.

    Args:
        device: its name.
        arguments: the command line.
    """
    return {
        "command": " ".join(["python -m cachedlrm.train", *(shlex.quote(as_utf8(text)) for text in arguments)]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cachedlrm": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": device,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def commit() -> str | None:
    """Commit of the checkout the package lies in, marked if files differ from it; None outside one.

    A package installed into somebody's project lies in that project's checkout without being part of it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    # Without optional locks a run never gets in the way of the user's own git commands.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    described = ""
    try:
        for command in (
            ["ls-files", "--error-unmatch", Path(__file__).name],
            ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        ):
            done = subprocess.run(
                [*git, *command], capture_output=True, text=True, timeout=5, check=True, env=environment
            )
            described = done.stdout.strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return described


def cpu_model() -> str:
    """The processor's name; on Linux from ``/proc/cpuinfo``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
