"""``python -m cachedlrm.simulate``: what caches of several sizes would do on the user's ids, without training.

Runs the planner and the policy of a training run over its stream of ids and prints the miss-ratio curve: hits, rows and
bytes moved, and the time that moving them takes over a link.
"""

import sys

from cachedlrm.base.program import end_program, run_program, say, start_program

if __name__ == "__main__":
    start_program()

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import aligned
from cachedlrm.base.units import format_bytes
from cachedlrm.data.open import open_dataset
from cachedlrm.options.checks import check_options
from cachedlrm.options.command_line import SIZES, parse_options
from cachedlrm.options.config import (
    BatchOptions,
    CacheOptions,
    DataOptions,
    ModelOptions,
    Options,
    ReferenceOptions,
    RunOptions,
)
from cachedlrm.options.optimisation import OptimisationOptions
from cachedlrm.options.profiles import with_profiles
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.torchrec import in_its_words
from cachedlrm.options.types import Bytes, Flag, Names, Positive, Ratios, option_group
from cachedlrm.plan.simulation import HIT_MARGIN, Curve, CurvePoint, miss_ratio_curve


@option_group("Simulation", 0)
@dataclass(frozen=True)
class Simulation:
    """Options of ``python -m cachedlrm.simulate`` itself."""

    cache_ratios: Ratios = (0.01, 0.02, 0.05, 0.1, 0.2)
    """Sizes of the caches to simulate, as shares of all rows, joined by commas."""
    steps: Positive | None = None
    """Steps to simulate; epochs repeat or end early to match. Default: --nepochs epochs."""
    link_bandwidth: Bytes = 12 * 10**9
    """Bytes a second between device and store, for the time that moving rows takes. Default: 12GB."""
    device_type: Literal["cpu", "cuda"] | None = None
    """What kind of device the caches are for; device profiles say it. Default: cpu."""
    device_memory: Bytes | None = None
    """Bytes of the device's memory (4GiB), to mark caches that do not fit; device profiles say it."""
    device_reserved: Bytes | None = None
    """Bytes of --device-memory that driver, display and libraries keep. Default: none."""
    json: Flag = False
    """Print JSON instead of a table."""
    profile: Names = ()
    """Values from a run's TOML file, or from a packaged one by name, as for training; the command line overrides them.
    Left out are the tables store, inference and run (but for steps), and the size of the cache."""

    @property
    def device_limit(self) -> int | None:
        """Bytes that the described device leaves for a run; None unless its memory is given."""
        return None if self.device_memory is None else max(0, self.device_memory - (self.device_reserved or 0))


@Parameter(name="*")
@dataclass(frozen=True)
class SimulationCommand:
    """The command line of ``python -m cachedlrm.simulate``: `Simulation`, and the options that plans depend on."""

    simulation: Simulation = field(default_factory=Simulation)
    model: ModelOptions = field(default_factory=ModelOptions)
    batches: BatchOptions = field(default_factory=BatchOptions)
    data: DataOptions = field(default_factory=DataOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)


_SIMULATION_HELP = """What caches of several sizes would do on the ids of a run, without training: the miss-ratio curve.

Example: python -m cachedlrm.simulate --data npy:DIR --policy lru --cache-ratios 0.01,0.05 --report-min
"""


def parse_simulation(arguments: Sequence[str]) -> tuple[Options, Simulation]:
    """Options of the run to simulate, and of the simulation.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    command, given = parse_options(SimulationCommand(), arguments, "python -m cachedlrm.simulate", _SIMULATION_HELP)
    command, _ = with_profiles(command, command.simulation.profile, given | SIZES)
    cache = command.cache
    for name in sorted(SIZES):
        if (value := getattr(cache, name)) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} {value} is the size of one cache; give --cache-ratios, a list, instead"
            )
    options = Options(
        model=command.model,
        batches=command.batches,
        data=command.data,
        reference=command.reference,
        optimisation=command.optimisation,
        cache=cache,
        run=RunOptions(device="cpu", steps=command.simulation.steps),
    )
    check_options(options)
    return options, command.simulation


def main(arguments: Sequence[str]) -> int:
    """Simulates as the arguments say; the exit status: 0 done, 2 the user's input is wrong, 130 interrupted."""
    return run_program(
        lambda _: simulate(arguments),
        interrupted="interrupted; nothing was written",
        worded=partial(in_its_words, arguments),
    )


