"""Options from a command line and from profiles (TOML), and back to TOML.

`cyclopts` turns the dataclasses of `cachedlrm.options.config` into a command line; a profile has a table per group and
keys spelled like the options.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union, get_args, get_origin

import cyclopts
import tomli_w
from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import as_argument, as_utf8
from cachedlrm.options.checks import check_options
from cachedlrm.options.config import (
    OptimisationOptions,
    Options,
)
from cachedlrm.options.parsing import make_app, mistake, read_arguments
from cachedlrm.options.types import Budget, Bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_HELP = """Train a deep learning recommendation model whose embedding tables exceed the device.

Example: python -m cachedlrm.train --gpu-cache-ratio 0.05
"""


_EITHER = {"--gpu-cache-ratio", "--gpu-cache-rows"}
"""They exclude each other, so that one on the command line also overrides the other in a profile."""

SIZES = {*_EITHER, "--gpu-budget"}
"""All that decides how many rows are kept."""


_Command = TypeVar("_Command", bound="DataclassInstance")


def parse_command_line(arguments: Sequence[str]) -> Options:
    """Options from a command line.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    options, given = _parse(arguments), given_options(arguments)
    options, given = with_profiles(options, options.run.profile, given)
    if options.run.resume is not None:
        return _resumed(options.run.resume, options, given)
    return check_options(options)


def given_options(arguments: Sequence[str]) -> set[str]:
    """The options among arguments, spelled with dashes."""
    return {argument.split("=")[0].replace("_", "-") for argument in arguments}


def with_profiles(command: _Command, names: Sequence[str], given: set[str]) -> tuple[_Command, set[str]]:
    """The values of profiles below those that are ``given``, and all options given then.

    A later profile goes before an earlier one.
    """
    for name in reversed(names):
        profile = _read_profile(_find_profile(name))
        command = _with_values(command, profile, given, _EITHER)
        given = given | profile.given
    return command, given


def _with_values(command: _Command, profile: "_Profile", given: set[str], either: set[str]) -> _Command:
    """``command`` with a profile's values of options not ``given``; one of ``either`` stands for all of them."""
    if given & either:
        given = given | either
    values = {
        name: value
        for group in dataclasses.fields(profile.options)
        for name, value in vars(getattr(profile.options, group.name)).items()
        if (option := _as_option(name)) in profile.given and option not in given
    }
    groups = {}
    for field in dataclasses.fields(command):
        group = getattr(command, field.name)
        groups[field.name] = dataclasses.replace(
            group, **{name: values[name] for name in vars(group) if name in values}
        )
    return dataclasses.replace(command, **groups)


def _resumed(run_dir: Path, options: Options, given: set[str]) -> Options:
    """The options of the run in ``run_dir`` with those that are ``given`` over them."""
    config = run_dir / "config.toml"
    if not config.is_file():
        raise UserError(f"--resume {run_dir} holds no run (config.toml is missing); start it without --resume")
    profile = _read_profile(config)
    before, options = profile.options, check_options(_with_values(options, profile, given, SIZES))
    for group in dataclasses.fields(Options):
        for field in dataclasses.fields(getattr(options, group.name)):
            then, now = (getattr(getattr(side, group.name), field.name) for side in (before, options))
            if then != now and field.name in _DECIDES_BITS.get(group.name, (field.name,)):
                raise UserError(
                    f"{_with_value(field.name, now)}: the run in {run_dir} was started with "
                    f"{_with_value(field.name, then)}; drop the option, or start another run without --resume"
                )
    return options


_FREE: tuple[str, ...] = ()
_DECIDES_BITS: dict[str, tuple[str, ...]] = {
    "batches": ("mini_batch_size", "micro_batch_size", "num_batches", "numpy_rand_seed", "max_ind_range"),
    "data": ("data",),
    "optimisation": tuple({field.name for field in dataclasses.fields(OptimisationOptions)} - {"cuda_graphs"}),
    "cache": _FREE,
    "store": ("init",),
    "run": _FREE,
    "hardware": _FREE,
    "inference": ("load_model",),
}
"""Options of each group that a resumed run keeps; all of those of a group that is missing here."""


def _as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_value(name: str, value: object) -> str:
    return f"no {_as_option(name)}" if value is None else f"{_as_option(name)} {_toml_value(value)}"


