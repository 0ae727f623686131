"""The command line of `cachedlrm.prepare`: fields of the dataclasses are the options, their docstrings the help."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, Token

from cachedlrm.base.errors import UserError
from cachedlrm.options.parsing import parse
from cachedlrm.options.types import Bytes, Flag, GivenPath, Positive, Threads, Whole

_HELP = """Turn raw click logs into the files that cachedlrm.train reads with --data npy:DIR.

Example: python -m cachedlrm.prepare criteo train.txt --out DIR
"""
_LEAST_MEMORY = 768 << 20

MOST_ROWS = 2**31 - 1
"""Of all tables together, that can be trained."""


def _check_range(_: type, value: int) -> None:
    if value != -1 and not 1 <= value <= MOST_ROWS:
        raise ValueError(f"Must be -1, or 1 or more and at most {MOST_ROWS}.")


def _check_fraction(_: type, value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise ValueError("Must be from 0 to below 1.")


def _delimiter(_: object, tokens: Sequence[Token]) -> str:
    text = tokens[0].value
    return "\t" if text in ("tab", "\\t") else text


def _check_delimiter(_: type, value: str) -> None:
    if len(value) != 1 or not value.isascii() or value in '"\r\n':
        raise ValueError("Must be one character, no quote and no line end, or tab.")


Delimiter = Annotated[str, Parameter(converter=_delimiter, validator=_check_delimiter)]
FoldedRows = Annotated[Whole, Parameter(validator=_check_range)]
Fraction = Annotated[float, Parameter(validator=_check_fraction)]


@Parameter(name="*")
@dataclass(frozen=True)
class PrepareOptions:
    """Options for every kind of file."""

    out: Path
    """Folder to write to, created if missing. Repeat an interrupted command to resume it."""
    min_count: Positive = 1
    """Values seen less often than this in the training samples share row 0 of their table."""
    max_ind_range: FoldedRows = -1
    """Fold values: take each, as a number, modulo this; -1: as they are."""
    vocabulary: Path | None = None
    """Give values the rows that they have in this prepared folder, and others row 0: data for a model trained on it."""
    extend: Path | None = None
    """The same, with rows after those of the folder for values that it lacks: data to go on with such a model."""
    test_fraction: Fraction | None = None
    """Hold out this share of the samples, from the end; 0: none. Default: the last of several files, the last 1/7 of a
    single one."""
    test_files: Positive | None = None
    """Hold out this many files, from the end."""
    skip_bad_lines: Flag = False
    """Leave out lines that do not parse, and count them, instead of stopping at the first and naming it."""
    memory: Bytes = 2 << 30
    """The most memory to use; the output does not depend on it. Default: 2GiB."""
    threads: Threads | None = None
    """Threads that parse and count. Default: the processors this process may use."""
    ui: Literal["auto", "live", "plain", "off"] = "auto"
    """Progress; auto: a bar on a terminal, lines elsewhere."""

    @property
    def num_threads(self) -> int:
        """Threads to use."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or usable


@Parameter(name="*")
@dataclass(frozen=True)
class ColumnOptions:
    """Columns of Parquet and CSV files."""

    sparse: str
    """Columns of the categories (whole numbers, booleans, text or dates), joined by commas; each makes a table."""
    label: str = ""
    """Column of the label, 0 or 1. Left out: data without labels, to predict with --vocabulary."""
    dense: str = ""
    """Columns of the dense features, joined by commas. Default: none."""
    log_dense: Flag = False
    """Take dense features as Criteo's integers are taken: log(x + 1), and 0 for negative values."""


@Parameter(name="*")
@dataclass(frozen=True)
class DialectOptions:
    """How CSV files are written."""

    delimiter: Delimiter = ","
    """Character between fields, or tab."""
    columns: str = ""
    """Names of all columns, joined by commas, of files without a header. Default: the first line of each file."""
    nulls: str = ""
    """Texts that stand for a missing value, joined by commas, beside an empty field: NULL,\\N."""


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        source: ``criteo``, ``avazu``, ``parquet`` or ``csv``.
        paths: files and folders, as given.
        options: of every source.
        columns: of ``parquet`` and ``csv``.
        dialect: of ``csv``.
    """

    source: str
    paths: tuple[Path, ...]
    options: PrepareOptions
    columns: ColumnOptions | None = None
    dialect: DialectOptions | None = None


def parse_command_line(arguments: Sequence[str]) -> Command:
    """The command of a command line.

    Raises:
        UserError: an option or value is wrong; names it.
        SystemExit: after ``--help`` or ``--version``.
    """
    command = parse(arguments, "python -m cachedlrm.prepare", _HELP, criteo, avazu, parquet, csv)
    return _check(command)


def criteo(*path: GivenPath, options: PrepareOptions) -> Command:
    """Criteo's logs: Kaggle's train.txt, or day_0 to day_23; plain, gzip or zstd, files or folders of them."""
    return Command("criteo", path, options)


def avazu(*path: GivenPath, options: PrepareOptions) -> Command:
    """Avazu's log: Kaggle's train CSV; plain, gzip or zstd."""
    return Command("avazu", path, options)


def parquet(*path: GivenPath, options: PrepareOptions, columns: ColumnOptions) -> Command:
    """Parquet files of one schema, files or folders of them."""
    return Command("parquet", path, options, columns)


def csv(
    *path: GivenPath, options: PrepareOptions, columns: ColumnOptions, dialect: DialectOptions | None = None
) -> Command:
    """CSV and other text with delimiters; plain, gzip or zstd, files or folders of them. Fields may be in quotes."""
    return Command("csv", path, options, columns, dialect or DialectOptions())


def _check(command: Command) -> Command:
    """Checks options that exclude each other."""
    options = command.options
    if not command.paths:
        raise UserError(
            f"{command.source} needs files or folders to read: python -m cachedlrm.prepare {command.source} PATH..."
        )
    if options.test_fraction is not None and options.test_files is not None:
        raise UserError("--test-fraction and --test-files exclude each other; give one of them")
    if options.vocabulary is not None and options.extend is not None:
        raise UserError("--vocabulary and --extend exclude each other; give one of them")
    if options.vocabulary is not None and options.min_count > 1:
        raise UserError("--min-count is for new values, which get no rows with --vocabulary; drop it, or use --extend")
    if command.columns is not None and not command.columns.label:
        if options.vocabulary is None:
            raise UserError("without --label there is nothing to learn from; give it, or for predictions --vocabulary")
        if options.test_files or options.test_fraction:
            raise UserError("without --label no samples are held out; drop --test-files and --test-fraction")
    if options.memory < _LEAST_MEMORY:
        raise UserError(f"--memory {options.memory} is less than the libraries alone take; give 768MiB or more")
    return command
