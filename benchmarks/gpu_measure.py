"""One measurement in a process of its own, for ``benchmarks/gpu_check.py``: what it found, as a line of JSON.

    python benchmarks/gpu_measure.py {cached,resident,link} CARD_BYTES [OPTIONS OF cachedlrm.train]

The memory fraction and the peak are a process's own. CARD_BYTES is what torch's allocator may take of the device, as on
a smaller card; 0: all of it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from resident import opened, synchronize, train_resident

from cachedlrm.cache.counters import PHASES, PREPARING_PHASES
from cachedlrm.cache.prefetch import Prefetcher
from cachedlrm.cache.streams import CopyStream
from cachedlrm.cache.transfer import _StagingBuffer
from cachedlrm.plan.tiers import MOST_STAGING_ROWS
from cachedlrm.report.metrics import Snapshot
from cachedlrm.report.record import report_json
from cachedlrm.run.job import build_job
from cachedlrm.run.progress import Progress

PEAK_BYTES = 256 << 20  # of the copies that measure the link
STAGING_COLUMNS = (32, 128)  # records of dim 16 with adagrad, and of dim 128 with sgd
_REPEATS = 20
_TRAINING_PHASES = [phase for phase in PHASES if phase not in PREPARING_PHASES]

Measured = dict[str, Any]


class CopyTimes:
    """Bytes and time of every copy between a staging buffer's halves, while `installed`.

    On CUDA a copy lies between two events on the copy stream, read when the device is done; on the CPU the halves are
    one tensor and nothing is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._copies: dict[str, list[tuple[int, Any, Any]]] = {"to_device": [], "to_host": []}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Times the copies of all caches."""
        plain = {name: getattr(_StagingBuffer, name) for name in self._copies}
        for name, copy in plain.items():
            setattr(_StagingBuffer, name, self._timed(copy, self._copies[name]))
        try:
            yield
        finally:
            for name, copy in plain.items():
                setattr(_StagingBuffer, name, copy)

    def _timed(
        self, copy: Callable[[_StagingBuffer, int], None], copies: list[tuple[int, Any, Any]]
    ) -> Callable[[_StagingBuffer, int], None]:
        def timed(buffer: _StagingBuffer, rows: int) -> None:
            start = self._now()
            copy(buffer, rows)
            copies.append((rows * buffer.host.shape[1] * 4, start, self._now()))

        return timed

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def totals(self) -> dict[str, Measured]:
        """Copies, bytes and seconds each way; on CUDA the device must have been synchronised."""
        return {
            name: {
                "copies": len(copies),
                "bytes": sum(num_bytes for num_bytes, _, _ in copies),
                "seconds": sum(_seconds_between(start, end) for _, start, end in copies),
            }
            for name, copies in self._copies.items()
        }


def _seconds_between(start: Any, end: Any) -> float:
    return end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3


def cached(arguments: Sequence[str]) -> Measured:
    """Trains as `cachedlrm.train` does, without display, evaluation and files; its report, and in addition:

    - of the second half of the steps: ``rate``, samples a second; ``step_ms``; ``wait_ms``; and ``between_ms``, what a
      step takes beside its phases, when the device has nothing to do, as the host prepares, or reads, too slowly.
    - ``copies``: see `CopyTimes.totals`.
    """
    options, dataset = opened(arguments)
    with tempfile.TemporaryDirectory() as folder, closing(build_job(options, dataset, Path(folder))) as job:
        progress, copies = Progress(job), CopyTimes(job.device)
        job.inform_policies(Path(folder), lambda share: None)
        cache, depth = job.trainer.cache, options.cache.prefetch_depth
        assert depth is not None
        prepared = cache.prepare(job.schedule.batches())
        snapshots = []
        with (
            copies.installed(),
            closing(Prefetcher(prepared, depth, cache.trained, lambda index: False)) as batches,
            progress.running(),
        ):
            for batch in batches:
                progress.received(batch)
                progress.trained(batch, job.trainer.step(batch))
                if progress.due:
                    snapshots.append(progress.snapshot())  # synchronises
                progress.waits()
        return {
            **json.loads(report_json(progress.report(arguments))),
            **_second_half(snapshots),
            "copies": copies.totals(),
            **_memory(job.device),
        }


def _second_half(snapshots: Sequence[Snapshot]) -> Measured:
    """See `cached`; of a run with a single snapshot all of it."""
    half = len(snapshots) // 2
    steps, samples, seconds = snapshots[-1].step, snapshots[-1].samples, snapshots[-1].elapsed_s
    if half:
        middle = snapshots[half - 1]
        steps, samples, seconds = steps - middle.step, samples - middle.samples, seconds - middle.elapsed_s
    phases = {
        phase: sum(snapshot.phase_ms[phase] * snapshot.recent_steps for snapshot in snapshots[half:]) / steps
        for phase in _TRAINING_PHASES
    }
    step_ms = seconds / steps * 1e3
    return {
        "rate": samples / seconds,
        "step_ms": step_ms,
        "wait_ms": phases["wait"],
        "between_ms": step_ms - sum(phases.values()),
    }


def resident(arguments: Sequence[str]) -> Measured:
    """The same figures of `train_resident`, as far as it has them."""
    options, _ = opened(arguments)
    run = train_resident(arguments)
    device = torch.device(options.run.device or "cpu")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "rate": run.samples_per_s,
        "loss_mean": mean(run.losses),
        "losses": run.losses,
        "device_peak_bytes": peak,
        **_memory(device),
    }


def _memory(device: torch.device) -> Measured:
    """What torch's allocator held at most, and what all processes used on the device at the end."""
    if device.type == "cpu":
        return {"reserved_bytes": None, "used_bytes": None}
    free, total = torch.cuda.mem_get_info()
    return {"reserved_bytes": torch.cuda.max_memory_reserved(), "used_bytes": total - free}