def simulate(arguments: Sequence[str]) -> None:
    """From arguments to a curve on standard output.

    Raises:
        UserError: the input is wrong.
    """
    options, simulation = parse_simulation(arguments)
    dataset = open_dataset(options.data.data, None, data_request(options))
    resolved = resolve(options, dataset, torch.device(simulation.device_type or "cpu"))
    started = time.perf_counter()
    curve = miss_ratio_curve(resolved, dataset, simulation.cache_ratios)
    seconds = time.perf_counter() - started
    bandwidth, limit = simulation.link_bandwidth, simulation.device_limit
    enough = curve.recommended(limit)
    if simulation.json:
        document = {
            "data": options.data.data,
            "policy": options.cache.policy,
            "steps": curve.num_steps,
            "table_rows": curve.table_rows,
            "touched_rows": curve.touched_rows,
            "device_limit_bytes": limit,
            "recommended_slots": None if enough is None else enough.cache_slots,
            "link_bytes_per_s": bandwidth,
            "seconds": seconds,
            "points": [as_json(point, curve.num_steps, bandwidth) for point in curve.points],
        }
        for line in json.dumps(document, indent=2, allow_nan=False).splitlines():
            say(line, sys.stdout)
        return
    for line in [*table(curve, bandwidth, limit).splitlines(), *_advice(curve, limit)]:
        say(line, sys.stdout)
    lookups = curve.points[0].counters.lookups
    say(
        f"{options.data.data}, {options.cache.policy}: {curve.num_steps:,} steps, {lookups:,} lookups in {seconds:.1f} "
        f"s, {lookups * len(curve.points) / seconds / 1e6:.1f} M lookups/s over all sizes",
        sys.stdout,
    )


def as_json(point: CurvePoint, num_steps: int, link_bandwidth: int) -> dict[str, float | int | None]:
    """One size of cache, with the keys of ``report.json`` where they mean the same."""
    return {
        "cache_ratio": point.ratio,
        "cache_slots": point.cache_slots,
        "device_bytes": point.device_bytes,
        **point.counters.as_json(),
        "moved_rows_min": point.counters.moved_rows_min or None,
        "link_ms": link_ms(point, num_steps, link_bandwidth),
    }


def link_ms(point: CurvePoint, num_steps: int, link_bandwidth: int) -> float:
    """Milliseconds a step that fetches and write-backs take over a link, one after the other."""
    moved = point.counters.fetched_bytes + point.counters.written_back_bytes
    return moved / max(1, num_steps) / link_bandwidth * 1e3


def _advice(curve: Curve, limit: int | None) -> list[str]:
    """The share of the rows that the ids touch, and the size of cache to recommend."""
    touched, enough = curve.touched_rows, curve.recommended(limit)
    advice = "recommended: none of these, as none fits"
    if enough is not None:
        fitting = "" if limit is None else " of those that fit"
        advice = (
            f"recommended: --gpu-cache-ratio {enough.ratio:g}, the smallest within {HIT_MARGIN * 100:g} point of the "
            f"best hits{fitting}"
        )
    return [
        f"the ids touch {touched:,} of {curve.table_rows:,} rows ({touched / curve.table_rows:.2%}): they cannot judge "
        "larger caches, which longer runs may need",
        advice,
    ]


def table(curve: Curve, link_bandwidth: int, limit: int | None) -> str:
    """The curve for people; rows and bytes are per step. Marks caches that take more than ``limit`` bytes."""
    steps = max(1, curve.num_steps)
    has_min = any(point.counters.moved_rows_min for point in curve.points)
    header = ["cache", "slots", "hits", "unique hits", "created", "fetched", "written back", "moved"]
    rows = [[*header, *(["of MIN"] if has_min else []), f"ms at {link_bandwidth / 1e9:g} GB/s", ""]]
    enough = curve.recommended(limit)
    for point in curve.points:
        counters = point.counters
        cells = [
            f"{point.ratio:.2%}",
            f"{point.cache_slots:,}",
            f"{counters.hit_ratio:.2%}",
            f"{counters.unique_hit_ratio:.2%}",
            *(
                f"{rows_moved / steps:,.1f}"
                for rows_moved in (counters.first_touch_rows, counters.fetched_rows, counters.written_back_rows)
            ),
            format_bytes((counters.fetched_bytes + counters.written_back_bytes) // steps),
        ]
        if has_min:
            cells.append("-" if counters.moved_of_min is None else f"{counters.moved_of_min:.3f}")
        marks = {
            "recommended": point is enough,
            "does not fit": limit is not None and point.device_bytes > limit,
            "more than is touched": point.cache_slots > curve.touched_rows,
        }
        words = ", ".join(mark for mark, holds in marks.items() if holds)
        rows.append([*cells, f"{link_ms(point, curve.num_steps, link_bandwidth):.3f}", words])
    return aligned(rows)


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
