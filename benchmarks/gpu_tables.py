"""What ``benchmarks/gpu_check.py`` measured, as Markdown. A result that has a ``note`` was not measured."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

Measured = Mapping[str, Any]

RESIDENT, ALL_CACHED = "one tensor, plain PyTorch", "cache, 100 %"
PREDECESSOR_BYTES = 3.75e9  # CachedEmbedding's published figure for Criteo 1TB at 1 %, batch 16,384, on an A100
LEAST_OF_RESIDENT, MOST_TERABYTE_BYTES = 0.95, 1.5e9

_WAYS = {"to_device": "host to device", "to_host": "device to host"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [" | ".join(head), "|".join(["---", *["---:"] * (len(head) - 1)]), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _not_measured(name: str, result: Measured, columns: int) -> list[str]:
    return [name, str(result["note"]), *[""] * (columns - 2)]


def _table_of(results: Mapping[str, Measured], head: Sequence[str], cells: Callable[[Measured], list[str]]) -> str:
    """A line for each result: its name and ``cells`` of it."""
    return table(
        head,
        [
            _not_measured(name, result, len(head)) if "note" in result else [name, *cells(result)]
            for name, result in results.items()
        ],
    )


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and the range of several."""
    text = format(median(values), form)
    return text if len(values) == 1 else f"{text} ({format(min(values), form)}-{format(max(values), form)})"


def ratios(rounds: Sequence[Mapping[str, Measured]], name: str, base: str) -> list[float]:
    """Rate of ``name`` by that of ``base``, of each round that has both."""
    pairs = [(results.get(name, {}), results.get(base, {})) for results in rounds]
    return [one["rate"] / other["rate"] for one, other in pairs if "rate" in one and "rate" in other]


def rates(rounds: Sequence[Mapping[str, Measured]]) -> str:
    """Speed of each place of the rows, medians over rounds."""
    head = ["rows on the device", "samples/s", "of one tensor", "step ms", "wait ms", "between steps ms"]
    head += ["hit ratio", "rows fetched", "rows evicted", "device peak", "mean loss"]
    rows = []
    for name, first in rounds[0].items():
        results = [one for one in (results.get(name, {}) for results in rounds) if "rate" in one]
        if not results:
            rows.append(_not_measured(name, first, len(head)))
            continue
        one, shares = results[0], ratios(rounds, name, RESIDENT)
        times = [
            _spread([result[key] for result in results], ".2f") if key in one else "-"
            for key in ("step_ms", "wait_ms", "between_ms")
        ]
        cache = ["-", "-", "-"]
        if "hit_ratio" in one:
            cache = [f"{one['hit_ratio']:.2%}", f"{one['fetched_rows']:,}", f"{one['evicted_rows']:,}"]
        rate = _spread([result["rate"] for result in results], ",.0f")
        of_resident = _spread(shares, ".3f") if shares else "-"
        peak, loss = _mib(one["device_peak_bytes"]), f"{one['loss_mean']:.6f}"
        rows.append([name, rate, of_resident, *times, *cache, peak, loss])
    losses = {one["loss_mean"] for results in rounds for one in results.values() if "hit_ratio" in one}
    said = {0: "none", 1: "equal, bit for bit"}.get(len(losses), f"{len(losses)} different ones")
    return f"{table(head, rows)}\n\nMean losses of the cached runs: {said}."


def link(found: Measured) -> str:
    """What the link does, and what copies of staging buffers do."""
    if "note" in found:
        return str(found["note"])
    rows = [[name, *(f"{speeds[way] / 1e9:.2f}" for way in _WAYS)] for name, speeds in found["rates"].items()]
    return table(["copies of", *(f"{name} GB/s" for name in _WAYS.values())], rows)


