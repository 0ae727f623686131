"""``--data SPEC`` to a data set."""

import importlib.util
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data import criteo
from cachedlrm.data.batch import Dataset, RoundedTargets, Source
from cachedlrm.data.criteo import CriteoFiles, CriteoSource, open_criteo
from cachedlrm.data.flights import open_flights
from cachedlrm.data.npy import NpyFiles, NpySource, find_table_rows, open_npy
from cachedlrm.data.reference import ReferenceSource, ReferenceStream
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, NUM_TEST_SAMPLES, NUM_TRAIN_SAMPLES, ZipfSource

if TYPE_CHECKING:
    from cachedlrm.data.parquet_files import ParquetFiles

MOST_ROWS = 2**31 - 1
"""Rows of all tables, whose addresses are int32."""

_DEFAULT_NUM_DENSE = 13
_REFERENCE_ROWS, _REFERENCE_NUM_DENSE = (4, 3, 2), 4
_MOST_SAMPLES, _MOST_HOT = 2**63 - 1, 10_000
_READ_SAMPLES = 1 << 16


@dataclass(frozen=True)
class DataRequest:
    """What the options say of the data.

    Attributes:
        table_rows: rows of each table; None: the data's own.
        num_dense: dense features; None: the data's own.
        seed: of generated data.
        max_ind_range: ids are folded modulo this if positive.
        reference: what the reference's generators draw; None without them.
        round_targets: whether labels are rounded to 0 or 1.
    """

    table_rows: tuple[int, ...] | None
    num_dense: int | None
    seed: int
    max_ind_range: int
    reference: ReferenceStream | None = None
    round_targets: bool = False


@dataclass(frozen=True)
class _Spec:
    """A source as the user named it, checked as far as it can be alone.

    Attributes:
        words: option and value, for messages.
        name: ``zipf``, ``flights``, ``npy``, ``criteo``, ``parquet`` or ``reference``.
        num_samples: of ``zipf``.
        hot: lookups of a bag at most, of ``zipf``.
        files: of ``npy``.
        criteo: of ``criteo``.
        parquet: of ``parquet``.
        is_part: whether it is the held-out part of prepared files, which has their tables.
    """

    words: str
    name: str
    num_samples: int = 0
    hot: int = 1
    files: NpyFiles | None = None
    criteo: CriteoFiles | None = None
    parquet: "ParquetFiles | None" = None
    is_part: bool = False


def open_dataset(spec: str, test_spec: str | None, request: DataRequest) -> Dataset:
    """Opens ``--data`` and ``--test-data``. Held-out samples in files are read once, so that no mistake waits in them.

    Raises:
        UserError: an unknown or unreadable source, or one that does not fit the model's sizes.
    """
    train_spec = _read_spec("--data", spec, request)
    if test_spec is None:
        held_out_spec = _held_out_part(train_spec)
    else:
        held_out_spec = _read_spec("--test-data", test_spec, request, train_spec)
    request = replace(request, table_rows=_table_rows(train_spec, held_out_spec, request))
    dataset = _open(train_spec, request)
    train, test = dataset.train, dataset.test
    _check_options(train_spec, _columns(train_spec, train), request)
    if held_out_spec is not None:
        sizes = replace(request, table_rows=train.table_rows, num_dense=train.num_dense)
        test = _open(held_out_spec, sizes).train
        _check_held_out(held_out_spec, _columns(held_out_spec, test), train_spec, _columns(train_spec, train))
    _read_through(train_spec, train, held_out_spec or train_spec, test)
    if request.round_targets:  # the reference's generators round on their own, after which this changes nothing
        train, test = RoundedTargets(train), RoundedTargets(test) if test is not None else None
    return Dataset(train, test, _row_counts(train_spec, train.table_rows, request.max_ind_range))


def _row_counts(spec: _Spec, table_rows: tuple[int, ...], max_ind_range: int) -> NDArray[np.int64] | None:
    """Lookups of each row in an epoch, where prepared files tell them and are trained as they are."""
    prepared = spec.files.prepared if spec.files is not None else None
    if prepared is None or max_ind_range > 0 or table_rows != prepared.table_rows:
        return None
    return prepared.row_counts


