"""Memory that is free for this process, and memory that it uses."""

import ctypes
import os
from pathlib import Path

import psutil
import torch

from cachedlrm.base.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")


def host_memory() -> tuple[int, int]:
    """Anonymous resident bytes (rss - shared) and mapped pages in memory; the second is 0 where not known."""
    info = psutil.Process().memory_info()
    mapped = getattr(info, "shared", 0)
    return info.rss - mapped, mapped


def free_host_bytes() -> int:
    """Bytes that this process may still take: the machine's free memory, or less in a container."""
    return min([int(psutil.virtual_memory().available), *_free_in_cgroups()])


def give_back_freed_memory() -> None:
    """Lets the C library return what was freed to the system: glibc keeps freed arrays of up to 32 MiB for itself."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (TypeError, OSError, AttributeError):  # another C library
        return
    trim(0)


def free_device_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device; on the CPU that of the host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def _free_in_cgroups(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes left by the memory limit of each Linux control group that this process is in."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    free = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree
            base, limit, used = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in [group, *group.parents][: len(group.relative_to(base).parts) + 1]:
            left = _left(folder / limit, folder / used, folder / "memory.stat")
            if left is not None:
                free.append(left)
    return free


def _left(limit: Path, used: Path, statistics: Path) -> int | None:
    """Limit minus use; pages of files that nobody uses now can be taken back, so they count as free."""
    try:
        most, now = int(limit.read_text("ascii")), int(used.read_text("ascii"))  # "max" is no number: no limit
        entries = dict(line.split() for line in statistics.read_text("ascii").splitlines())
    except (OSError, ValueError):
        return None
    inactive = int(entries.get("inactive_file", entries.get("total_inactive_file", 0)))
    return max(0, most - now + inactive)


def choose_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda`` on the command line.

    Raises:
        UserError: ``cuda`` without a CUDA device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device cuda: {without_cuda()}, or use --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def without_cuda() -> str:
    """Why torch has no CUDA device, and what to do about it."""
    if torch.backends.cuda.is_built():
        return "torch finds no CUDA device; check the driver with nvidia-smi"
    return "torch was built without CUDA; install a build with it"


def usable_processors() -> int:
    """Processors this process may use; fewer than the machine has under taskset or in a container."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
