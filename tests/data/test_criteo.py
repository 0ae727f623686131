"""``--data criteo:PATH``: raw lines folded into their tables, against plain Python."""

import gzip
import json

import numpy as np
import pytest

from cachedlrm.base.errors import UserError
from cachedlrm.data import criteo
from cachedlrm.data.open import open_dataset
from cachedlrm.data.shuffle import ShuffledEpochs
from cachedlrm.data.spec import DataRequest
from support.raw_criteo import expected, lines, write
from support.runs import train

LINES = lines(700)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """A folder of two days in small blocks, the second one compressed."""
    monkeypatch.setattr(criteo, "_BLOCK_BYTES", 4000)
    write(tmp_path / "raw" / "day_2", LINES[:300])
    (tmp_path / "raw" / "day_10.gz").write_bytes(gzip.compress("\n".join(LINES[300:]).encode()))
    return tmp_path / "raw"


def request(**fields):
    return DataRequest(**({"table_rows": None, "num_dense": None, "seed": 1, "max_ind_range": -1} | fields))


@pytest.mark.parametrize(
    ("fields", "rows"),
    [({}, (100_000,) * 26), ({"max_ind_range": 77}, (77,) * 26), ({"table_rows": (*range(1, 26), 2**20)}, None),
     ({"table_rows": (*range(1, 26), 2**20), "max_ind_range": 9}, (*range(1, 10), *[9] * 17))],
)  # fmt: skip
def test_raw_files_are_folded_into_their_tables(raw, fields, rows):
    source = open_dataset(f"criteo:{raw}", None, request(**fields)).train
    rows = rows or fields["table_rows"]
    assert source.table_rows == rows
    wanted = expected(LINES, 0)
    keys = [[int(text or "0", 16) for text in line.split("\t")[14:]] for line in LINES]
    first_rows = np.cumsum([0, *rows[:-1]])
    ids = np.array(keys) % np.array(rows) + first_rows
    for start, stop in ((0, 700), (0, 64), (64, 128), (290, 310), (650, 700), (5, 9), (299, 300), (300, 301), (4, 4)):
        batch = source.read(start, stop)
        assert batch.rows.tolist() == ids[start:stop].ravel().tolist()
        assert np.array_equal(batch.dense, wanted.dense[start:stop])
        assert batch.labels.tolist() == wanted.labels[start:stop, 0].tolist()
        assert batch.offsets.tolist() == list(range(26 * (stop - start) + 1))


def test_a_compressed_file_is_one_piece(raw):
    source = open_dataset(f"criteo:{raw}", None, request()).train
    assert source.pieces[-2:] == (300, 700)
    assert len(source.pieces) > 5, "plain text is read from the beginning of any block on"
    with pytest.raises(UserError, match=r"read in pieces of up to 400 samples .* decompress the file, or use"):
        ShuffledEpochs(source, 1, 90_000).read(0, 0, 1)


def test_lines_without_labels_are_read_where_none_are_needed(raw, tmp_path):
    write(tmp_path / "test.txt", [line.partition("\t")[2] for line in LINES])
    labelled = open_dataset(f"criteo:{raw}", None, request(needs_labels=False)).train
    source = open_dataset(f"criteo:{tmp_path / 'test.txt'}", None, request(needs_labels=False)).train
    assert (labelled.has_labels, source.has_labels) == (True, False)
    one, other = labelled.read(0, 700), source.read(0, 700)
    assert (one.rows.tobytes(), one.dense.tobytes()) == (other.rows.tobytes(), other.dense.tobytes())
    assert not other.labels.any()
    with pytest.raises(UserError, match="a file without labels"):
        open_dataset(f"criteo:{tmp_path / 'test.txt'}", None, request())
    write(tmp_path / "bad.txt", [*(line.partition("\t")[2] for line in LINES[:9]), "x" + "\t" * 38])
    with pytest.raises(UserError, match=r"line 10: field 1, 'x', is not an integer of 32 bits"):
        open_dataset(f"criteo:{tmp_path / 'bad.txt'}", None, request(needs_labels=False)).train.read(0, 10)


def test_raw_files_train_and_evaluate(raw, tmp_path):
    options = ["--arch-mlp-bot=13-16-8", "--max-ind-range=50", "--arch-embedding-size=" + "-".join(["50"] * 26)]
    data = [f"--data=criteo:{raw}", f"--test-data=criteo:{raw / 'day_2'}"]
    assert train(tmp_path / "run", *data, *options, "--gpu-cache-ratio=0.5", "--steps=9") == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["steps"] == 9
    assert report["auc"] is not None


@pytest.mark.parametrize(
    ("spec", "fields", "words"),
    [
        ("criteo:{}/none", {}, "no such file or folder"),
        ("criteo:", {}, "unknown source; there are .*criteo:PATH"),
        ("criteo:{}", {"max_ind_range": 2**31}, "--max-ind-range 2147483648 makes .* lower it to 82595524"),
        ("criteo:{}", {"table_rows": (4, 3)}, "--arch-embedding-size has 2 tables but .* has 26"),
        ("criteo:{}", {"num_dense": 4}, "--arch-mlp-bot starts with 4 but .* has 13"),
    ],
)
def test_raw_files_that_do_not_fit_are_refused(raw, spec, fields, words):
    with pytest.raises(Exception, match=words):
        open_dataset(spec.format(raw), None, request(**fields))


def test_a_bad_line_is_named_when_it_is_reached(raw, tmp_path):
    write(raw / "day_3", [*LINES[:50], "nonsense"])
    source = open_dataset(f"criteo:{raw}", None, request()).train
    source.read(0, 300)
    with pytest.raises(Exception, match=r"day_3: line 51: 1 fields between tabs"):
        source.read(300, 360)
    with pytest.raises(Exception, match="give their rows to categories in different ways"):
        open_dataset(f"criteo:{raw}", "zipf:samples=9", request(table_rows=(5,) * 26))
