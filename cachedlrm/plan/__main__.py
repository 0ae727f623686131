"""``python -m cachedlrm.plan``: what fits where on a machine, and what to expect of a run, without training.

Takes the options of ``python -m cachedlrm.train``; what it says of them is what that run allocates.
"""

import sys

from cachedlrm.base.program import end_program, run_program, say, start_program

if __name__ == "__main__":
    start_program()

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.machine import choose_device
from cachedlrm.base.text import aligned
from cachedlrm.base.units import format_bytes
from cachedlrm.cache.planner import BYTES_PER_SLOT
from cachedlrm.cache.shares import store_rows
from cachedlrm.data.open import open_dataset
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.checks import check_options
from cachedlrm.options.command_line import parse_options
from cachedlrm.options.config import Options
from cachedlrm.options.profiles import with_profiles
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.options.resolved import Resolved
from cachedlrm.options.torchrec import in_its_words
from cachedlrm.options.types import Flag, Positive, option_group
from cachedlrm.plan.device_tier import CacheRequest, largest_batch
from cachedlrm.plan.prediction import Expectation, Prediction, predict
from cachedlrm.plan.simulation import HIT_MARGIN
from cachedlrm.plan.tiers import Tiers, size_tiers
from cachedlrm.store.record_log import SPARE_SEGMENTS, USED_SHARE, segment_bytes


@option_group("Plan", 0)
@dataclass(frozen=True)
class Planning:
    """Options of ``python -m cachedlrm.plan`` itself."""

    sample: Positive | None = None
    """Batches whose ids the prediction reads, from the first on. Default: 200, or fewer where they have more than 50
    million lookups, but at least 20."""
    json: Flag = False
    """Print JSON instead of tables."""


@Parameter(name="*")
@dataclass(frozen=True)
class PlanCommand:
    """The command line of ``python -m cachedlrm.plan``: `Planning`, and the options of the run to plan."""

    plan: Planning = field(default_factory=Planning)
    options: Options = field(default_factory=Options)


_PLAN_HELP = """What fits where: the bytes of each tier, and the hits, rows moved and speed to expect. Trains nothing.

Takes the options of a run. Example: python -m cachedlrm.plan --profile criteo-kaggle --profile rtx3050-4gb
"""


def parse_plan(arguments: Sequence[str]) -> tuple[Options, Planning]:
    """Options of the run to plan, and of the plan.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    command, given = parse_options(PlanCommand(), arguments, "python -m cachedlrm.plan", _PLAN_HELP)
    options, _ = with_profiles(command.options, command.options.run.profile, given)
    if (run := options.run.resume) is not None:
        raise UserError(f"--resume {run} is for training; plan the run by --profile {run / 'config.toml'}")
    check_options(options)
    return options, command.plan


@dataclass(frozen=True)
class RunPlan:
    """The memory and the work of a run to come.

    Attributes:
        options: resolved.
        tiers: sizes of the device and the host.
        prediction: what to expect.
    """

    options: Resolved
    tiers: Tiers
    prediction: Prediction

    @property
    def touched_bytes(self) -> int:
        """Bytes of the records of all rows that the run is expected to touch."""
        return min(self.tiers.table_bytes, int(self.prediction.chosen.first_touch_rows * self._record_bytes))

    @property
    def _record_bytes(self) -> float:
        return self.tiers.table_bytes / self.tiers.step.num_rows

    @property
    def needs_disk(self) -> bool:
        """Whether the records of touched rows exceed the host's share, so that ``--store lmdb`` has to hold them."""
        return self.options.store.store == "host" and self.touched_bytes > self.tiers.host.records

    @property
    def disk_bytes(self) -> dict[str, int]:
        """Bytes of the run's files: the log of rows, if there is one, with what is dead in it, and the final state."""
        log = self.options.store.store == "lmdb" or self.needs_disk or self.options.run.checkpoint_every is not None
        layouts = [group.layout for group in self.tiers.step.groups]
        spare = sum((SPARE_SEGMENTS + 1) * segment_bytes(layout.record_bytes) for layout in layouts)  # one is filling
        return {
            "log": int(USED_SHARE * self.touched_bytes) + spare if log else 0,
            "final_state": self.touched_bytes,
        }

    def as_json(self) -> dict[str, object]:
        """All of it, with the keys of ``report.json`` where they mean the same."""
        options, tiers, prediction = self.options, self.tiers, self.prediction
        device, host = tiers.device, tiers.host
        return {
            "table_rows": device.table_rows,
            "table_bytes": tiers.table_bytes,
            "row_dtype": options.optimisation.row_dtype,
            "row_state_dtype": options.optimisation.row_state_dtype,
            "cache_slots": device.quota_slots,
            "temporary_slots": device.num_slots - device.quota_slots,
            "policy": options.cache.policy,
            "prefetch_depth": options.cache.prefetch_depth,
            "mini_batch_size": options.batches.mini_batch_size,
            "micro_batch_size": options.batches.micro_batch_size,
            "steps": prediction.chosen.num_steps,
            "device_limit_bytes": tiers.device_limit,
            "device_bytes_breakdown": device.breakdown,
            "host_bytes": {
                "maps": host.maps,
                "slots": host.slots,
                "batches": host.batches,
                "pinned": host.pinned,
                "shuffled": host.shuffled,
                "records_limit": host.records,
            },
            "disk_bytes": self.disk_bytes,
            "expected_record_bytes": self.touched_bytes,
            "needs_disk": self.needs_disk,
            "prediction": asdict(prediction.of_run),
            "step_ms_at_least": prediction.step_ms,
            "miss_ratio_curve": [asdict(cache) for cache in prediction.by_size],
        }


