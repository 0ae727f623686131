"""The options of a run: typed, and read from the command line and from profiles (TOML).

The dataclasses below are the whole definition: their fields are the options, their docstrings the help. `cyclopts`
turns them into a command line; a profile has a table per group and keys spelled like the options.
"""

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import cyclopts
import tomli_w
from cyclopts import Group, Parameter

from cachedlrm import __version__
from cachedlrm.errors import UserError
from cachedlrm.units import parse_bytes, parse_sizes, parse_whole


def _converter(parse: Callable[[str], Any]) -> Callable[[type, Sequence[cyclopts.Token]], Any]:
    def convert(_: type, tokens: Sequence[cyclopts.Token]) -> Any:
        if len(tokens) > 1:  # cyclopts refuses this itself, but not for tuples
            raise ValueError(f"{tokens[-1].keyword} is given more than once")
        return parse(tokens[0].value)

    return convert


def _must_be(allowed: str, test: Callable[[float], bool]) -> Parameter:
    def check(_: type, value: float | None) -> None:
        if value is not None and not test(value):
            raise ValueError(f"Must be {allowed}.")

    return Parameter(validator=check)


Sizes = Annotated[
    tuple[int, ...] | None,
    Parameter(converter=_converter(parse_sizes), n_tokens=1, negative=(), metavar="N-N-..."),
]
Bytes = Annotated[int | None, Parameter(converter=_converter(parse_bytes), n_tokens=1, metavar="BYTES")]
Flag = Annotated[bool, Parameter(negative=())]
Whole = Annotated[int, Parameter(converter=_converter(parse_whole), n_tokens=1)]  # cyclopts alone would round 3.5
Count = Annotated[Whole, _must_be("0 or more", lambda count: count >= 0)]
Positive = Annotated[Whole, _must_be("1 or more", lambda count: count >= 1)]
PositiveOrOff = Annotated[Whole, _must_be("-1, or 1 or more", lambda count: count == -1 or count >= 1)]
Depth = Annotated[Whole, _must_be("from 0 to 64", lambda depth: 0 <= depth <= 64)]
Ratio = Annotated[float, _must_be("above 0 and at most 1", lambda ratio: 0 < ratio <= 1)]
Rate = Annotated[float, _must_be("0 or more, and finite", lambda rate: 0 <= rate < math.inf)]


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
    max_ind_range: PositiveOrOff = -1
    """Fold ids: id modulo this, in every table; -1: as they are."""
    test_freq: PositiveOrOff | None = None
    """Steps between evaluations, and one at the end; -1: never. Default: ten evaluations a run."""
    test_mini_batch_size: PositiveOrOff = -1
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
    learning_rate: Rate | None = None
    """Of rows and dense parameters. Default: 0.01; 0.003 for flights."""


@_group("Cache", 5)
@dataclass(frozen=True)
class CacheOptions:
    """What the device holds."""

    gpu_cache_ratio: Ratio | None = None
    """Rows kept on the device, as a share of all rows. Default: 1 without --gpu-cache-rows and --gpu-budget."""
    gpu_cache_rows: Positive | None = None
    """Rows kept on the device."""
    gpu_budget: Bytes = None
    """The most bytes on the device (2GiB), everything included; alone, it decides the rows kept."""
    policy: Literal["lru", "lfu", "lrfu", "static", "lookahead"] = "lrfu"
    """Which rows to evict. static reads all ids once before training, lookahead --lookahead batches ahead."""
    lookahead: Positive = 200
    """Batches known ahead to --policy lookahead."""
    prefetch_depth: Depth = 2
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
    """Values from a TOML file, or from a packaged one by name; the command line overrides them."""


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


_EITHER = {"--gpu-cache-ratio", "--gpu-cache-rows"}
"""They exclude each other, so that one on the command line also overrides the other in a profile."""


def parse_command_line(arguments: Sequence[str]) -> Options:
    """Options from a command line.

    Raises:
        UserError: an option or value is wrong; names it and what is allowed.
        SystemExit: after ``--help`` or ``--version``.
    """
    options = _parse(arguments)
    if options.run.profile is not None:
        given = {argument.split("=")[0].replace("_", "-") for argument in arguments}
        if given & _EITHER:
            given |= _EITHER
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
    _refuse_odd_text(arguments)
    app = cyclopts.App(name="python -m cachedlrm.train", help=_HELP, version=__version__, result_action="return_value")

    @app.default
    def collect(*, options: Annotated[Options, Parameter(name="*")] = Options()) -> Options:
        return options

    try:
        options = app(list(arguments), exit_on_error=False, print_error=False)
    except cyclopts.UnusedCliTokensError as error:
        stray = (error.unused_tokens or ["?"])[0]
        raise UserError(f"unexpected argument {stray!r}; options start with two dashes") from error
    except cyclopts.UnknownOptionError as error:
        name = error.token.keyword or error.token.value
        known = [name for names in _option_names().values() for name in names]
        hint = _nearest(name, known, "--") or "--help lists the options"
        raise _mistake(f"unknown option {name}; {hint}") from error
    except cyclopts.CycloptsError as error:
        raise _mistake(str(error)) from error
    if not isinstance(options, Options):
        raise SystemExit(0)  # --help or --version was printed
    return options