def link(device: torch.device, num_bytes: int = PEAK_BYTES, staging_rows: int = MOST_STAGING_ROWS) -> Measured:
    """Bytes a second between host and device.

    Args:
        device: where to and from.
        num_bytes: of one copy that measures the link's peak, between pinned memory and the device.
        staging_rows: rows of a staging buffer, whose copies are measured as the cache issues them.
    """
    on_cuda = device.type == "cuda"
    host = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=on_cuda)
    image = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    rates = {
        f"{num_bytes >> 20} MiB, pinned": {
            "to_device": num_bytes / _seconds(lambda: image.copy_(host, non_blocking=True), device),
            "to_host": num_bytes / _seconds(lambda: host.copy_(image, non_blocking=True), device),
        }
    }
    stream = CopyStream(device)
    for columns in STAGING_COLUMNS:
        buffer = _StagingBuffer(staging_rows, columns, device)
        with stream():
            to_device = _seconds(lambda buffer=buffer: buffer.to_device(staging_rows), device)
            to_host = _seconds(lambda buffer=buffer: buffer.to_host(staging_rows), device)
        size = buffer.host.nbytes
        rates[f"a staging buffer of {staging_rows:,} rows of {4 * columns} B"] = {
            "to_device": size / to_device,
            "to_host": size / to_host,
        }
    name = torch.cuda.get_device_name(device) if on_cuda else "cpu"
    total = torch.cuda.get_device_properties(device).total_memory if on_cuda else None
    return {"device": name, "device_bytes": total, "rates": rates}


def _seconds(copy: Callable[[], object], device: torch.device) -> float:
    """Of one copy on the current stream, the mean of several in a row; on CUDA by the device's clock."""
    copy()  # what happens only once
    synchronize(device)
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(_REPEATS):
            copy()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / _REPEATS
    started = time.perf_counter()
    for _ in range(_REPEATS):
        copy()
    return (time.perf_counter() - started) / _REPEATS


def main() -> None:
    """Measures and prints."""
    kind, card_bytes, *arguments = sys.argv[1:]
    if int(card_bytes):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, int(card_bytes) / total))
    if kind == "link":
        found = link(torch.device("cuda", torch.cuda.current_device()))
    else:
        found = {"cached": cached, "resident": resident}[kind](arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
