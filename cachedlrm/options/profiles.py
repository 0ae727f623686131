"""Options in TOML files: profiles, and the ``config.toml`` of a run.

A file has a table for each group of `Options` with keys spelled like the options, and may have a ``description``.
"""

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tomli_w
from cyclopts import Parameter, Token

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import as_argument, as_utf8
from cachedlrm.base.units import LARGEST
from cachedlrm.options.checks import check_options
from cachedlrm.options.config import Options
from cachedlrm.options.parsing import mistake, nearest
from cachedlrm.options.resolved import Resolved

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Command = TypeVar("_Command", bound="DataclassInstance")
_Options = TypeVar("_Options", bound=Options)
Values = Mapping[str, Any]
"""Values of some options, by field: no two groups have a field of the same name."""

_EITHER = {"gpu_cache_ratio", "gpu_cache_rows"}
"""They exclude each other, so that one on the command line also overrides the other in a profile."""


def with_profiles(command: _Command, names: Sequence[str], given: set[str]) -> tuple[_Command, set[str]]:
    """``command`` with the values of profiles for options not ``given``, and all options given then.

    A later profile overrides an earlier one.
    """
    for name in reversed(names):
        _, values = read_profile(_find_profile(name), Options)
        command = with_values(command, values, given, _EITHER)
        given = given | values.keys()
    return command, given


def profile_values(names: Sequence[str]) -> Values:
    """What profiles give, a later one over an earlier one."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= read_profile(_find_profile(name), Options)[1]
    return merged


def with_values(command: _Command, values: Values, given: set[str], either: set[str]) -> _Command:
    """``command`` with values for options not ``given``; one given of ``either`` keeps all of them."""
    names = values.keys() - given - (either if given & either else set())
    groups = {}
    for field in dataclasses.fields(command):
        group = getattr(command, field.name)
        taken = {name: values[name] for name in names & vars(group).keys()}
        groups[field.name] = dataclasses.replace(group, **taken)
    return dataclasses.replace(command, **groups)


def load_options(path: Path) -> Options:
    """Options from a TOML file alone.

    Raises:
        UserError: the file is missing or wrong.
    """
    return read_profile(path, Options)[0]


def load_resolved(path: Path) -> Resolved:
    """The options of a run from its ``config.toml``.

    Raises:
        UserError: the file is missing or wrong, or lacks an option that every run writes.
    """
    return read_profile(path, Resolved)[0]


def read_profile(path: Path, kind: type[_Options]) -> tuple[_Options, Values]:
    """Options from a TOML file, and the values that it gives.

    Raises:
        UserError: the file is missing or wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise mistake(f"cannot read {path}: {error.strerror}; check --profile or the run directory") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, brackets within brackets
        raise mistake(f"{path} is not valid TOML: {error}") from error
    if not isinstance(tables.pop("description", ""), str):
        raise mistake(f"{path}: description must be a string; put quotes around it")
    groups: dict[str, Any] = {group.name: group.type for group in dataclasses.fields(kind)}
    for table, keys in tables.items():
        if table not in groups or not isinstance(keys, dict):
            raise mistake(f"{path}: unknown table [{table}]; there are {', '.join(groups)}")
    try:
        read = {name: _group(f"[{name}]", group, tables.get(name, {})) for name, group in groups.items()}
        for name, group in groups.items():
            for option in dataclasses.fields(group):
                if option.default is dataclasses.MISSING and option.name not in read[name]:
                    key = option.name.replace("_", "-")
                    raise ValueError(f"[{name}] lacks {key}; put back the line that the run wrote")
        options = kind(**{name: group(**read[name]) for name, group in groups.items()})
        check_options(options)
    except (ValueError, UserError) as error:
        raise mistake(f"{path}: {error}") from error
    return options, {name: value for values in read.values() for name, value in values.items()}