def _read_spec(option: str, text: str, request: DataRequest, train: _Spec | None = None) -> _Spec:
    """What an option says; for ``--test-data`` with what ``--data`` said."""
    name, _, argument = text.partition(":")
    words = shown(f"{option} {text}")
    if name == "zipf":
        return _read_zipf(words, argument)
    if name == "npy" and argument:
        return _Spec(words, name, files=open_npy(words, argument))
    if name == "criteo" and argument:
        return _Spec(words, name, criteo=open_criteo(words, argument))
    if name == "parquet" and argument:
        return _read_parquet(words, argument, train)
    if text == "flights":
        return _Spec(words, name)
    if text == "reference":
        if request.reference is None:
            raise UserError(f"{words}: facebookresearch/dlrm's generators need --data reference; name another source")
        return _Spec(words, name)
    raise UserError(
        f"{words}: unknown source; there are zipf, zipf:samples=N,hot=H, flights, npy:DIR, criteo:PATH, parquet:PATH "
        "and reference"
    )


def _read_parquet(words: str, argument: str, train: _Spec | None) -> _Spec:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"{words} needs the package pyarrow: pip install 'cachedlrm[prepare]'")
    from cachedlrm.data.parquet_files import open_parquet  # noqa: PLC0415 - needs an optional package

    return _Spec(words, "parquet", parquet=open_parquet(words, argument, train.parquet if train is not None else None))


def _held_out_part(train: _Spec) -> _Spec | None:
    """The held-out samples that belong to prepared files."""
    prepared = train.files.prepared if train.files is not None else None
    if prepared is None or prepared.test_folder is None:
        return None
    words = f"{train.words}, held-out part"
    return _Spec(words, "npy", files=open_npy(words, prepared.test_folder), is_part=True)


def _read_zipf(words: str, argument: str) -> _Spec:
    limits = {
        "samples": (_MOST_SAMPLES, "samples are numbered in 64 bits"),
        "hot": (_MOST_HOT, "a batch with more lookups in each bag fits into no memory"),
    }
    values: dict[str, int] = {}
    for item in filter(None, argument.split(",")):
        key, _, value = item.partition("=")
        if key not in limits or not value.isascii() or not value.isdigit() or not value.strip("0"):
            raise UserError(f"{words}: {shown(item)!r} is not samples=N or hot=H with a whole number from 1 on")
        if key in values:
            raise UserError(f"{words}: {key} is given more than once; drop one of them")
        most, why = limits[key]
        if len(value) > 4000 or int(value) > most:  # int() itself refuses thousands of digits
            raise UserError(f"{words}: {key} can be {most} at most, as {why}; lower it")
        values[key] = int(value)
    return _Spec(words, "zipf", values.get("samples", NUM_TRAIN_SAMPLES), values.get("hot", 1))


def _table_rows(train: _Spec, test: _Spec | None, request: DataRequest) -> tuple[int, ...] | None:
    """Rows of each table, folded; None: the source itself knows."""
    rows, max_ind_range = request.table_rows, request.max_ind_range
    if rows is None and train.files is not None:
        folders = [train.files]
        if test is not None and test.files is not None:
            _check_held_out(test, test.files.columns, train, train.files.columns)
            folders.append(test.files)
        _check_options(train, train.files.columns, request)
        if train.files.prepared is not None and max_ind_range <= 0 and (test is None or test.is_part):
            return train.files.prepared.table_rows
        return find_table_rows(folders, max_ind_range, MOST_ROWS)
    if rows is None and train.parquet is not None:
        return _parquet_rows(train, test, request)
    if rows is None and train.name == "zipf":
        rows = CRITEO_KAGGLE_ROWS
    if rows is None and train.criteo is not None:
        rows = (max_ind_range if max_ind_range > 0 else criteo.DEFAULT_ROWS,) * criteo.NUM_TABLES
        if sum(rows) > MOST_ROWS:
            raise UserError(
                f"--max-ind-range {max_ind_range} makes {sum(rows)} rows of {train.words}, of which there can be "
                f"{MOST_ROWS}; lower it to {MOST_ROWS // criteo.NUM_TABLES}"
            )
    if rows is None:
        return None
    if max_ind_range > 0:
        rows = tuple(min(count, max_ind_range) for count in rows)
    if sum(rows) > MOST_ROWS:
        folding = "" if train.name == "reference" else f", or fold ids with --max-ind-range {MOST_ROWS // len(rows)}"
        raise UserError(
            f"--arch-embedding-size adds up to {sum(rows)} rows, of which there can be {MOST_ROWS}; lower it{folding}"
        )
    return rows


