"""Criteo's raw files to npy triples, against a plain Python model."""

import json
from pathlib import Path

import numpy as np
import pytest

from cachedlrm.cache.policies import Static
from cachedlrm.data.open import open_dataset
from cachedlrm.data.spec import DataRequest
from cachedlrm.prepare import formats, pipeline, vocabulary
from cachedlrm.train import main as train_main
from support.raw_criteo import assert_equal, bad_lines, contents, expected, lines, prepare, write
from support.runs import one_line, train

LINES = lines(900)
BAD = bad_lines(LINES[0])


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    """Many blocks, and hash tables that a handful of keys outgrow."""
    monkeypatch.setattr(formats, "_LARGEST_BLOCK", 5000)
    monkeypatch.setattr(formats, "_LEAST_BLOCK", 1000)
    monkeypatch.setattr(pipeline, "SLOT_BYTES", 1 << 22)
    monkeypatch.setattr(pipeline, "_resident_bytes", lambda: 400 << 20)  # whatever other tests have left in memory
    monkeypatch.setattr(vocabulary, "_FIRST_SLOTS", 4)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_is_what_the_model_says(tmp_path, threads):
    path = write(tmp_path / "train.txt", LINES)
    assert prepare("criteo", path, "--out", tmp_path / "out", "--threads", threads) == 0
    assert_equal(tmp_path / "out", expected(LINES, 900 // 7), 900 // 7)
    summary = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert summary["table_rows"] == expected(LINES, 900 // 7).table_rows
    assert (summary["samples"], summary["test_samples"]) == (900 - 900 // 7, 900 // 7)
    assert [table["name"] for table in summary["tables"]] == [f"C{number}" for number in range(1, 27)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "counts.npy", "prepare.lock", "prepared.json", "test", "train_dense.npy", "train_labels.npy",
        "train_sparse.npy", "vocabulary.npy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"min_count": 3}, {"max_ind_range": 50}, {"max_ind_range": 97, "min_count": 4}, {"min_count": 10**6}]
)
def test_vocabulary_options(tmp_path, options):
    path = write(tmp_path / "train.txt", LINES)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert prepare("criteo", path, "--out", tmp_path / "out", "--test-fraction=0.25", *flags) == 0
    assert_equal(tmp_path / "out", expected(LINES, 225, **options), 225)


@pytest.mark.parametrize(("options", "num_test"), [([], 30), (["--test-files=2"], 70), (["--test-fraction=0.1"], 27)])
def test_a_folder_of_days_is_one_stream_and_the_last_is_held_out(tmp_path, options, num_test):
    days = {"day_10": LINES[:40], "day_2": LINES[40:240], "day_11": LINES[240:270]}
    order = [*days["day_2"], *days["day_10"], *days["day_11"]]
    for name, content in days.items():
        write(tmp_path / "days" / name, content)
    (tmp_path / "days" / ".hidden").write_text("not a log")
    assert prepare("criteo", tmp_path / "days", "--out", tmp_path / "out", *options) == 0
    assert_equal(tmp_path / "out", expected(order, num_test), num_test)


def test_files_keep_the_order_of_the_command(tmp_path):
    first, second = write(tmp_path / "b", LINES[:50]), write(tmp_path / "a", LINES[50:90])
    assert prepare("criteo", first, second, "--out", tmp_path / "out", "--test-fraction=0") == 0
    assert_equal(tmp_path / "out", expected(LINES[:90], 0), 0)


def test_a_bad_line_ends_the_command(tmp_path, capsys):
    path = write(tmp_path / "train.txt", [*LINES[:333], "nonsense", *LINES[333:400], "other"])
    message = one_line(capsys, prepare("criteo", path, "--out", tmp_path / "out"))
    assert f"{path}: line 334: 1 fields between tabs" in message
    assert message.endswith("correct it, or leave out such lines with --skip-bad-lines\n")
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_bad_lines_are_left_out_and_counted(tmp_path):
    content = [line for pair in zip(BAD, LINES, strict=False) for line in pair] + LINES[len(BAD) :] + list(BAD)
    write(tmp_path / "days" / "day_0", content)
    write(tmp_path / "days" / "day_1", [LINES[0], *["nonsense"] * 200])
    write(tmp_path / "days" / "day_2", LINES[:30])
    arguments = ["criteo", tmp_path / "days", "--out", tmp_path / "out", "--skip-bad-lines"]
    assert prepare(*arguments) == 0
    assert_equal(tmp_path / "out", expected([*LINES, LINES[0], *LINES[:30]], 30), 30)
    files = json.loads((tmp_path / "out" / "prepared.json").read_text())["files"]
    assert [(file["samples"], file["skipped"]) for file in files] == [(900, 2 * len(BAD)), (1, 200), (30, 0)]


# --- into training


def test_prepared_files_train_and_evaluate(tmp_path, monkeypatch):
    path = write(tmp_path / "train.txt", LINES)
    assert prepare("criteo", path, "--out", tmp_path / "out") == 0
    arguments = [f"--data=npy:{tmp_path / 'out'}", "--steps=20"]
    monkeypatch.setattr(Static, "count", None)  # it has the counts and reads no ids for them
    losses = {}
    for policy in ("static", "lookahead", "lru"):
        run = tmp_path / policy
        options = [
            f"--policy={policy}",
            "--mini-batch-size=30",
            "--gpu-cache-ratio=0.3",
            "--print-freq=1",
            "--lookahead=3",
        ]
        assert train_prepared(run, *arguments, *options) == 0
        report = json.loads((run / "report.json").read_text())
        assert report["steps"] == 20
        assert report["auc"] is not None
        assert report["evicted_rows"] > 0
        losses[policy] = report["losses"]
    assert losses["static"] == losses["lookahead"] == losses["lru"]


def train_prepared(run: Path, *arguments: str) -> int:
    model = ["--arch-mlp-bot=13-16-8", "--arch-mlp-top=16-1", "--arch-sparse-feature-size=8"]
    return train_main([f"--run-dir={run}", "--threads=1", "--ui=off", *model, *arguments])


def test_tables_and_counts_are_the_prepared_ones(tmp_path):
    path = write(tmp_path / "train.txt", LINES)
    assert prepare("criteo", path, "--out", tmp_path / "out", "--min-count=10") == 0
    wanted = expected(LINES, 900 // 7, min_count=10)
    spec = f"npy:{tmp_path / 'out'}"
    dataset = open_dataset(spec, None, DataRequest(None, None, 1, -1))
    assert dataset.train.table_rows == dataset.test.table_rows == tuple(wanted.table_rows)
    assert dataset.test.num_samples == 900 // 7
    assert dataset.row_counts.tolist() == wanted.counts
    lookups = np.bincount(dataset.train.read(0, dataset.train.num_samples).rows, minlength=sum(wanted.table_rows))
    assert lookups.tolist() == wanted.counts
    assert open_dataset(spec, None, DataRequest(None, None, 1, 5)).row_counts is None  # folded rows have other counts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("prepared.json", b"{", "prepared.json is garbled; prepare the data again, or remove it"),
        ("prepared.json", b'{"table_rows": [1, 2], "test_samples": 0}', "are not those of the triples there"),
        ("counts.npy", None, "counts.npy is missing but prepared.json is there; prepared.json and counts.npy belong"),
        ("counts.npy", b"", "counts.npy is empty"),
    ],
)
def test_a_damaged_output_is_refused(tmp_path, capsys, name, content, words):
    assert prepare("criteo", write(tmp_path / "a", LINES[:100]), "--out", tmp_path / "out") == 0
    path = tmp_path / "out" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert words in one_line(capsys, train(tmp_path / "run", f"--data=npy:{tmp_path / 'out'}"))


def test_outputs_do_not_depend_on_threads_and_blocks(tmp_path, monkeypatch):
    path = write(tmp_path / "train.txt", LINES)
    assert prepare("criteo", path, "--out", tmp_path / "a", "--threads=1") == 0
    monkeypatch.undo()
    assert prepare("criteo", path, "--out", tmp_path / "b", "--threads=4", "--memory=3GiB") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
