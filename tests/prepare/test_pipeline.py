"""Criteo's raw files to npy triples, against a plain Python model: the same numbers, whatever the file is packed in."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base import kernels
from cachedlrm.cache.policies import Static
from cachedlrm.data.open import open_dataset
from cachedlrm.data.raw import keys
from cachedlrm.data.spec import DataRequest
from cachedlrm.prepare import formats, pipeline, reading, vocabulary
from cachedlrm.prepare.__main__ import main
from cachedlrm.prepare.tables import TableBuilder
from cachedlrm.train import main as train_main
from support.raw_criteo import assert_equal, contents, expected, lines, mix, prepare, write
from support.runs import one_line, train

LINES = lines(900)


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


def test_many_ranges_were_counted(tmp_path, monkeypatch):
    """What the fixture is for."""
    ranges, count = [], TableBuilder._count

    def counted(*arguments):
        parts = count(*arguments)
        ranges.append(len(parts))
        return parts

    monkeypatch.setattr(TableBuilder, "_count", counted)
    assert prepare("criteo", write(tmp_path / "a", LINES), "--out", tmp_path / "out", "--threads", 3) == 0
    assert max(ranges) > 5


@pytest.mark.parametrize(
    "options", [{"min_count": 3}, {"max_ind_range": 50}, {"max_ind_range": 97, "min_count": 4}, {"min_count": 10**6}]
)
def test_vocabulary_options(tmp_path, options):
    path = write(tmp_path / "train.txt", LINES)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert prepare("criteo", path, "--out", tmp_path / "out", "--test-fraction=0.25", *flags) == 0
    assert_equal(tmp_path / "out", expected(LINES, 225, **options), 225)


def packed(path: Path, packing: str, content: list[str]) -> None:
    raw = "".join(f"{line}\n" for line in content).encode()
    half = len(raw) // 2
    if packing == "gzip":
        path.write_bytes(gzip.compress(raw))
    elif packing == "zstd":
        path.write_bytes(pa.Codec("zstd").compress(raw, asbytes=True))
    elif packing.startswith("two"):  # as `cat a.gz b.gz` and parallel compressors make them
        codec = gzip.compress if packing == "two gzip" else lambda b: pa.Codec("zstd").compress(b, asbytes=True)
        path.write_bytes(codec(raw[:half]) + codec(raw[half:]))
    else:
        path.write_bytes({"no last line end": raw[:-1], "carriage returns": raw.replace(b"\n", b"\r\n")}[packing])


@pytest.mark.parametrize("packing", ["gzip", "zstd", "two gzip", "two zstd", "no last line end", "carriage returns"])
def test_packing_changes_nothing(tmp_path, packing):
    packed(tmp_path / "train", packing, LINES)
    assert prepare("criteo", tmp_path / "train", "--out", tmp_path / "out", "--test-fraction", 0) == 0
    assert_equal(tmp_path / "out", expected(LINES, 0), 0)


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


# --- lines that do not parse

FIELDS = LINES[0].split("\t")


def changed(**fields: str) -> str:
    """The first line with other fields, by their numbers from 1."""
    return "\t".join(fields.get(f"f{number}", field) for number, field in enumerate(FIELDS, 1))


BAD = {
    "": "1 fields between tabs where a label, 13 integers and 26 categories make 40",
    "\t".join(FIELDS[:-1]): "39 fields",
    "\t".join([*FIELDS, "1"]): "41 fields",
    changed(f1=""): "label '' is neither 0 nor 1",
    changed(f1="2"): "label '2' is neither 0 nor 1",
    changed(f1="1.0"): "label '1.0'",
    changed(f5="1.5"): "field 5, '1.5', is not an integer of 32 bits",
    changed(f14=str(2**31)): "field 14, '2147483648', is not an integer of 32 bits",
    changed(f15="xyz"): "field 15, 'xyz', is not up to 8 hexadecimal digits",
    changed(f40="123456789"): "field 40, '123456789', is not up to 8 hexadecimal digits",
    changed(f40="12\x00"): r"field 40, '12\x00'",
    changed(f20='"ab"'): "field 20",
    changed(f20="é"): r"field 20, '\xc3\xa9'",
    changed(f40="ab\rcd"): "field 40",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(tmp_path, capsys, line):
    path = write(tmp_path / "train.txt", [*LINES[:333], line, *LINES[333:400], line])
    message = one_line(capsys, prepare("criteo", path, "--out", tmp_path / "out"))
    assert f"{path}: line 334: {BAD[line]}" in message
    assert message.endswith("correct it, or leave out such lines with --skip-bad-lines\n")
    assert not (tmp_path / "out" / "prepared.json").exists()


def test_bad_lines_are_left_out_and_counted(tmp_path):
    content = [line for pair in zip(BAD, LINES, strict=False) for line in pair] + LINES[len(BAD) :] + list(BAD)
    write(tmp_path / "days" / "day_0", content)
    write(tmp_path / "days" / "day_1", ["nonsense"] * 200)
    write(tmp_path / "days" / "day_2", LINES[:30])
    arguments = ["criteo", tmp_path / "days", "--out", tmp_path / "out", "--skip-bad-lines"]
    assert prepare(*arguments) == 0
    assert_equal(tmp_path / "out", expected(LINES + LINES[:30], 30), 30)
    files = json.loads((tmp_path / "out" / "prepared.json").read_text())["files"]
    assert [(file["samples"], file["skipped"]) for file in files] == [(900, 2 * len(BAD)), (0, 200), (30, 0)]


def test_the_first_bad_lines_are_said(tmp_path, capsys):
    path = write(tmp_path / "a", [*LINES[:100], *["x"] * 9])
    arguments = ["criteo", path, "--out", tmp_path / "out", "--skip-bad-lines", "--ui=plain"]
    assert main(list(map(str, arguments))) == 0
    said = capsys.readouterr().out
    assert f"skipped {path}: line 101: 1 fields" in said
    assert said.count("skipped /") == reading._SHOWN_BAD_LINES
    assert "86 samples to train on, 14 held out, 9 lines skipped" in said


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_file_is_named(tmp_path, capsys, packing, damage):
    path = tmp_path / "train.x"
    packed(path, packing, LINES)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    message = one_line(capsys, prepare("criteo", path, "--out", tmp_path / "out", "--skip-bad-lines"))
    assert f"{path} cannot be read: " in message


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


# --- the hash tables


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    column=st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=300),
    slots=st.sampled_from([4, 16, 1024]),
    min_count=st.integers(1, 4),
)
def test_counts_and_ranks_do_not_depend_on_the_table(column, slots, min_count):
    array = np.array(column, np.uint64)
    pieces = [array[:100], array[100:]]
    parts = list(vocabulary.count_keys(lambda: [(0.5, pieces[0]), (1.0, pieces[1])], slots, lambda share: None))
    assert parts[0][0] == 0
    assert parts[-1][1] == 2**64 - 1
    assert all(one[1] + 1 == other[0] for one, other in pairwise(parts))
    ranking = vocabulary.Ranking((counts for _, _, _, counts in parts), min_count)
    made = {}
    for _, _, mixed, counts in parts:
        made |= dict(zip(keys.unmix_all(mixed).tolist(), ranking.rows(counts).tolist(), strict=True))
    wanted = sorted((k for k in set(column) if column.count(k) >= min_count), key=lambda k: (-column.count(k), mix(k)))
    assert {key: row for key, row in made.items() if row} == {key: row for row, key in enumerate(wanted, 1)}
    assert set(made) == set(column)
    assert ranking.num_rows == len(wanted) + 1


@settings(deadline=None, derandomize=True)
@given(key=st.integers(0, 2**64 - 1))
def test_mixing_is_a_permutation(key):
    assert kernels.mix(np.uint64(key)) == mix(key)
    assert keys.unmix(np.uint64(mix(key))) == key


def test_outputs_do_not_depend_on_threads_and_blocks(tmp_path, monkeypatch):
    path = write(tmp_path / "train.txt", LINES)
    assert prepare("criteo", path, "--out", tmp_path / "a", "--threads=1") == 0
    monkeypatch.undo()
    assert prepare("criteo", path, "--out", tmp_path / "b", "--threads=4", "--memory=3GiB") == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