def _parquet_rows(train: _Spec, test: _Spec | None, request: DataRequest) -> tuple[int, ...]:
    from cachedlrm.data.parquet_files import find_table_rows  # noqa: PLC0415 - needs an optional package

    assert train.parquet is not None
    files = [train.parquet]
    if test is not None and test.parquet is not None:
        _check_held_out(test, test.parquet.columns, train, train.parquet.columns)
        files.append(test.parquet)
    return find_table_rows(files, request.max_ind_range, MOST_ROWS)


def _open(spec: _Spec, request: DataRequest) -> Dataset:
    """A source whose columns are still to be compared with what the request says."""
    rows = request.table_rows
    if spec.files is not None:
        assert rows is not None
        return Dataset(NpySource(spec.files, rows, request.max_ind_range), None)
    if spec.criteo is not None:
        assert rows is not None
        return Dataset(CriteoSource(spec.criteo, rows), None)
    if spec.parquet is not None:
        from cachedlrm.data.parquet import ParquetSource  # noqa: PLC0415 - not every run needs it

        assert rows is not None
        return Dataset(ParquetSource(spec.parquet, rows, request.max_ind_range), None)
    if spec.name == "flights":
        return open_flights(rows, request.max_ind_range, spec.words)
    if spec.name == "reference":
        assert request.reference is not None
        num_dense = request.num_dense or _REFERENCE_NUM_DENSE
        # The reference tests on the samples that it trains on.
        train, test = (ReferenceSource(rows or _REFERENCE_ROWS, num_dense, request.reference) for _ in range(2))
        return Dataset(train, test)
    assert rows is not None
    num_dense, samples = request.num_dense or _DEFAULT_NUM_DENSE, spec.num_samples
    num_test = min(NUM_TEST_SAMPLES, max(1, samples // 8))
    return Dataset(
        ZipfSource(rows, num_dense, request.seed, samples, spec.hot),
        ZipfSource(rows, num_dense, request.seed, num_test, spec.hot, held_out=True, clock_start=samples),
    )


def _columns(spec: _Spec, source: Source) -> tuple[int, int]:
    """Sparse and dense columns that a source has, whatever sizes were asked for."""
    if spec.criteo is not None:
        return criteo.NUM_TABLES, criteo.NUM_DENSE
    files = spec.files or spec.parquet
    return files.columns if files is not None else (len(source.table_rows), source.num_dense)


def _check_options(spec: _Spec, columns: tuple[int, int], request: DataRequest) -> None:
    """The sizes that options and training data both state must agree."""
    num_tables, num_dense = columns
    if request.table_rows is not None and len(request.table_rows) != num_tables:
        raise UserError(
            f"--arch-embedding-size has {len(request.table_rows)} tables but {spec.words} has {num_tables} sparse "
            f"columns; give {num_tables} sizes or none"
        )
    if request.num_dense is not None and request.num_dense != num_dense:
        raise UserError(
            f"--arch-mlp-bot starts with {request.num_dense} but {spec.words} has {num_dense} dense features; "
            f"start it with {num_dense}"
        )


def _check_held_out(test: _Spec, columns: tuple[int, int], train: _Spec, expected: tuple[int, int]) -> None:
    """Held-out samples must have the columns of the training samples, and their rows."""
    if "criteo" in (test.name, train.name) and test.name != train.name:
        raise UserError(
            f"{test.words} and {train.words} give their rows to categories in different ways; name two of one kind"
        )
    for what, count, wanted in zip(("sparse columns", "dense features"), columns, expected, strict=True):
        if count != wanted:
            raise UserError(
                f"{test.words} has {count} {what} but {train.words} has {wanted}; name held-out samples with {wanted}"
            )


def _read_through(train_spec: _Spec, train: Source, test_spec: _Spec, test: Source | None) -> None:
    """Reads recorded samples that are few or held out: a mistake in them shows now and not hours later.

    Training samples in files may be many and are checked batch by batch.
    """
    sources = [train] if train_spec.name == "flights" else []
    if test is not None and test_spec.name in ("flights", "npy", "criteo", "parquet"):
        sources.append(test)
    for source in sources:
        for start in range(0, source.num_samples, _READ_SAMPLES):
            source.read(start, min(start + _READ_SAMPLES, source.num_samples))
