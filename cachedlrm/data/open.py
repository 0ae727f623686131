"""``--data SPEC`` to a data set."""

from dataclasses import dataclass

from cachedlrm.data.batch import Dataset, Source
from cachedlrm.data.flights import open_flights
from cachedlrm.data.npy import open_npy
from cachedlrm.data.zipf import CRITEO_KAGGLE_ROWS, NUM_TEST_SAMPLES, NUM_TRAIN_SAMPLES, ZipfSource
from cachedlrm.errors import UserError

_DEFAULT_NUM_DENSE = 13


@dataclass(frozen=True)
class DataRequest:
    """What the options say of the data.

    Attributes:
        table_rows: rows of each table; None: the data's own.
        num_dense: dense features; None: the data's own.
        seed: of generated data.
        max_ind_range: ids are folded modulo this if positive.
    """

    table_rows: tuple[int, ...] | None
    num_dense: int | None
    seed: int
    max_ind_range: int


def open_dataset(spec: str, test_spec: str | None, request: DataRequest) -> Dataset:
    """Opens ``--data`` and ``--test-data``.

    Raises:
        UserError: an unknown or unreadable source, or one that does not fit the model's sizes.
    """
    dataset = _open(spec, request)
    _check(dataset.train, request)
    if test_spec is not None:
        held_out = DataRequest(dataset.train.table_rows, dataset.train.num_dense, request.seed, request.max_ind_range)
        dataset = Dataset(dataset.train, _open(test_spec, held_out).train)
    if dataset.test is not None:
        _check(dataset.test, DataRequest(dataset.train.table_rows, dataset.train.num_dense, 0, -1))
    return dataset


def _open(spec: str, request: DataRequest) -> Dataset:
    name, _, argument = spec.partition(":")
    if name == "zipf":
        return _open_zipf(argument, request)
    if spec == "flights":
        return open_flights(request.table_rows, request.max_ind_range)
    if name == "npy" and argument:
        return Dataset(open_npy(argument, request.table_rows, request.max_ind_range), None)
    raise UserError(f"--data {spec}: unknown source; there are zipf, zipf:samples=N,hot=H, flights and npy:DIR")


def _open_zipf(argument: str, request: DataRequest) -> Dataset:
    values = {"samples": NUM_TRAIN_SAMPLES, "hot": 1}
    for item in filter(None, argument.split(",")):
        key, _, value = item.partition("=")
        if key not in values or not value.isascii() or not value.isdigit() or int(value) < 1:
            raise UserError(f"--data zipf:{argument}: {item!r} is not samples=N or hot=H with a whole number from 1 on")
        values[key] = int(value)
    rows = request.table_rows or CRITEO_KAGGLE_ROWS
    if request.max_ind_range > 0:
        rows = tuple(min(count, request.max_ind_range) for count in rows)
    num_dense = request.num_dense or _DEFAULT_NUM_DENSE
    samples, hot = values["samples"], values["hot"]
    num_test = min(NUM_TEST_SAMPLES, max(1, samples // 8))
    train = ZipfSource(rows, num_dense, request.seed, samples, hot)
    return Dataset(train, ZipfSource(rows, num_dense, request.seed, num_test, hot, held_out=True, clock_start=samples))


def _check(source: Source, request: DataRequest) -> None:
    """The sizes that options and data both state must agree."""
    rows = request.table_rows
    if rows is not None and len(rows) != len(source.table_rows):
        raise UserError(f"--arch-embedding-size has {len(rows)} tables but the data has {len(source.table_rows)}")
    if request.num_dense is not None and request.num_dense != source.num_dense:
        raise UserError(
            f"--arch-mlp-bot starts with {request.num_dense} but the data has {source.num_dense} dense features; "
            f"start it with {source.num_dense}"
        )