def load_options(path: Path) -> Options:
    """Options from a TOML file alone.

    Raises:
        UserError: the file is missing or wrong.
    """
    return _read_profile(path).options


def to_toml(options: Options) -> str:
    """A profile that gives equal options."""
    return tomli_w.dumps(spell(options))


def spell(options: Options) -> dict[str, dict[str, Any]]:
    """The values of each group as a profile has them, by option; those left open are left out.

    So are ``--profile``, ``--run-dir`` and ``--resume``: a repeated run needs a directory of its own.
    """
    groups: dict[str, dict[str, Any]] = {}
    for group in dataclasses.fields(options):
        values = dataclasses.asdict(getattr(options, group.name))
        groups[group.name] = {
            name.replace("_", "-"): _toml_value(value)
            for name, value in values.items()
            if value is not None and name not in ("profile", "run_dir", "resume")
        }
    return groups


def _toml_value(value: object) -> object:
    if isinstance(value, tuple):
        return "-".join(format(Decimal(repr(number)), "f") for number in value)  # without exponents and their dashes
    return as_utf8(str(value)) if isinstance(value, str | Path) else value


def _parse(arguments: Sequence[str]) -> Options:
    return parse_as(Options(), arguments, "python -m cachedlrm.train", _HELP)


def parse_as(nothing: _Command, arguments: Sequence[str], program: str, help_text: str) -> _Command:
    """The dataclass ``nothing`` with the values that ``arguments`` give."""
    _refuse_odd_text(arguments)
    kind = type(nothing)
    app = make_app(program, help_text)

    @app.default
    def collect(*, options: Annotated[kind, Parameter(name="*")] = nothing) -> _Command:  # type: ignore[valid-type]
        return options

    try:
        return read_arguments(app, arguments, kind)
    except cyclopts.UnusedCliTokensError as error:
        stray = (error.unused_tokens or ["?"])[0]
        raise UserError(f"unexpected argument {stray!r}; options start with two dashes") from error
    except cyclopts.UnknownOptionError as error:
        name = error.token.keyword or error.token.value
        why = _NOT_CARRIED.get(name.split("=")[0].lstrip("-").replace("_", "-"))
        if why:
            raise mistake(f"{name} of facebookresearch/dlrm is not carried over: {why}") from error
        known = [name for names in _option_names(kind).values() for name in names]
        hint = _nearest(name, known, "--") or "--help lists the options"
        raise mistake(f"unknown option {name}; {hint}") from error
    except cyclopts.CycloptsError as error:
        raise mistake(str(error)) from error


def _refuse_odd_text(arguments: Sequence[str]) -> None:
    """Empty values, which are usually a shell variable that is not set, and bytes that config.toml cannot hold."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before.startswith("--") and "=" not in before and not argument:
            raise mistake(f"{before} needs a value, not an empty one")
        if argument.startswith("--") and argument.find("=") == len(argument) - 1:
            raise mistake(f"{argument[:-1]} needs a value, not an empty one")
        try:
            as_utf8(argument)
        except UnicodeError as error:
            raise mistake(f"{argument!r} is not valid UTF-8; rename what it names") from error


_LOOP = "the loop here evaluates by AUC and ends after --nepochs or --steps"
_LOADER = "data is read by the prefetch thread; see --prefetch-depth"
_CRITEO = "run python -m cachedlrm.prepare criteo and use --data npy:DIR, or --data criteo:PATH for a first look"
_PROCESSES = "one process trains on one device"
_TIMES = "times of every phase are in metrics.jsonl and report.md"
_NOT_CARRIED = {
    "use-gpu": "say --device cuda, or --device auto where there may be none",
    "data-set": _CRITEO,
    "raw-data-file": _CRITEO,
    "processed-data-file": _CRITEO,
    "data-randomize": "samples keep the order of their files",
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
    "mlperf-acc-threshold": _LOOP,
    "mlperf-auc-threshold": _LOOP,
    "mlperf-bin-loader": _CRITEO,
    "mlperf-bin-shuffle": _CRITEO,
}
"""Options of facebookresearch/dlrm that are refused, and why."""


def _option_names(kind: type[_Command]) -> dict[str, list[str]]:
    """The options of each group, spelled with dashes."""
    names: dict[str, list[str]] = {}
    for group in dataclasses.fields(kind):
        if group.default_factory is Options:  # those of a run, beside a command's own
            names |= _option_names(Options)
        else:
            names[group.name] = list(_annotations(group))
    return names


def _annotations(group: dataclasses.Field[Any]) -> dict[str, Any]:
    """The options of one group, spelled with dashes, and their annotations."""
    options = dataclasses.fields(group.default_factory)  # type: ignore[arg-type]
    return {option.name.replace("_", "-"): option.type for option in options}


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``did you mean --steps?``, or nothing."""
    word = name.lstrip("-").replace("_", "-").lower()
    matches = difflib.get_close_matches(word, known, 1, cutoff=0.7)
    return f"did you mean {prefix}{matches[0]}?" if matches else ""