def main(arguments: Sequence[str]) -> int:
    """Plans as the arguments say; the exit status: 0 done, 2 the user's input is wrong, 130 interrupted."""
    return run_program(
        lambda _: _run(arguments),
        interrupted="interrupted; nothing was written",
        worded=partial(in_its_words, arguments),
    )


def _run(arguments: Sequence[str]) -> None:
    options, own = parse_plan(arguments)
    plan = make_plan(options, own.sample)
    text = json.dumps(plan.as_json(), indent=2, allow_nan=False) if own.json else describe(plan, arguments)
    for line in text.splitlines():
        say(line, sys.stdout)


def make_plan(options: Options, sampled_batches: int | None = None) -> RunPlan:
    """Plans a run.

    Args:
        options: as the user gave them. The device that they name or describe need not be there.
        sampled_batches: batches whose ids are read for the prediction; None: see `predict`.

    Raises:
        UserError: the input is wrong, or the run does not fit; says what to change.
    """
    dataset = open_dataset(options.data.data, options.data.test_data, data_request(options))
    described = options.hardware.device_type if options.run.device == "auto" else None
    name = described or options.run.device
    device = torch.device("cuda") if name == "cuda" else choose_device(name)
    resolved = resolve(options, dataset, device, is_here=described is None)
    architecture = build_architecture(resolved.model, resolved.optimisation)
    tiers = size_tiers(resolved, architecture, dataset, device)
    plan = RunPlan(resolved, tiers, predict(resolved, dataset, tiers, sampled_batches))
    if plan.needs_disk:  # what it will advise must fit, too
        _check_store(plan)
    return plan


def _check_store(plan: RunPlan) -> None:
    """Makes sure that a store on disk has room enough in memory.

    Raises:
        UserError: it has not; says what to change.
    """
    host = plan.tiers.host
    try:
        store_rows(plan.tiers.step.groups, host.records, spills=True)
    except UserError as error:
        if plan.options.store.host_budget is not None:
            raise
        raise UserError(
            f"of {format_bytes(host.free)} of host memory that are free, slots, maps and all else leave "
            f"{format_bytes(host.records)} for records, too little for --store lmdb; lower --gpu-cache-ratio, "
            "--gpu-cache-rows or --gpu-budget"
        ) from error


