"""New data under an existing vocabulary, and extended ones, against a plain Python model."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from cachedlrm.data.vocabulary import read_vocabulary
from cachedlrm.prepare import base, pipeline, tables, vocabulary
from cachedlrm.prepare.__main__ import main
from support.raw_criteo import contents, missing, mix, prepare
from support.runs import one_line

COLUMNS = ["--label=y", "--sparse=c,d", "--test-fraction=0.25"]
SIZE = 400


def day(folder: Path, number: int) -> dict[str, list]:
    """Values that come and go from day to day, missing ones among them."""
    random = np.random.default_rng(number)
    folder.mkdir(exist_ok=True)
    columns = {
        "y": random.integers(0, 2, SIZE).tolist(),
        "c": [int(value) + 40 * number if value > 1 else None for value in random.zipf(1.3, SIZE) % 150],
        "d": (random.integers(0, 9, SIZE) + number).tolist(),
    }
    pq.write_table(pa.table(columns), folder / f"{number}.parquet")
    return columns


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Hash tables that a handful of keys outgrow, and pieces of a few numbers."""
    monkeypatch.setattr(pipeline, "SLOT_BYTES", 1 << 22)
    monkeypatch.setattr(pipeline, "_resident_bytes", lambda: 400 << 20)  # whatever other tests have left in memory
    monkeypatch.setattr(vocabulary, "_FIRST_SLOTS", 4)
    monkeypatch.setattr(base, "_CHUNK", 17)
    monkeypatch.setattr(tables, "_CHUNK", 71)


@pytest.fixture
def days(tmp_path):
    """Day 0, prepared, and what is in days 0 to 2."""
    columns = [day(tmp_path, number) for number in range(3)]
    assert run(tmp_path, 0, "out") == 0
    return columns


def run(folder: Path, number: int, out: str, *options: object) -> int:
    return prepare("parquet", folder / f"{number}.parquet", "--out", folder / out, *COLUMNS, *options)


def values_by_row(folder: Path) -> list[list[int]]:
    """The key of each row of each table."""
    keys, rows = (
        np.load(folder / "vocabulary.npy").tolist(),
        json.loads((folder / "prepared.json").read_text())["table_rows"],
    )
    return [keys[: rows[0]], keys[rows[0] :]]


def encoded(folder: Path) -> list[list[int]]:
    """Rows of all samples, table by table."""
    parts = [np.load(folder / "train_sparse.npy"), np.load(folder / "test" / "test_sparse.npy")]
    return np.concatenate(parts).T.tolist()


def keys_of(columns: dict[str, list]) -> list[list[int]]:
    return [[missing(value) for value in columns[name]] for name in "cd"]


