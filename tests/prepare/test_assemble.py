"""From the working folder to npy files, by hand."""

import numpy as np

from cachedlrm.data.npy import PREPARED_FILE
from cachedlrm.prepare import assemble
from cachedlrm.prepare.spool import DENSE, LABELS
from cachedlrm.prepare.tables import FinishedTable


def finished(folder, rows: list[int], counts: list[int], keys: list[int]) -> FinishedTable:
    folder.mkdir()
    table = FinishedTable(folder, len(counts), len(keys) - 1)
    np.array(rows, np.int32).tofile(table.rows)
    np.array(counts, np.int64).tofile(table.counts)
    np.array(keys, np.uint64).tofile(table.keys)
    return table


def test_labels_appear_last():
    names = ["counts.npy", "vocabulary.npy", PREPARED_FILE, "train_dense.npy", "train_sparse.npy", "train_labels.npy"]
    assert assemble.output_names(has_test=False) == names
    assert assemble.output_names(has_test=True) == ["test", *names]


def test_samples_and_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "_PIECE_SAMPLES", 3)
    tables = [
        finished(tmp_path / "a", [1, 0, 2, 1, 1, 0, 2], [1, 3, 2], [0, 70, 80]),
        finished(tmp_path / "b", [1, 1, 1, 1, 0, 1, 1], [0, 5], [0, 2**63]),
    ]
    dense = np.arange(14, dtype=np.float32).reshape(7, 2)
    dense.tofile(tmp_path / DENSE)
    np.array([0, 1, 1, 0, 0, 1, 1], np.int32).tofile(tmp_path / LABELS)
    assert list(assemble.write_triple(tmp_path, tmp_path / "train", 2, tables, range(2, 7))) == [3, 2]
    made = {part: np.load(tmp_path / f"train_{part}.npy") for part in ("dense", "sparse", "labels")}
    assert made["dense"].tolist() == dense[2:].tolist()
    assert made["sparse"].tolist() == [[2, 1], [1, 1], [1, 0], [0, 1], [2, 1]]
    assert made["labels"].tolist() == [[1], [0], [0], [1], [1]]
    assert [made[part].dtype for part in made] == [np.float32, np.int32, np.int32]
    assemble.write_rows(tmp_path, tables)
    assert np.load(tmp_path / "counts.npy").tolist() == [1, 3, 2, 0, 5]
    assert np.load(tmp_path / "vocabulary.npy").tolist() == [0, 70, 80, 0, 2**63]
