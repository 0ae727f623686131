"""The command line of a run: its options, profiles below them, and those of the run that ``--resume`` goes on with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import as_utf8
from cachedlrm.options.checks import check_options
from cachedlrm.options.config import Options
from cachedlrm.options.parsing import mistake, parse
from cachedlrm.options.profiles import read_profile, toml_value, with_profiles, with_values
from cachedlrm.options.torchrec import translate
from cachedlrm.options.types import may_change

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HELP = """Train a deep learning recommendation model whose embedding tables exceed the device.

Example: python -m cachedlrm.train --gpu-cache-ratio 0.05
"""

SIZES = {"gpu_cache_ratio", "gpu_cache_rows", "gpu_budget"}
"""Options that decide how many rows are kept; a new one replaces all that a run was started with."""

_Command = TypeVar("_Command", bound="DataclassInstance")


def parse_command_line(arguments: Sequence[str]) -> Options:
    """Options from a command line.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    options, given = parse_options(Options(), arguments, "python -m cachedlrm.train", _HELP)
    options, given = with_profiles(options, options.run.profile, given)
    if options.run.resume is not None:
        options = _resumed(options.run.resume, options, given)
    elif options.run.start_from is not None:
        options = _started(options.run.start_from, options, given)
    check_options(options)
    return options


def parse_options(
    nothing: _Command, arguments: Sequence[str], program: str, help_text: str
) -> tuple[_Command, set[str]]:
    """The dataclass ``nothing`` with the values that ``arguments`` give, and the fields they give.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    defaults, arguments, *_ = translate(arguments)
    for argument in arguments:
        try:
            as_utf8(argument)
        except UnicodeError as error:  # config.toml cannot hold it
            raise mistake(f"{argument!r} is not valid UTF-8; rename what it names") from error
    kind = type(nothing)

    def collect(*, options: Annotated[kind, Parameter(name="*")] = nothing) -> _Command:  # type: ignore[valid-type]
        return options

    command = parse([*defaults, *arguments], program, help_text, collect, refused=_NOT_CARRIED)
    return command, {argument.split("=")[0].lstrip("-").replace("-", "_") for argument in arguments}


def _resumed(run_dir: Path, options: Options, given: set[str]) -> Options:
    """The options of the run in ``run_dir`` with those that are ``given`` over them."""
    config = run_dir / "config.toml"
    if not config.is_file():
        raise UserError(f"--resume {run_dir} holds no run (config.toml is missing); start it without --resume")
    before, values = read_profile(config, Options)
    options = with_values(options, values, given, SIZES)
    for group in dataclasses.fields(Options):
        for field in dataclasses.fields(getattr(options, group.name)):
            then, now = (getattr(getattr(side, group.name), field.name) for side in (before, options))
            if then != now and not may_change(field):
                raise UserError(
                    f"{_with_value(field.name, now)}: the run in {run_dir} was started with "
                    f"{_with_value(field.name, then)}; drop the option, or start another run without --resume"
                )
    return options


_NOT_OF_ANOTHER_DAY = {
    "arch_embedding_size", "lr_policy", "lr_num_warmup_steps", "lr_decay_start_step", "lr_num_decay_steps", "lr_end",
    "lr_power", "cuda_graphs",
}  # fmt: skip
"""Options that a run with ``--start-from`` does not take over: tables may grow, and schedules begin anew."""


def _started(run_dir: Path, options: Options, given: set[str]) -> Options:
    """The options with those of model, optimizer and folding that are not ``given`` from the run in ``run_dir``."""
    config = run_dir / "config.toml"
    if not config.is_file():
        raise UserError(f"--start-from {run_dir} holds no run (config.toml is missing); name the directory of one")
    before, _ = read_profile(config, Options)
    values = {**vars(before.model), **vars(before.optimisation), "max_ind_range": before.batches.max_ind_range}
    taken = {name: value for name, value in values.items() if name not in _NOT_OF_ANOTHER_DAY}
    return with_values(options, taken, given, set())


def _with_value(name: str, value: object) -> str:
    option = f"--{name.replace('_', '-')}"
    return f"no {option}" if value is None else f"{option} {toml_value(value)}"


_LOADER = "data is read by the prefetch thread; see --prefetch-depth"
_CRITEO = "run python -m cachedlrm.prepare criteo and use --data npy:DIR, or --data criteo:PATH for a first look"
_PROCESSES = "one process trains on one device"
_TIMES = "times of every phase are in metrics.jsonl and report.md"
_NOT_CARRIED = {
    "use-gpu": "say --device cuda, or --device auto where there may be none",
    "data-set": _CRITEO,
    "raw-data-file": _CRITEO,
    "processed-data-file": _CRITEO,
    "data-randomize": "--shuffle trains each epoch in an order of its own",
    "data-sub-sample-rate": "all samples of the files are trained",
    "dataset-multiprocessing": _CRITEO,
    "memory-map": "npy files always are",
    "num-workers": _LOADER,
    "test-num-workers": _LOADER,
    "print-precision": "report.json and metrics.jsonl hold full precision",
    "sync-dense-params": _PROCESSES,
    "local-rank": _PROCESSES,
    "dist-backend": _PROCESSES,
    "print-time": _TIMES,
    "print-wall-time": _TIMES,
    "enable-profiling": "--profile-trace N traces N steps with torch's profiler",
    "plot-compute-graph": "it only ends the reference with a message",
    "tensor-board-filename": "--tensorboard writes curves for TensorBoard into the run directory",
    "mlperf-logging": "--mlperf-grad-accum-iter works without it",
    "mlperf-acc-threshold": "a run may end by its AUC: --stop-at-auc",
    "mlperf-auc-threshold": "say --stop-at-auc",
    "mlperf-bin-loader": _CRITEO,
    "mlperf-bin-shuffle": "--shuffle trains each epoch in an order of its own",
}
"""Options of facebookresearch/dlrm that are not carried over, and why."""