def extended(rows: list[int], column: list[int], min_count: int = 1) -> list[int]:
    """The keys of an extended table by row."""
    counter = Counter(key for key in column[: SIZE - SIZE // 4] if key not in rows[1:])
    new = [key for key in counter if counter[key] >= min_count]
    return rows + sorted(new, key=lambda key: (-counter[key], mix(key)))


def rows_of(rows: list[int], column: list[int]) -> list[int]:
    row = {key: number for number, key in enumerate(rows) if number}
    return [row.get(key, 0) for key in column]


def assert_counts(folder: Path) -> None:
    """Lookups of each row in the training samples."""
    train, counts, first = np.load(folder / "train_sparse.npy"), np.load(folder / "counts.npy"), 0
    for table, rows in enumerate(json.loads((folder / "prepared.json").read_text())["table_rows"]):
        assert counts[first : first + rows].tolist() == np.bincount(train[:, table], minlength=rows).tolist()
        first += rows
    assert len(counts) == first


def test_values_have_the_rows_of_the_vocabulary(tmp_path, days):
    assert run(tmp_path, 1, "new", "--vocabulary", tmp_path / "out") == 0
    table_values = values_by_row(tmp_path / "out")
    assert values_by_row(tmp_path / "new") == table_values
    wanted = [rows_of(values, column) for values, column in zip(table_values, keys_of(days[1]), strict=True)]
    assert encoded(tmp_path / "new") == wanted
    assert 0 < wanted[0].count(0) < SIZE  # some values are unknown
    assert read_vocabulary(tmp_path / "new") == read_vocabulary(tmp_path / "out")
    assert_counts(tmp_path / "new")
    specs = [f"npy:{tmp_path / name}" for name in ("out", "new")]
    assert not any("vocabulary" in note for note in open_dataset(*specs, DataRequest(None, None, 1, -1)).notes)


@pytest.mark.parametrize("min_count", [1, 3])
def test_new_values_get_rows_after_those_of_the_base(tmp_path, days, min_count):
    assert run(tmp_path, 1, "second", "--extend", tmp_path / "out", f"--min-count={min_count}") == 0
    wanted = [
        extended(values, column, min_count)
        for values, column in zip(values_by_row(tmp_path / "out"), keys_of(days[1]), strict=True)
    ]
    assert values_by_row(tmp_path / "second") == wanted
    assert len(wanted[0]) > len(values_by_row(tmp_path / "out")[0])
    assert encoded(tmp_path / "second") == [
        rows_of(values, column) for values, column in zip(wanted, keys_of(days[1]), strict=True)
    ]
    assert_counts(tmp_path / "second")
    first, second = (read_vocabulary(tmp_path / name) for name in ("out", "second"))
    assert second.bases == (first.fingerprint,)
    assert second.fingerprint != first.fingerprint
    assert run(tmp_path, 2, "third", "--extend", tmp_path / "second") == 0
    third = read_vocabulary(tmp_path / "third")
    assert third.bases == (second.fingerprint, first.fingerprint)
    assert third.continues(first)


def test_an_extension_by_nothing_is_the_base(tmp_path, days):
    assert run(tmp_path, 0, "again", "--extend", tmp_path / "out", "--min-count=1000") == 0
    assert read_vocabulary(tmp_path / "again") == read_vocabulary(tmp_path / "out")
    assert encoded(tmp_path / "again") == encoded(tmp_path / "out")


@pytest.mark.parametrize("option", ["--vocabulary", "--extend"])
def test_outputs_do_not_depend_on_memory_and_interruptions(tmp_path, days, monkeypatch, option):
    arguments = [option, tmp_path / "out"]
    assert run(tmp_path, 1, "a", *arguments) == 0
    finish, calls = tables._finish, []

    def die(*arguments: object) -> None:
        calls.append(finish(*arguments))
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(tables, "_finish", die)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, 1, "b", *arguments, "--threads=1")
    monkeypatch.undo()  # whole tables at a time
    assert calls
    assert run(tmp_path, 1, "b", *arguments, "--memory=3GiB") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_data_without_labels_is_encoded_for_predictions(tmp_path, days):
    command = ["parquet", tmp_path / "1.parquet", "--sparse=c,d", "--vocabulary", tmp_path / "out"]
    assert prepare(*command, "--out", tmp_path / "unlabelled") == 0
    assert prepare(*command, "--out", tmp_path / "labelled", "--label=y", "--test-fraction=0") == 0
    unlabelled, labelled = (contents(tmp_path / name) for name in ("unlabelled", "labelled"))
    assert labelled.keys() - unlabelled.keys() == {"train_labels.npy"}
    assert all(unlabelled[name] == labelled[name] for name in unlabelled if name.endswith(".npy"))
    request = DataRequest(None, None, 1, -1, needs_labels=False)
    spec = f"npy:{tmp_path / 'unlabelled'}"
    assert open_dataset(spec, None, request).train.num_samples == SIZE


def test_folded_values_are_folded_alike(tmp_path, days):
    assert run(tmp_path, 0, "folded", "--max-ind-range=20") == 0
    assert run(tmp_path, 1, "new", "--vocabulary", tmp_path / "folded") == 0
    assert read_vocabulary(tmp_path / "new") == read_vocabulary(tmp_path / "folded")
    assert {key for values in values_by_row(tmp_path / "new") for key in values} <= {*range(20), missing(None)}


def test_csv_goes_on_with_what_parquet_began(tmp_path, days):
    rows = zip(*days[1].values(), strict=True)
    lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
    (tmp_path / "1.csv").write_text("\n".join(["y,c,d", *lines]))
    assert prepare("csv", tmp_path / "1.csv", "--out", tmp_path / "a", *COLUMNS, "--extend", tmp_path / "out") == 0
    assert run(tmp_path, 1, "b", "--extend", tmp_path / "out") == 0
    assert encoded(tmp_path / "a") == encoded(tmp_path / "b")
    assert read_vocabulary(tmp_path / "a") == read_vocabulary(tmp_path / "b")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--vocabulary={}"], "no prepared.json in it; name a folder that python -m cachedlrm.prepare wrote"),
        (["--vocabulary={}/out", "--extend={}/out"], "--vocabulary and --extend exclude each other; give one of them"),
        (["--vocabulary={}/out", "--min-count=2"], "--min-count is for new values"),
        (["--extend={}/out", "--max-ind-range=5"], "--max-ind-range 5: --extend {}/out has -1; leave it out"),
        (["--extend={}/out", "--sparse=d,c"], "--extend {}/out was prepared with --sparse c,d, not d,c; give that"),
        (["--extend={}/out", "--dense=d"], "--extend {}/out was prepared with --dense none, not d; give that"),
        (["--extend={}/out", "--log-dense"], "was prepared with --log-dense false, not true; give that"),
        (["--extend={}/old"], "--extend {}/old was prepared by an earlier release; prepare its data again"),
        (["--extend={}/other"], "vocabulary.npy is not what prepared.json says; prepare its data again"),
        (["--extend={}/short"], "vocabulary.npy is not that of prepared.json beside it; prepare the data again"),
    ],
)
def test_what_is_no_base_is_refused_and_leaves_nothing(tmp_path, days, capsys, options, words):
    summary, keys = (
        json.loads((tmp_path / "out" / "prepared.json").read_text()),
        np.load(tmp_path / "out" / "vocabulary.npy"),
    )
    old = {name: value for name, value in summary.items() if name != "vocabulary"}
    for name, about, values in (("old", old, keys), ("other", summary, keys[::-1]), ("short", summary, keys[1:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "prepared.json").write_text(json.dumps(about))
        np.save(tmp_path / name / "vocabulary.npy", values)
    given = [option.format(tmp_path) for option in options]
    usual = [one for one in COLUMNS if one.partition("=")[0] not in {option.partition("=")[0] for option in given}]
    message = one_line(
        capsys, main(["parquet", str(tmp_path / "1.parquet"), f"--out={tmp_path / 'new'}", *usual, *given, "--ui=off"])
    )
    assert words.format(tmp_path) in message
    assert not (tmp_path / "new").exists()