def _group(table: str, group: Any, keys: Mapping[str, object]) -> dict[str, Any]:
    """The values of one table by field.

    Raises:
        ValueError: a key is no option, or its value is not one that the option takes.
    """
    options = {option.name.replace("_", "-"): option for option in dataclasses.fields(group)}
    values = {}
    for key, value in keys.items():
        if (table, key) == ("[run]", "profile"):
            raise ValueError("[run] profile: a profile takes no other one; copy the other's values here")
        if key not in options:
            hint = nearest(key, options) or f"there are {', '.join(options)}"
            raise ValueError(f"{table} {key} is not an option; {hint}")
        try:
            values[options[key].name] = _converted(options[key].type, value)
        except ValueError as error:
            raise ValueError(f"{table} {key} = {value!r}: {error}") from error
    return values


_TOML_TYPES: dict[object, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((float, int), "a number"),
    "BYTES": ((int, str), "a whole number or a string such as 2GiB"),
    "BYTES|auto": ((int, str), "a whole number, a string such as 2GiB, or auto"),
    "N|epoch": ((int, str), "a whole number or epoch"),
}
"""Types of values in TOML and words for them, by an option's type or metavar; strings for all others."""


def _converted(annotation: Any, value: Any) -> Any:
    """A value in TOML as the option has it.

    Raises:
        ValueError: it is none that the option takes; says what it takes.
    """
    kind, parameters = _unwrapped(annotation)
    metavar = next((parameter.metavar for parameter in parameters if parameter.metavar), None)
    types, words = _TOML_TYPES.get(metavar) or _TOML_TYPES.get(kind, ((str,), "a string"))
    if type(value) not in types:  # isinstance would take True for a number
        raise ValueError(f"Must be {words}.")
    if isinstance(value, str):
        converters = [parameter.converter for parameter in parameters if callable(parameter.converter)]
        if not value:
            raise ValueError("Must not be empty.")
        if converters:
            value = converters[0](kind, [Token(value=value)])
        elif get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"Must be one of {', '.join(get_args(kind))}.")
        else:
            value = kind(as_argument(value))
    elif kind is not bool and abs(value) > LARGEST and type(value) is int:
        raise ValueError(f"Must be at most {LARGEST}.")
    elif kind is float:
        value = float(value)
    for parameter in parameters:
        for validate in parameter.validator or ():
            validate(kind, value)
    return value


def _unwrapped(annotation: Any) -> tuple[Any, list[Any]]:
    """An option's type without None and without what is said about it, and that."""
    if get_origin(annotation) is Annotated:
        kind, parameters = _unwrapped(annotation.__origin__)
        return kind, [*parameters, *(one for one in annotation.__metadata__ if isinstance(one, Parameter))]
    if get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
        (kind,) = (one for one in get_args(annotation) if one is not NoneType)
        return _unwrapped(kind)
    return annotation, []


def to_toml(options: Options) -> str:
    """A profile that gives equal options."""
    return tomli_w.dumps(spell(options))


def spell(options: Options) -> dict[str, dict[str, Any]]:
    """The values of each group as a profile has them, by option, without those left open.

    ``--profile``, ``--run-dir`` and ``--resume`` are left out too: a repeated run needs a directory of its own.
    """
    return {
        group.name: {
            name.replace("_", "-"): toml_value(value)
            for name, value in vars(getattr(options, group.name)).items()
            if value is not None and name not in ("profile", "run_dir", "resume")
        }
        for group in dataclasses.fields(options)
    }


def toml_value(value: object) -> object:
    """One value as a profile has it."""
    if isinstance(value, tuple):
        return "-".join(format(Decimal(repr(number)), "f") for number in value)  # without exponents and their dashes
    return as_utf8(str(value)) if isinstance(value, str | Path) else value


def _find_profile(name: str) -> Path:
    """The file called ``name``, or the packaged profile."""
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return Path(name)
    here = Path(__file__).parents[1]
    inside = here / "profiles"  # where it is installed; in a checkout profiles/ is beside the package
    folder = inside if inside.is_dir() else here.parent / "profiles"
    packaged = [path for kind in ("workloads", "devices") for path in sorted(folder.glob(f"{kind}/*.toml"))]
    for path in packaged:
        if path.stem == name:
            return path
    raise mistake(f"--profile {name}: no such profile; there are {', '.join(path.stem for path in packaged)}")