def _refuse_odd_text(arguments: Sequence[str]) -> None:
    """Empty values, which are usually a shell variable that is not set, and bytes that config.toml cannot hold."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before.startswith("--") and "=" not in before and not argument:
            raise _mistake(f"{before} needs a value, not an empty one")
        if argument.startswith("--") and argument.find("=") == len(argument) - 1:
            raise _mistake(f"{argument[:-1]} needs a value, not an empty one")
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise _mistake(f"{argument!r} is not valid UTF-8")


def _option_names() -> dict[str, list[str]]:
    """The options of each group, spelled with dashes."""
    return {group.name: list(_annotations(group)) for group in dataclasses.fields(Options)}


def _annotations(group: dataclasses.Field[Any]) -> dict[str, Any]:
    """The options of one group, spelled with dashes, and their annotations."""
    options = dataclasses.fields(group.default_factory)  # type: ignore[arg-type]
    return {option.name.replace("_", "-"): option.type for option in options}


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``did you mean --steps?``, or nothing."""
    word = name.lstrip("-").replace("_", "-").lower()
    matches = difflib.get_close_matches(word, known, 1, cutoff=0.7)
    return f"did you mean {prefix}{matches[0]}?" if matches else ""


def _mistake(message: str) -> UserError:
    """One line, whatever was quoted in it."""
    return UserError(" ".join(message.split()))


def _check(options: Options) -> Options:
    """What no single option shows, and what reads better with the sizes themselves."""
    cache, model = options.cache, options.model
    if cache.gpu_cache_ratio is not None and cache.gpu_cache_rows is not None:
        both = f"--gpu-cache-ratio {cache.gpu_cache_ratio} and --gpu-cache-rows {cache.gpu_cache_rows}"
        raise UserError(f"{both} exclude each other; give one of them")
    bot, dim = model.arch_mlp_bot, model.arch_sparse_feature_size
    if bot is not None and len(bot) < 2:
        raise UserError(
            f"--arch-mlp-bot {bot[0]} needs at least two sizes: the dense features and the embedding dimension"
        )
    if bot is not None and dim is not None and bot[-1] != dim:
        raise UserError(f"--arch-mlp-bot ends in {bot[-1]} but --arch-sparse-feature-size is {dim}; make them equal")
    if model.arch_mlp_top is not None and model.arch_mlp_top[-1] != 1:
        raise UserError(f"--arch-mlp-top ends in {model.arch_mlp_top[-1]}; it must end in 1, one prediction a sample")
    return options


def _profile_arguments(path: Path) -> list[str]:
    """A profile's values spelled as a command line, each as one ``--option=value``."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _mistake(f"cannot read {path}: {error.strerror}; check --profile or the run directory") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _mistake(f"{path} is not valid TOML: {error}") from error
    if not isinstance(tables.pop("description", ""), str):
        raise _mistake(f"{path}: description must be a string")
    groups = {group.name: _annotations(group) for group in dataclasses.fields(Options)}
    arguments = {}
    for table, values in tables.items():
        if table not in groups or not isinstance(values, dict):
            raise _mistake(f"{path}: unknown table [{table}]; there are {', '.join(groups)}")
        for key, value in values.items():
            if key not in groups[table] or key == "profile":
                hint = _nearest(key, groups[table]) or f"there are {', '.join(groups[table])}"
                raise _mistake(f"{path}: [{table}] {key} is not an option; {hint}")
            types, words = _toml_types(groups[table][key])
            if type(value) not in types:  # isinstance would take True for a number
                raise _mistake(f"{path}: [{table}] {key} must be {words}, not {value!r}")
            arguments[f"[{table}] {key}"] = f"--{key}={value}"
    _refuse_profile(path, arguments)
    return list(arguments.values())


_TOML_TYPES: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
}


def _toml_types(annotation: Any) -> tuple[tuple[type, ...], str]:
    """The types a profile may give an option, and what to call them."""
    if annotation == Bytes:
        return (int, str), "a whole number or a string such as 2GiB"
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = get_args(annotation)[0]
    return _TOML_TYPES.get(annotation, ((str,), "a string"))


def _refuse_profile(path: Path, arguments: Mapping[str, str]) -> None:
    """Refuses values that are wrong or do not fit each other; names the file and, if one alone is wrong, its place."""
    try:
        _check(_parse(list(arguments.values())))
    except UserError as together:
        for place, argument in arguments.items():
            try:
                _check(_parse([argument]))
            except UserError as alone:
                raise _mistake(f"{path}: {place}: {alone}") from alone
        raise _mistake(f"{path}: {together}") from together


def _find_profile(name: str) -> Path:
    """The file called ``name``, or the packaged profile."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    here = Path(__file__).parent
    inside = here / "profiles"  # where it is installed; in a checkout profiles/ is beside the package
    folder = inside if inside.is_dir() else here.parent / "profiles"
    packaged = [path for kind in ("workloads", "devices") for path in sorted(folder.glob(f"{kind}/*.toml"))]
    for path in packaged:
        if path.stem == name:
            return path
    raise _mistake(f"--profile {name}: no such profile; there are {', '.join(path.stem for path in packaged)}")
