"""Predictions in a file come back to the last bit, whatever pieces they came in."""

import csv

import numpy as np
import pyarrow.parquet
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.export.formats import predictions as predictions_module
from cachedlrm.export.formats.predictions import check_suffix, prediction_file

PREDICTIONS = np.random.default_rng(0).random(1000).astype(np.float32)
LABELS = (PREDICTIONS > 0.5).astype(np.float32)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("has_labels", [False, True])
def test_what_is_written_is_read(tmp_path, monkeypatch, suffix, has_labels):
    monkeypatch.setattr(predictions_module, "_ROW_GROUP", 300)
    path = tmp_path / f"p{suffix}"
    with prediction_file(path, 1000) as write:
        for first in range(0, 1000, 130):
            part = slice(first, first + 130)
            write(PREDICTIONS[part], LABELS[part] if has_labels else None)
        assert not path.exists(), "it appears when it is complete"
    columns = {"prediction": PREDICTIONS} | ({"label": LABELS} if has_labels else {})
    if suffix == ".npy":
        read = {"prediction": np.load(path)}
        columns = {"prediction": PREDICTIONS}
    elif suffix == ".csv":
        with path.open(newline="") as file:
            header, *lines = csv.reader(file)
        read = {name: np.array([line[i] for line in lines], np.float32) for i, name in enumerate(header)}
    else:
        read = {name: column.to_numpy() for name, column in zip(
            columns, pyarrow.parquet.read_table(path).columns, strict=True)}  # fmt: skip
        assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    assert read.keys() == columns.keys()
    assert all(read[name].dtype == np.float32 and (read[name] == columns[name]).all() for name in columns)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"end its name in \.npy, \.parquet or \.csv"):
        check_suffix(tmp_path / "p.txt")
