"""Readers of files that somebody else may have made: each takes them as they are, or says no. None runs them.

Longer campaigns with the same generators were run by hand; docs/log/store.md says how many inputs they tried.
"""

import ast
import dataclasses
import itertools
import json
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cachedlrm
from cachedlrm.base.errors import UserError
from cachedlrm.options.config import Options
from cachedlrm.options.profiles import load_options
from cachedlrm.report.markdown import _course
from cachedlrm.run.directory import RunDirectory
from cachedlrm.store.checkpoint_value import Checkpoint, decode_checkpoint
from cachedlrm.store.environment import parse_identity
from cachedlrm.store.segment import HEADER_BYTES, SegmentBuilder, parse_segment, xxh32
from support.runs import SMALL

quick = settings(deadline=None, derandomize=True, max_examples=300)
NUM_ROWS, SEQUENCE = 1000, 77


def segment(count: int, width: int, capacity: int) -> bytes:
    random = np.random.default_rng(count)
    builder = SegmentBuilder(capacity, width)
    builder.append(random.integers(0, NUM_ROWS, count), random.normal(size=(count, width)).astype(np.float32))
    return builder.finish(SEQUENCE).tobytes()


def first_damaged(value: bytes, width: int) -> int | None:
    """The first damaged record; None: it is refused as a whole."""
    try:
        return parse_segment(value, SEQUENCE, width, NUM_ROWS).first_damaged()
    except ValueError:
        return None


# --- segments

sizes = st.tuples(st.integers(1, 90), st.integers(1, 33), st.integers(0, 9))


@quick
@given(sizes, st.integers(0), st.integers(1, 255))
def test_every_changed_byte_is_found_where_it_is(size, place, change):
    count, width, room = size
    value = segment(count, width, count + room)
    assert first_damaged(value, width) == -1
    start, record = HEADER_BYTES + 4 * count, 4 * (1 + width)
    place %= start + count * record
    changed = value[:place] + bytes([value[place] ^ change]) + value[place + 1 :]
    assert first_damaged(changed, width) == (None if place < start else (place - start) // record)


@quick
@given(st.binary(max_size=9000), st.integers(0, 2**64), st.sampled_from([0, 1, 16, 2**31]), st.integers(0, 2**33))
@example(b"", 0, 1, 1)
def test_bytes_that_are_no_segment(value, sequence, width, num_rows):
    with pytest.raises(ValueError, match=r".+"):
        parse_segment(value, sequence, width, num_rows)


extreme = st.one_of(st.integers(0, 40), st.sampled_from([16383, 16384, 16385, 2**31 - 1, 2**31, 2**32 - 1]))


@quick
@given(sizes, extreme, extreme, st.lists(st.tuples(st.integers(0), extreme), max_size=5), st.integers(0, 9000))
def test_a_segment_with_right_checksums_and_wrong_numbers(size, count, width, words, end):
    value = np.frombuffer(bytearray(segment(*size[:2], size[0])), "<u4").copy()
    value[1:3] = count, width
    for place, word in words:
        value[place % len(value)] = word
    value[3] = xxh32(value[4 : 8 + min(count, len(value) - 8)], np.uint32(0))
    for data in (value.tobytes(), value.tobytes()[:end]):
        try:
            view = parse_segment(data, SEQUENCE, width, NUM_ROWS)
        except ValueError:
            continue
        assert len(view.rows) == count <= 16384
        assert view.entries.shape == (count, 1 + width)
        assert (view.rows < NUM_ROWS).all()
        assert -1 <= view.first_damaged() < count


def test_a_segment_of_more_records_than_a_place_can_tell():
    assert first_damaged(segment(16384, 1, 16384), 1) == -1
    with pytest.raises(ValueError, match="16385 records are more than a segment holds"):
        parse_segment(segment(16385, 1, 16385), SEQUENCE, 1, NUM_ROWS)


# --- checkpoints

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
CHECKPOINT = Checkpoint(7, ((3, 5),), {"bot_l.0.weight": ARRAY}, {"bot_l.0.weight": {"sum": ARRAY}}, 0, {"steps": 7})

numbers = st.one_of(st.sampled_from([0, -1, 2**31, 2**62, 2**64, 2**200, 1.5, True, None, "3"]), st.integers(0, 99))
anything = st.recursive(
    st.one_of(numbers, st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)),
    max_leaves=9,
)
shapes = st.one_of(st.lists(st.sampled_from([0, 1, 2, 3, 2**32, 2**62, 2**63, -1]), max_size=4), anything)
tensors = st.dictionaries(
    st.sampled_from(["dense.a", "dense.", "dense", "state.sum.a", "state.a", "", "a.b.c"]),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F64", "BF16", "F16", "F8_E4M3", "F4", "I64", "BOOL", "U64", "C64", "X"]),
            "shape": shapes,
            "data_offsets": st.one_of(st.lists(st.sampled_from([0, 4, 8, 24, 2**63, -1]), max_size=3), anything),
        }
    ),
    max_size=3,
)
counts = st.fixed_dictionaries(
    {},
    optional={
        "batches": numbers,
        "boundaries": st.one_of(st.lists(numbers, max_size=3), anything),
        "live_segments": st.one_of(st.lists(numbers, max_size=3), anything),
        "steps_before": numbers,
        "progress": anything,
    },
)