@dataclasses.dataclass(frozen=True)
class _Profile:
    """What a TOML file says: the options it gives, spelled with dashes, and all options with their values."""

    given: set[str]
    options: Options


def _read_profile(path: Path) -> _Profile:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise mistake(f"cannot read {path}: {error.strerror}; check --profile or the run directory") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets within brackets
        raise mistake(f"{path} is not valid TOML: {error}") from error
    if not isinstance(tables.pop("description", ""), str):
        raise mistake(f"{path}: description must be a string; put quotes around it")
    groups = {group.name: _annotations(group) for group in dataclasses.fields(Options)}
    arguments: dict[tuple[str, str], str] = {}
    for table, values in tables.items():
        if table not in groups or not isinstance(values, dict):
            raise mistake(f"{path}: unknown table [{table}]; there are {', '.join(groups)}")
        for key, value in values.items():
            if (table, key) == ("run", "profile"):
                raise mistake(f"{path}: [run] profile: a profile takes no other one; copy the other's values here")
            if key not in groups[table]:
                hint = _nearest(key, groups[table]) or f"there are {', '.join(groups[table])}"
                raise mistake(f"{path}: [{table}] {key} is not an option; {hint}")
            types, words = _toml_types(groups[table][key])
            if type(value) not in types:  # isinstance would take True for a number
                raise mistake(f"{path}: [{table}] {key} must be {words}, not {value!r}")
            arguments[table, key] = as_argument(f"--{key}={value}")
    return _Profile({f"--{key}" for _, key in arguments}, _profile_options(path, arguments))


_TOML_TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
}


def _toml_types(annotation: Any) -> tuple[tuple[type, ...], str]:
    """The types a profile may give an option, and what to call them."""
    if annotation == Bytes:
        return (int, str), "a whole number or a string such as 2GiB"
    if annotation == Budget:
        return (int, str), "a whole number, a string such as 2GiB, or auto"
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return _TOML_TYPES.get(annotation, ((str,), "a string"))


def _profile_options(path: Path, arguments: Mapping[tuple[str, str], str]) -> Options:
    """The options of a profile's values, by table and key; an error names the file and, if one is wrong alone, these.

    Table by table: `cyclopts` looks at every option for each argument, which for all of a run's takes a tenth of a
    second.
    """
    try:
        groups = {}
        for group in dataclasses.fields(Options):
            values = [argument for (table, _), argument in arguments.items() if table == group.name]
            groups[group.name] = parse_as(group.default_factory(), values, "", "")  # type: ignore[operator]
        return check_options(Options(**groups))
    except UserError as together:
        for (table, key), argument in arguments.items():
            try:
                check_options(_parse([argument]))
            except UserError as alone:
                if str(alone) == str(together):  # an option may also be wrong only because it is alone here
                    raise mistake(f"{path}: [{table}] {key}: {alone}") from alone
        raise mistake(f"{path}: {together}") from together


def _find_profile(name: str) -> Path:
    """The file called ``name``, or the packaged profile."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    here = Path(__file__).parents[1]
    inside = here / "profiles"  # where it is installed; in a checkout profiles/ is beside the package
    folder = inside if inside.is_dir() else here.parent / "profiles"
    packaged = [path for kind in ("workloads", "devices") for path in sorted(folder.glob(f"{kind}/*.toml"))]
    for path in packaged:
        if path.stem == name:
            return path
    raise mistake(f"--profile {name}: no such profile; there are {', '.join(path.stem for path in packaged)}")