def describe(plan: RunPlan, arguments: Sequence[str]) -> str:
    """The plan for people.

    Args:
        plan: the plan.
        arguments: of the command.
    """
    sections = [_device(plan), _host(plan), _disk(plan), _step(plan), _expectations(plan), _curve(plan)]
    command = _train_command(arguments, plan.needs_disk)
    return "\n\n".join([*sections, f"to train it:\n  {command}"])


def _exact(num_bytes: int) -> str:
    return f"{num_bytes:,} B"


def _device(plan: RunPlan) -> str:
    device, limit = plan.tiers.device, plan.tiers.device_limit
    temporary = device.num_slots - device.quota_slots
    share = device.quota_slots / device.table_rows
    slots = f"{device.quota_slots:,} of {device.table_rows:,} rows ({share:.2%})"
    if plan.options.optimisation.row_dtype != "fp32":
        slots += f" in {plan.options.optimisation.row_dtype}"
    purposes = {
        "slab": slots + (f" and {temporary:,} temporary slots" if temporary else ""),
        "staging": "pinned copies on their way" if device.breakdown["staging"] else "none on the CPU",
        "working_set": "rows and ids of the batches in preparation, gradients",
        "dense": "parameters, gradients and optimizer state of the layers",
        "activations": "of a training or an evaluation step, whichever needs more"
        + (", and of CUDA graphs" if plan.tiers.step.cuda_graphs else ""),
    }
    rows = [(f"  {name.replace('_', ' ')}", _exact(n), purposes[name]) for name, n in device.breakdown.items()]
    rows.append(("  left", _exact(limit - device.total_bytes), f"of {format_bytes(limit)}"))
    where = "GPU memory"
    if plan.options.run.device == "cpu":
        where = "part of the host's memory"
    elif not torch.cuda.is_available():
        where += ", planned without a GPU here"
    hardware = plan.options.hardware
    if hardware.device_memory is not None and hardware.device_reserved is not None:
        where += f"; of {format_bytes(hardware.device_memory)}, {format_bytes(hardware.device_reserved)} are reserved"
    return f"device ({where})\n{aligned(rows)}"


def _host(plan: RunPlan) -> str:
    host, touched, num_rows = plan.tiers.host, plan.touched_bytes, plan.tiers.step.num_rows
    num_slots = plan.tiers.device.num_slots
    fits = "more than fits; --store lmdb keeps the others on disk" if plan.needs_disk else f"{_exact(touched)} expected"
    rows = [
        ("  maps", _exact(host.maps), f"{host.maps // num_rows} B for each of {num_rows:,} rows"),
        ("  choice of victims", _exact(host.slots), f"{BYTES_PER_SLOT} B for each of {num_slots:,} slots"),
        ("  batches known ahead", _exact(host.batches), f"--policy {plan.options.cache.policy}"),
        ("  pinned buffers", _exact(host.pinned), "copies on their way" if host.pinned else "none on the CPU"),
        *([("  samples that are mixed", _exact(host.shuffled), "--shuffle")] if host.shuffled else []),
        ("  records, at most", _exact(host.records), fits),
    ]
    return f"host ({format_bytes(host.free)} free here)\n{aligned(rows)}"


def _disk(plan: RunPlan) -> str:
    disk = plan.disk_bytes
    rows = [
        (
            "  log of rows, at most",
            _exact(disk["log"]),
            "--store lmdb or --checkpoint-every; dense checkpoints beside" if disk["log"] else "none",
        ),
        ("  final.safetensors", _exact(disk["final_state"]), "rows expected to be touched; dense parameters beside"),
    ]
    return f"disk\n{aligned(rows)}"


def _step(plan: RunPlan) -> str:
    options, tiers = plan.options, plan.tiers
    cache = options.cache
    request = CacheRequest(cache.gpu_cache_ratio, cache.gpu_cache_rows, tiers.device_limit)
    twice = replace(tiers.step, mini_batch_size=2 * tiers.step.mini_batch_size)
    fits = largest_batch(twice, request, tiers.device_limit)
    room = "twice as many fit" if fits == twice.mini_batch_size else f"up to {fits:,} fit whatever their ids"
    if options.batches.micro_batch_size < options.batches.mini_batch_size:
        room = f"{options.batches.micro_batch_size:,} go through the layers at a time; {room}"
    rows = [
        ("  samples", f"{options.batches.mini_batch_size:,}", room),
        ("  prefetch depth", f"{cache.prefetch_depth}", "batches prepared ahead"),
        ("  policy", cache.policy, f"{tiers.window:,} batches known ahead" if cache.policy == "lookahead" else ""),
    ]
    return f"a step\n{aligned(rows)}"