def sealed(body: bytes) -> bytes:
    """With the right checksum, so that what is behind it is looked at."""
    return zlib.crc32(body).to_bytes(4, "little") + body


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return sealed(len(header).to_bytes(8, "little") + header + data)


def decoded(value: bytes) -> Checkpoint | None:
    try:
        return decode_checkpoint(value)
    except ValueError:
        return None


@quick
@given(st.integers(0), st.integers(1, 255))
def test_every_changed_byte_of_a_checkpoint_is_found(place, change):
    value = CHECKPOINT.encode()
    assert decoded(value).progress == CHECKPOINT.progress
    place %= len(value)
    assert decoded(value[:place] + bytes([value[place] ^ change]) + value[place + 1 :]) is None


@quick
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4), st.integers(0, 900))
def test_a_changed_checkpoint_with_the_right_checksum(changes, end):
    body = bytearray(CHECKPOINT.encode()[4:])
    for place, byte in changes:
        body[place % len(body)] = byte
    for value in (bytes(body), bytes(body[:end])):
        decoded(sealed(value))


@quick
@given(st.binary(max_size=99))
@example(b"")
@example((2**63).to_bytes(8, "little") + b"{}")
@example((2**64 - 1).to_bytes(8, "little") + b"{}")
@example((100).to_bytes(8, "little") + b"[" * 100)
def test_bytes_that_are_no_checkpoint(body):
    assert decoded(body) is None
    assert decoded(sealed(body)) is None


@quick
@given(tensors, st.one_of(counts.map(json.dumps), anything), st.sampled_from([0, 4, 8, 24]))
def test_a_made_up_checkpoint(entries, checkpoint, size):
    found = decoded(
        with_header(json.dumps({"__metadata__": {"checkpoint": checkpoint}, **entries}).encode(), bytes(size))
    )
    if found is not None:
        assert all(0 <= number < 2**62 for number in (found.batches, found.steps_before, *itertools.chain(*found.ends)))
        assert isinstance(found.progress, dict)
        assert sum(array.nbytes for array in found.dense.values()) <= size


@pytest.mark.parametrize("deep", ["[", '{"a":'])
def test_deep_nesting(deep, tmp_path):
    """The parser of JSON goes down with it, and stops by an error of its own."""
    text = deep * 200_000
    assert decoded(with_header(text.encode())) is None
    assert decoded(with_header(json.dumps({"__metadata__": {"checkpoint": text}}).encode())) is None
    with pytest.raises(UserError, match="does not say what it is of"):
        parse_identity(tmp_path, text.encode())
    assert metrics(tmp_path, text.encode() + b"\n") == []
    (tmp_path / "config.toml").write_text("x = " + "[" * 100_000)
    with pytest.raises(UserError, match=r"config\.toml"):
        load_options(tmp_path / "config.toml")


# --- text


@quick
@given(st.one_of(st.binary(max_size=60), anything.map(lambda value: json.dumps(value).encode()), st.just(b"9" * 5000)))
def test_an_identity(value):
    try:
        found = parse_identity(Path("store"), value)
    except UserError:
        return
    assert all(isinstance(text, str) for pair in found.items() for text in pair)


def metrics(directory: Path, content: bytes, last_step: int = 50) -> list:
    (directory / "metrics.jsonl").write_bytes(content)
    with RunDirectory.reopen(directory) as run:
        return run.read_metrics(last_step)[0]