def copies(results: Mapping[str, Measured], found: Measured) -> str:
    """What runs moved, while they moved it and over all of their time."""
    head = ["run", "way", "moved MiB", "copies", "KiB a copy"]
    head += ["GB/s of a copy", "of the link's peak", "GB/s over the run"]
    peaks = next(iter(found["rates"].values())) if "rates" in found else {}
    rows = []
    for name, result in results.items():
        if "note" in result:
            continue
        for way, words in _WAYS.items():
            moved = result["copies"][way]
            num_bytes, seconds = moved["bytes"], moved["seconds"]
            if not num_bytes:
                rows.append([name, words, "0", *["-"] * (len(head) - 3)])
                continue
            rate = num_bytes / seconds if seconds else 0.0
            of_peak = f"{rate / peaks[way]:.0%}" if way in peaks else "-"
            size = f"{num_bytes / 2**20:,.1f}", f"{moved['copies']:,}", f"{num_bytes / moved['copies'] / 1024:,.1f}"
            speed = f"{rate / 1e9:.2f}", of_peak, f"{num_bytes / result['training_s'] / 1e9:.3f}"
            rows.append([name, words, *size, *speed])
    return table(head, rows) if rows else "No run moved anything."


def terabyte(results: Mapping[str, Measured]) -> str:
    """Bytes of the Criteo-1TB shape on the device."""
    head = ["run", "slab", "accounted", "device peak", "of 3.75 GB", "allocator", "host"]
    head += ["samples/s", "hits", "evicted"]

    def cells(result: Measured) -> list[str]:
        parts, peak = result["device_bytes_breakdown"], result["device_peak_bytes"]
        sizes = *map(_gb, (parts["slab"], sum(parts.values()), peak)), f"{peak / PREDECESSOR_BYTES:.2f}"
        others = _gb(result["reserved_bytes"]), _gb(result["host_peak_bytes"])
        return [*sizes, *others, f"{result['rate']:,.0f}", f"{result['hit_ratio']:.2%}", f"{result['evicted_rows']:,}"]

    return _table_of(results, head, cells)


def cards(results: Mapping[str, Measured]) -> str:
    """Peaks against the budget."""
    head = ["card and job", "budget", "accounted", "device peak", "of the budget", "allocator", "in use at the end"]

    def cells(result: Measured) -> list[str]:
        budget, peak = result["device_limit_bytes"], result["device_peak_bytes"]
        accounted = sum(result["device_bytes_breakdown"].values())
        ends = _mib(result["reserved_bytes"]), _mib(result["used_bytes"])
        return [_mib(budget), _mib(accounted), _mib(peak), f"{peak / budget:.1%}", *ends]

    return _table_of(results, head, cells)


def targets(
    rounds: Sequence[Mapping[str, Measured]], large: Mapping[str, Measured], emulated: Mapping[str, Measured]
) -> str:
    """Each target, what was measured, and whether it is met."""
    rows = []
    for base in (RESIDENT, ALL_CACHED):
        shares = ratios(rounds, "cache, 5 %", base)
        measured = f"{median(shares):.3f}" if shares else None
        met = bool(shares) and median(shares) >= LEAST_OF_RESIDENT
        rows.append(_target(f"5 % cache at {LEAST_OF_RESIDENT} or more of: {base}", measured, met))
    for name, result in large.items():
        peak = result.get("device_peak_bytes")
        words = f"Criteo 1TB, 1 %, under {_gb(MOST_TERABYTE_BYTES)}: {name}"
        rows.append(_target(words, _gb(peak) if peak else None, bool(peak) and peak < MOST_TERABYTE_BYTES))
    for name, result in emulated.items():
        peak, budget = result.get("device_peak_bytes"), result.get("device_limit_bytes")
        measured = f"{_mib(peak)} of {_mib(budget)}" if peak and budget else None
        rows.append(_target(f"peak within the budget: {name}", measured, bool(peak and budget) and peak <= budget))
    return table(["target", "measured", "met"], rows)


def _target(words: str, measured: str | None, met: bool) -> list[str]:
    return [words, measured or "not measured", "-" if measured is None else ("yes" if met else "**no**")]


def _mib(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"


def _gb(num_bytes: float | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 1e9:.2f} GB"