def _expectations(plan: RunPlan) -> str:
    prediction = plan.prediction
    chosen, rate = prediction.chosen, prediction.samples_per_s_at_most
    rows = [
        ("  hit ratio", f"{chosen.hit_ratio:.2%}", "of lookups, first touches counted as misses"),
        ("  rows created a step", f"{chosen.per_step(chosen.first_touch_rows):,.1f}", "on the device, nothing moves"),
        ("  rows fetched a step", f"{chosen.per_step(chosen.fetched_rows):,.1f}", ""),
        ("  rows written back a step", f"{chosen.per_step(chosen.written_back_rows):,.1f}", ""),
        ("  bytes moved a step", f"{chosen.moved_bytes_per_step:,.0f} B", ""),
    ]
    for name, milliseconds in prediction.step_ms.items():
        rows.append((f"  {name}", f"{milliseconds:.3f} ms", "a step at least"))
    if rate is None:
        rows.append(("  samples/s", "-", "name a device by --profile for a bound"))
    else:
        slowest = max(prediction.step_ms, key=prediction.step_ms.__getitem__)
        rows.append(("  samples/s, at most", f"{rate:,.0f}", f"bound by {slowest}; no run reaches it"))
    title = f"expected of {prediction.num_batches:,} batches, from the ids of {prediction.sampled_batches:,}"
    return f"{title}\n{aligned(rows)}"


def _curve(plan: RunPlan) -> str:
    prediction, table_rows = plan.prediction, plan.tiers.device.table_rows
    header = ("  slots", "of all rows", "hits", "moved a step", "")
    rows = [
        (
            f"  {point.cache_slots:,}",
            f"{point.cache_slots / table_rows:.2%}",
            f"{point.hit_ratio:.2%}",
            format_bytes(int(point.moved_bytes_per_step)),
            ", ".join(_marks(point, prediction)),
        )
        for point in prediction.curve
    ]
    sampled, enough = prediction.sampled_rows, prediction.recommended
    seen = f"  the batches read touch {sampled:,} of {table_rows:,} rows ({sampled / table_rows:.2%}): "
    if prediction.sampled_batches == prediction.num_batches:
        seen += "all that this run touches; larger caches matter to longer runs only"
    else:
        seen += "they cannot judge larger caches; --sample reads more batches"
    why = "the largest that fits, as the batches read cannot show that less is enough"
    if prediction.judges(enough):
        why = f"the smallest within {HIT_MARGIN * 100:g} point of the best hits of those that fit"
    advice = f"  recommended: --gpu-cache-rows {enough.cache_slots}, {why}"
    return f"caches of other sizes\n{aligned([header, *rows])}\n{seen}\n{advice}"


def _marks(cache: Expectation, prediction: Prediction) -> list[str]:
    """Remarks on a cache beside its numbers."""
    marks = {
        "<- this run": cache is prediction.chosen,
        "recommended": cache is prediction.recommended,
        "does not fit": not cache.fits,
        "cannot be judged": not prediction.judges(cache),
    }
    return [mark for mark, holds in marks.items() if holds]


def _train_command(arguments: Sequence[str], needs_disk: bool) -> str:
    """The command line that trains what was planned."""
    not_kept = {"--sample": True, "--json": False}  # and whether they take a value
    if needs_disk:
        not_kept["--store"] = True
    kept: list[str] = []
    skips_value = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skips_value:
            skips_value = False
        elif name in not_kept:
            skips_value = not_kept[name] and not equals
        else:
            kept.append(argument)
    store = ["--store", "lmdb"] if needs_disk else []
    return shlex.join(["python", "-m", "cachedlrm.train", *kept, *store])


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