metrics_rows = st.dictionaries(st.sampled_from(["step", "loss", "auc", "wait_ms", "x"]), anything)
odd_lines = (
    b'{"step": 1, "loss": NaN}',
    b'{"step": 1e999}',
    b'{"step": ' + b"9" * 5000 + b"}",
    b'{"step": true}',
    b'{"step": 1, "loss": "x"}',
    b'{"step": 1, "auc": [1]}',
    b'{"step": 1, "loss": 1e400}',
)
line = st.one_of(
    st.binary(max_size=40),
    metrics_rows.map(lambda row: json.dumps(row).encode()),
    st.integers(0, 60).map(lambda step: b'{"step": %d, "loss": 0.5, "auc": null}' % step),
    st.sampled_from(odd_lines),
)


@settings(quick, max_examples=200)
@given(st.lists(line, max_size=4), st.sampled_from([b"\n", b"", b"\r", b"\r\n"]))
def test_metrics_are_whole_lines_of_numbers(tmp_path_factory, lines, end):
    directory = tmp_path_factory.getbasetemp()
    content = b"\n".join(lines) + end
    rows = metrics(directory, content)
    kept = (directory / "metrics.jsonl").read_bytes()
    assert content.startswith(kept)
    assert [json.loads(text) for text in kept.splitlines()] == rows
    assert all(row["step"] <= 50 for row in rows)
    assert all(value is None or abs(value) < 2**63 for row in rows for value in row.values())
    _course(rows)  # the report can be written


def test_metrics_elsewhere_are_not_cut_short(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with RunDirectory.reopen(tmp_path) as run, pytest.raises(UserError, match="symbolic link"):
        run.read_metrics(5)
    assert (tmp_path / "precious").read_text() == "text"


odd_values = ("true", "[]", "{}", "[[1]]", "1979-05-27", '"1-2-3"', '"/dev/zero"', '"--help"', '"=x"', '"-"', "'\x01'")
toml_values = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=12).map(json.dumps),
    st.sampled_from(odd_values),
)
OPTIONS = [
    (group.name, option.name.replace("_", "-"))
    for group in dataclasses.fields(Options)
    for option in dataclasses.fields(group.default_factory)
]
given_options = st.tuples(st.sampled_from(OPTIONS), toml_values)


@settings(quick, max_examples=200)
@given(st.lists(given_options, min_size=1, max_size=3, unique_by=lambda pair: pair[0]))
@example([(("run", "steps"), "9" * 5000)])
@example([(("run", "resume"), '"/etc"')])
@example([(("model", "arch-embedding-size"), json.dumps("9" * 5000))])
def test_a_config_of_a_stranger(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "config.toml"
    groups: dict[str, list[str]] = {}
    for (group, name), value in values:
        groups.setdefault(group, []).append(f"{name} = {value}")
    path.write_text("\n".join(f"[{group}]\n" + "\n".join(lines) for group, lines in groups.items()), encoding="utf-8")
    refusals = []
    try:
        load_options(path)
    except UserError as error:
        refusals.append(str(error))
    assert all(str(path) in refusal and "\n" not in refusal for refusal in refusals)


# --- code and files


def test_no_module_reads_pickles():
    """Pickle is imported to write torch's format, and for the name of an error."""
    uses = {}
    for path in Path(cachedlrm.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        uses |= {name: path.name for name in names if name.startswith(("pickle.", "marshal.", "shelve.", "dill."))}
        for name, call in calls:
            assert name not in ("eval", "exec", "compile", "__import__"), path
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load":
                assert keywords["weights_only"] == "True", path
            if name in ("np.load", "np.save", "np.savez", "np.lib.format.read_array"):
                assert keywords.get("allow_pickle") == "False", (path, name)
    assert uses == {"pickle.UnpicklingError": "model_file.py", "pickle.Pickler": "torch_file.py"}


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_have_the_users_umask(mask, tmp_path):
    command = [sys.executable, "-m", "cachedlrm.train", *SMALL, "--steps=2", "--checkpoint-every=1"]
    done = subprocess.run(
        [*command, f"--run-dir={tmp_path / 'run'}", "--save-predictions=True", "--test-freq=1"],
        umask=mask, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
    of_store, of_run = {"store", "data.mdb", "lock.mdb", "store.lock"}, {"run", "run.lock", "config.toml"}
    results = {"metrics.jsonl", "report.json", "report.md", "report.html", "final.safetensors", "predictions.npy"}
    assert of_store | of_run | results == {path.name for path in made}
    for path in made:
        whole = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~mask, path.name
