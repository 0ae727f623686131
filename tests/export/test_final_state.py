"""The state that a run leaves, and what is refused of one that does not belong to its config.toml."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import main
from cachedlrm.export.final_state import load_final_state, most_bytes
from cachedlrm.export.formats.safetensors_file import write_tensors
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.profiles import load_resolved
from cachedlrm.store.records import OPTIONS_BEFORE

F4 = np.float32


def rewrite(run: Path, **changes: np.ndarray | None) -> None:
    """Replaces tensors of the final state, or takes them away, and keeps the rest."""
    path = run / "final.safetensors"
    with safe_open(str(path), "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path) | {name.replace("__", "."): array for name, array in changes.items()}
    tensors = {name: array for name, array in tensors.items() if array is not None}
    write_tensors(path, {name: (a.dtype, a.shape) for name, a in tensors.items()}, tensors.values(), metadata)


def test_the_header_says_what_the_state_belongs_to(finished):
    with safe_open(str(finished / "final.safetensors"), "numpy") as file:
        metadata = file.metadata()
    assert metadata["numpy-rand-seed"] == "123"
    assert metadata["arch-embedding-size"] == "400-30-900-5"
    assert metadata["rows"] == "touched"
    assert {"optimizer", "init", "qr-flag", "md-flag", "arch-mlp-top"} <= metadata.keys()


def test_a_state_of_an_earlier_release_has_sums_of_rows_of_32_bits(run, tmp_path):
    path = run / "final.safetensors"
    with safe_open(str(path), "numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {metadata.pop(name) for name in OPTIONS_BEFORE} == {"fp32", "sum"}
    write_tensors(path, {name: (a.dtype, a.shape) for name, a in tensors.items()}, tensors.values(), metadata)
    assert main([str(run), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("numpy-rand-seed = 123", "numpy-rand-seed = 124", ["--numpy-rand-seed 123", "--numpy-rand-seed 124"]),
        ("400-30-900-5", "400-30-901-5", ["--arch-embedding-size 400-30-900-5", "400-30-901-5"]),
        ('optimizer = "adagrad"', 'optimizer = "rwsadagrad"', ["--optimizer adagrad", "--optimizer rwsadagrad"]),
        ('init = "counter"', 'init = "reference"', ["--init counter", "--init reference"]),
        ('init = "counter"', "", ["[store] lacks init"]),
        ('arch-mlp-top = "16-1"', 'arch-mlp-top = "1"', ["--arch-mlp-top 16-1", "--arch-mlp-top 1"]),
        ("qr-flag = false", "qr-flag = true", ["--qr-flag False", "--qr-flag True"]),
        ("md-flag = false", "md-flag = true", ["--md-flag False", "--md-flag True"]),
        ("[model]", '[model]\nweighted-pooling = "learned"', ["no --weighted-pooling", "--weighted-pooling learned"]),
        ("[inference]", '[inference]\nload-model = "x.pt"', ["no --load-model", "--load-model x.pt"]),
        ('optimizer = "adagrad"', "", ["[optimisation] lacks optimizer"]),
        ('arch-mlp-top = "16-1"', "", ["[model] lacks arch-mlp-top"]),
        ("md-round-dims = false", "md-flag = true", ["config.toml"]),
    ],
)
def test_a_config_of_another_run_is_refused_by_name(run, tmp_path, refusal, old, new, words):
    config = run / "config.toml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    message = refusal(run, tmp_path / "out")
    assert all(word in message for word in [str(config), *words]), message
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_matter_may_change(run, tmp_path):
    config = run / "config.toml"
    config.write_text(config.read_text().replace("print-freq = 50", "print-freq = 5"))
    assert main([str(run), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows__0": None}, "rows.0 is missing"),
        ({"records__0": None}, "records.0 is missing"),
        ({"rows__0": np.array([0, 1])}, "records.0 is F32"),
        ({"rows__0": np.array([0, 0]), "records__0": np.zeros((2, 16), F4)}, "rows.0 are not in order, each once"),
        ({"rows__0": np.array([0, 1335]), "records__0": np.zeros((2, 16), F4)}, "holds row 1335 of 1335"),
        ({"rows__0": np.array([0, -1]), "records__0": np.zeros((2, 16), F4)}, "holds row -1 of 1335"),
        ({"rows__0": np.array([0, 1], np.int32), "records__0": np.zeros((2, 16), F4)}, "rows.0 is I32 [2]"),
        ({"rows__0": np.array([[0, 1]]), "records__0": np.zeros((2, 16), F4)}, "rows.0 is I64 [1, 2]"),
        ({"rows__0": np.array([0, 1]), "records__0": np.zeros((2, 15), F4)}, "records.0 is F32 [2, 15]"),
        ({"rows__0": np.array([0, 1]), "records__0": np.zeros((2, 16), np.int32)}, "records.0 is I32"),
        ({"rows__1": np.array([0])}, "rows.1 does not belong there"),
        ({"bot_l__0__weight": None}, "bot_l.0.weight is missing, not F32 [16, 3]"),
        ({"bot_l__0__weight": np.zeros((3, 16), F4)}, "bot_l.0.weight is F32 [3, 16], not F32 [16, 3]"),
        ({"top_l__0__bias": np.zeros(16, np.int64)}, "top_l.0.bias is I64"),
        ({"more": np.zeros(1, F4)}, "more does not belong there"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused(run, tmp_path, refusal, changes, words):
    rewrite(run, **changes)
    message = refusal(run, tmp_path / "out")
    assert words in message
    assert str(run / "final.safetensors") in message


def test_a_state_without_a_name_is_refused(run, tmp_path, refusal):
    path = run / "final.safetensors"
    tensors = load_file(path)
    write_tensors(path, {name: (a.dtype, a.shape) for name, a in tensors.items()}, tensors.values())
    assert "does not say which run" in refusal(run, tmp_path / "out")


def test_damage_is_one_line(run, tmp_path, refusal):
    path = run / "final.safetensors"
    whole = path.read_bytes()
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    odd = {**header, "rows.0": {**header["rows.0"], "dtype": "BF16"}}
    odd_header = json.dumps(odd).encode()
    odd_header += b" " * (-len(odd_header) % 8)
    damaged = [b"", whole[:4], whole[:100], whole[:-1], whole + b"x", b"\xff" * len(whole), whole[8:],
               len(odd_header).to_bytes(8, "little") + odd_header + whole[8 + int.from_bytes(whole[:8], "little") :],
               whole.replace(b'"rows.0"', b'"rowz.0"'), whole.replace(b'"F32"', b'"F16"'),
               whole.replace(b'"F32"', b'"BF6"')]  # fmt: skip
    for content in damaged:
        path.write_bytes(content)
        assert str(path) in refusal(run, tmp_path / "out")
    path.unlink()
    assert "holds no finished run" in refusal(run, tmp_path / "out")
    path.mkdir()
    assert "holds no finished run" in refusal(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_and_records_are_those_of_the_file(run):
    path = run / "final.safetensors"
    options = load_resolved(run / "config.toml")
    architecture = build_architecture(options.model, options.optimisation)
    state, tensors = load_final_state(run, options, architecture), load_file(path)
    (group,) = state.groups
    assert group.rows.tolist() == tensors["rows.0"].tolist() == sorted(set(tensors["rows.0"].tolist()))
    assert group.between(3, 7).tolist() == tensors["records.0"][3:7].tolist()
    assert group.records.shape == (len(group.rows), 16), "8 columns of the weight, 8 of adagrad's sum"
    assert {name: array.tolist() for name, array in state.dense.items()} == {
        name: array.tolist()
        for name, array in tensors.items()
        if not name.startswith(("rows.", "records.", "optimizer."))
    }
    layers = {f"optimizer.{key}.{name}" for name, entry in state.dense_state.items() for key in entry}
    assert layers == {name for name in tensors if name.startswith("optimizer.")}
    assert {key for entry in state.dense_state.values() for key in entry} == {"step", "sum"}


@pytest.mark.parametrize(
    ("store", "model", "expected"),
    [
        ("host", None, (30 * (64 + 8) + 5 * (32 + 8), 0)),
        ("lmdb", None, (30 * (64 + 8) + 5 * (32 + 8), 30 * (64 + 4) + 5 * (32 + 4))),
        ("lmdb", Path("m.pt"), (100 * (64 + 8) + 5 * (32 + 8), 0)),
    ],
    ids=["host", "lmdb", "a loaded model"],
)
def test_the_most_bytes_by_hand(store, model, expected):
    """Groups of 100 rows and of 5, records of 64 bytes and of 32, and 30 lookups."""
    groups = [
        SimpleNamespace(
            store=SimpleNamespace(capacity_rows=rows),
            shape=SimpleNamespace(num_rows=rows),
            layout=SimpleNamespace(record_bytes=size),
        )
        for rows, size in ((100, 64), (5, 32))
    ]
    options = SimpleNamespace(store=SimpleNamespace(store=store), inference=SimpleNamespace(load_model=model))
    assert most_bytes(SimpleNamespace(groups=groups), options, 30) == expected
