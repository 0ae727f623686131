"""The options of a run: typed, and read from the command line and from profiles (TOML).

The dataclasses below are the whole definition: their fields are the options, their docstrings the help. `cyclopts`
turns them into a command line; a profile has a table per group and keys spelled like the options.
"""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
import tomli_w
from cyclopts import Group, Parameter, validators

from cachedlrm import __version__
from cachedlrm.errors import UserError


def _sizes(_: type, tokens: Sequence[cyclopts.Token]) -> tuple[int, ...]:
    """``512-256-1``"""
    parts = tokens[0].value.split("-")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f'"{tokens[0].value}" is not whole numbers from 1 on, joined by dashes')
    return tuple(int(part) for part in parts)


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def _bytes(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    """``2GiB``, ``500 MB``, ``1.5GiB`` or a plain number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", tokens[0].value.strip().lower())
    if not match or match[2] not in _UNITS or not (size := int(float(match[1]) * _UNITS[match[2]])):
        raise ValueError(f'"{tokens[0].value}" is not a size such as 2GiB, 512MiB, 1GB or 1000000')
    return size


def _number(**bounds: float) -> Parameter:
    return Parameter(validator=validators.Number(**bounds))


def _finite(_: type, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError("Must be a finite number.")


def _whole(_: type, tokens: Sequence[cyclopts.Token]) -> int:
    """cyclopts alone would round 3.5."""
    if not re.fullmatch(r"[+-]?\d+", tokens[0].value.strip()):
        raise ValueError(f'"{tokens[0].value}" is not a whole number')
    return int(tokens[0].value)


Sizes = Annotated[tuple[int, ...] | None, Parameter(converter=_sizes, n_tokens=1, negative=())]
Bytes = Annotated[int | None, Parameter(converter=_bytes, n_tokens=1)]
Flag = Annotated[bool, Parameter(negative=())]
Whole = Annotated[int, Parameter(converter=_whole, n_tokens=1)]
Count = Annotated[Whole, _number(gte=0)]
Positive = Annotated[Whole, _number(gte=1)]


def _group(title: str, order: int) -> Parameter:
    return Parameter(name="*", group=Group(title, sort_key=order))


@_group("Model", 1)
@dataclass(frozen=True)
class ModelOptions:
    """Options of facebookresearch/dlrm; left open, they follow the data."""

    arch_sparse_feature_size: Positive | None = None
    """Embedding dimension. Default: 16."""
    arch_embedding_size: Sizes = None
    """Rows of each table, joined by dashes. Default: the data's; for zipf Criteo-Kaggle's 26 tables."""
    arch_mlp_bot: Sizes = None
    """Layer sizes of the bottom MLP from the dense features to the embedding dimension. Default: N-512-256-64-16."""
    arch_mlp_top: Sizes = None
    """Layer sizes of the top MLP after the interaction; its input size is derived. Default: 512-256-1."""
    arch_interaction_op: Literal["dot", "cat"] = "dot"
    """How the bottom MLP's output and the pooled embeddings meet."""
    arch_interaction_itself: Flag = False
    """Include each vector's product with itself in the dot interaction."""
    loss_function: Literal["mse", "bce"] | None = None
    """Loss, averaged over the batch. Default: bce."""


@_group("Batches", 2)
@dataclass(frozen=True)
class BatchOptions:
    """Options of facebookresearch/dlrm, for every source of data."""

    mini_batch_size: Positive | None = None
    """Samples of a step. Default: 2048; 1024 for flights."""
    num_batches: Count = 0
    """Steps of an epoch at most; 0: all."""
    nepochs: Count = 1
    """Passes over the data."""
    numpy_rand_seed: Count = 123
    """Seed of everything: initial parameters and generated data."""
    max_ind_range: Whole = -1
    """Fold ids: id modulo this, in every table; -1: as they are."""
    test_freq: Whole | None = None
    """Steps between evaluations, and one at the end; -1: never. Default: ten evaluations a run."""
    test_mini_batch_size: Whole = -1
    """Samples of an evaluation step; -1: as in training."""
    print_freq: Positive = 50
    """Steps between lines of metrics; 1 also records every loss in report.json."""


@_group("Data", 3)
@dataclass(frozen=True)
class DataOptions:
    """Where samples come from."""

    data: str = "zipf"
    """zipf (generated, Criteo-Kaggle-shaped; zipf:samples=N,hot=H), flights (real records, optional package), or
    npy:DIR (*_dense.npy, *_sparse.npy, *_labels.npy; memory-mapped)."""
    test_data: str | None = None
    """Held-out samples, spelled like --data. Default: the data's own, where it has some."""


@_group("Optimisation", 4)
@dataclass(frozen=True)
class OptimisationOptions:
    """Optimizers of rows and dense parameters."""

    optimizer: Literal["sgd", "adagrad", "rwsadagrad", "adam"] | None = None
    """Lazy on rows: only rows of the batch move (adam as torch.optim.SparseAdam). Default: adagrad."""
    learning_rate: Annotated[float | None, Parameter(validator=(validators.Number(gte=0), _finite))] = None
    """Of rows and dense parameters. Default: 0.01; 0.003 for flights."""


@_group("Cache", 5)
@dataclass(frozen=True)
class CacheOptions:
    """What the device holds."""

    gpu_cache_ratio: Annotated[float | None, _number(gt=0, lte=1)] = None
    """Rows kept on the device, as a share of all rows. Default: 1 without --gpu-cache-rows and --gpu-budget."""
    gpu_cache_rows: Positive | None = None
    """Rows kept on the device."""
    gpu_budget: Bytes = None
    """The most bytes on the device (2GiB), everything included; alone, it decides the rows kept."""
    policy: Literal["lru", "lfu", "lrfu", "static", "lookahead"] = "lrfu"
    """Which rows to evict. static reads all ids once before training, lookahead --lookahead batches ahead."""
    lookahead: Positive = 200
    """Batches known ahead to --policy lookahead."""
    prefetch_depth: Annotated[Whole, _number(gte=0, lte=64)] = 2
    """Batches prepared before they are needed; 0: each when it is needed, in the training thread."""


@_group("Store", 6)
@dataclass(frozen=True)
class StoreOptions:
    """Where rows are that the device does not hold."""

    store: Literal["host"] = "host"
    """host: in memory, for rows touched so far."""
    host_budget: Bytes = None
    """The most bytes of rows in memory (16GiB). Default: the memory that is free."""
    init: Literal["counter"] = "counter"
    """Initial weights. counter: a pure function of seed and row."""


@_group("Run", 7)
@dataclass(frozen=True)
class RunOptions:
    """How to run and what to leave behind."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda if there is one."""
    steps: Count | None = None
    """Steps to train; epochs repeat or end early as it takes. 0: build, initialise, report, stop."""
    run_dir: Path | None = None
    """Directory for config.toml, metrics.jsonl, the reports and the final state. Default: runs/DATE-TIME."""
    ui: Literal["auto", "live", "plain", "off"] = "auto"
    """auto: live on a terminal, plain lines elsewhere."""
    save_predictions: Flag = False
    """Write the last evaluation's predictions to predictions.npy."""
    threads: Positive | None = None
    """Threads of torch's operators. Default: the processors this process may use."""
    deterministic: Flag = False
    """Only deterministic operators, or an error (matters on CUDA)."""
    profile: str | None = None
    """Values from a TOML file, or from a packaged one by name; the command line goes before them."""


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """All options of a run. None: left open, decided by the data."""

    model: ModelOptions = field(default_factory=ModelOptions)
    batches: BatchOptions = field(default_factory=BatchOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimisation: OptimisationOptions = field(default_factory=OptimisationOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    store: StoreOptions = field(default_factory=StoreOptions)
    run: RunOptions = field(default_factory=RunOptions)


_HELP = """Train a deep learning recommendation model whose embedding tables exceed the device.

Example: python -m cachedlrm.train --gpu-cache-ratio 0.05
"""


def parse_command_line(arguments: Sequence[str]) -> Options:
    """Options from a command line.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    options = _parse(arguments)
    if options.run.profile is not None:
        given = {argument.split("=")[0] for argument in arguments}
        path = _find_profile(options.run.profile)
        from_profile = [token for token in _profile_arguments(path) if token.split("=")[0] not in given]
        options = _parse([*from_profile, *arguments])
    return _check(options)


def load_options(path: Path) -> Options:
    """Options from a TOML file alone.

    Raises:
        UserError: the file is missing or wrong.
    """
    return _check(_parse(_profile_arguments(path)))


def to_toml(options: Options) -> str:
    """A profile that gives equal options; those left open are left out, and so is ``--profile``."""
    groups: dict[str, dict[str, Any]] = {}
    for group in dataclasses.fields(options):
        values = dataclasses.asdict(getattr(options, group.name))
        groups[group.name] = {
            name.replace("_", "-"): _toml_value(value)
            for name, value in values.items()
            if value is not None and name != "profile"
        }
    return tomli_w.dumps(groups)


def _toml_value(value: object) -> object:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return str(value) if isinstance(value, Path) else value


def _parse(arguments: Sequence[str]) -> Options:
    app = cyclopts.App(name="python -m cachedlrm.train", help=_HELP, version=__version__, result_action="return_value")

    @app.default
    def collect(*, options: Annotated[Options, Parameter(name="*")] = Options()) -> Options:
        return options

    try:
        options = app(list(arguments), exit_on_error=False, print_error=False)
    except cyclopts.UnusedCliTokensError as error:
        raise UserError(
            f"unexpected argument {(error.unused_tokens or ['?'])[0]!r}; options start with two dashes"
        ) from error
    except cyclopts.CycloptsError as error:
        raise UserError(" ".join(str(error).split())) from error
    if not isinstance(options, Options):
        raise SystemExit(0)  # --help or --version was printed
    return options


def _check(options: Options) -> Options:
    """What no single option shows."""
    cache, model = options.cache, options.model
    if cache.gpu_cache_ratio is not None and cache.gpu_cache_rows is not None:
        raise UserError("--gpu-cache-ratio and --gpu-cache-rows exclude each other; give one of them")
    bot, dim = model.arch_mlp_bot, model.arch_sparse_feature_size
    if bot is not None and len(bot) < 2:
        raise UserError("--arch-mlp-bot needs at least two sizes: the dense features and the embedding dimension")
    if bot is not None and dim is not None and bot[-1] != dim:
        raise UserError(f"--arch-mlp-bot ends in {bot[-1]} but --arch-sparse-feature-size is {dim}; make them equal")
    if model.arch_mlp_top is not None and model.arch_mlp_top[-1] != 1:
        raise UserError(f"--arch-mlp-top ends in {model.arch_mlp_top[-1]}; it must end in 1, one prediction a sample")
    for name in ("max_ind_range", "test_freq", "test_mini_batch_size"):
        value = getattr(options.batches, name)
        if value is not None and (value == 0 or value < -1):
            raise UserError(f"--{name.replace('_', '-')} {value} is neither -1 nor a whole number from 1 on")
    return options


def _profile_arguments(path: Path) -> list[str]:
    """A profile's values spelled as a command line, each as one ``--option=value``."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check --profile or the run directory") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    tables.pop("description", None)
    groups = {
        group.name: [option.name.replace("_", "-") for option in dataclasses.fields(group.default_factory)]  # type: ignore[arg-type]
        for group in dataclasses.fields(Options)
    }
    arguments = []
    for table, values in tables.items():
        if table not in groups or not isinstance(values, dict):
            raise UserError(f"{path}: unknown table [{table}]; there are {', '.join(groups)}")
        for key, value in values.items():
            if key not in groups[table] or key == "profile":
                nearest = difflib.get_close_matches(key, groups[table], 1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(groups[table])}"
                raise UserError(f"{path}: [{table}] {key} is not an option; {hint}")
            if not isinstance(value, str | int | float):
                raise UserError(f"{path}: [{table}] {key} must be a string, a number or a boolean")
            arguments.append(f"--{key}={value}")
    try:
        _parse(arguments)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return arguments


def _find_profile(name: str) -> Path:
    """The file called ``name``, or the packaged profile."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    here = Path(__file__).parent  # installed, profiles/ is inside the package; in a checkout beside it
    packaged = sorted([*here.glob("profiles/*/*.toml"), *here.parent.glob("profiles/*/*.toml")])
    for path in packaged:
        if path.stem == name:
            return path
    raise UserError(f"--profile {name}: no such profile; there are {', '.join(path.stem for path in packaged)}")
