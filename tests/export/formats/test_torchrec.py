"""The way out: what a run exports, TorchRec loads in two processes, predicts the same with and trains on.

Where torchrec and fbgemm-gpu-cpu are not installed, only what needs neither is run (docs/hand_over.md names versions).
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.numpy import load_file

from cachedlrm.export.__main__ import main
from support.documents import ROOT, blocks
from support.runs import SMALL, one_line, parameters, train

needs_torchrec = pytest.mark.skipif(
    importlib.util.find_spec("torchrec") is None, reason="torchrec is not installed; see docs/hand_over.md"
)

CARDINALITIES, BATCH, STEPS, MORE = (400, 30, 900, 5), 100, 12, 8
OPTIMIZERS = {"sgd": "EXACT_SGD", "adagrad": "EXACT_ADAGRAD", "rwsadagrad": "EXACT_ROWWISE_ADAGRAD"}

INTERACTIONS = {
    "dcn": ["--arch-interaction-op=dcn", "--dcn-num-layers=2", "--dcn-low-rank-dim=5"],
    "projection": [
        *["--arch-interaction-op=projection", "--interaction-branch1-layer-sizes=12-16"],
        "--interaction-branch2-layer-sizes=24",
    ],
}

DRIVER = """
import gc, json, sys
from pathlib import Path
import numpy as np, torch, torch.distributed as dist
from go_on import dense_parameters, load_model, read_batches, train

def main(folder, more, test, dense_optimizer):
    config = json.load(open(f"{folder}/torchrec.json"))
    model = load_model(folder, config, torch.device("cpu"))
    shards, states = {}, model.fused_optimizer.state_dict()["state"].values()
    for name, tensor in [*model.state_dict().items(), *(pair for sums in states for pair in sums.items())]:
        if hasattr(tensor, "local_shards"):
            for shard in tensor.local_shards():
                shards[f"{name}@{shard.metadata.shard_offsets[0]}"] = shard.tensor.numpy().copy()
    with torch.no_grad():
        batches = read_batches(test, config, 100)
        predictions = [model(features, ids).sigmoid().squeeze(1) for features, ids, _ in batches]
    optimizer = getattr(torch.optim, dense_optimizer)(dense_parameters(model), lr=config["learning_rate"])
    losses = list(train(model, read_batches(more, config, 100), optimizer))
    arrays = {"losses": losses, "predictions": torch.stack(predictions).numpy(), **shards}
    np.savez(f"{folder}/rank{dist.get_rank()}.npz", **arrays)

dist.init_process_group("gloo")
main(*sys.argv[1:])
gc.collect()
dist.destroy_process_group()
threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert not any("gloo" in name for name in threads), threads  # one that lives on may abort the process as it ends
"""


def write_data(folder: Path, num_samples: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    np.save(folder / "day_dense.npy", rng.standard_normal((num_samples, 3)).astype(np.float32))
    ids = [rng.zipf(1.2, num_samples) % rows for rows in CARDINALITIES]
    np.save(folder / "day_sparse.npy", np.stack(ids, axis=1).astype(np.int32))
    np.save(folder / "day_labels.npy", (rng.random((num_samples, 1)) < 0.3).astype(np.int32))
    return folder


def join_data(folder: Path, *parts: Path) -> Path:
    folder.mkdir()
    for path in parts[0].iterdir():
        np.save(folder / path.name, np.concatenate([np.load(part / path.name) for part in parts]))
    return folder


def run(directory: Path, data: Path, optimizer: str, steps: int, *arguments: str) -> dict:
    """The report of a run whose tables are cached at a tenth."""
    arguments = (f"--data=npy:{data}", f"--optimizer={optimizer}", "--learning-rate=0.1", f"--steps={steps}",
                 "--arch-mlp-top=16-8-1", "--print-freq=1", "--gpu-cache-rows=300", *arguments)  # fmt: skip
    assert train(directory, *arguments) == 0
    report = json.loads((directory / "report.json").read_text())
    assert steps == 0 or report["evicted_rows"] > 0
    return report


def hand_over(folder: Path, *arguments: str) -> dict[str, np.ndarray]:
    """What two processes of TorchRec make of an exported folder, process by process along the first axis."""
    (code,) = [block.text for block in blocks(ROOT / "docs" / "hand_over.md") if block.language == "python"]
    (folder / "go_on.py").write_text(code)
    (folder / "driver.py").write_text(DRIVER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [*command, folder / "driver.py", folder, *arguments],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [np.load(folder / f"rank{rank}.npz") for rank in range(2)]
    shards = {name.partition("@")[0] for rank in ranks for name in rank.files if "@" in name}
    joined = {
        name: np.concatenate([rank[key] for rank in ranks for key in rank.files if key.startswith(f"{name}@")])
        for name in shards
    }
    return {
        **joined,
        "losses": np.stack([rank["losses"] for rank in ranks]),
        "predictions": np.concatenate([rank["predictions"] for rank in ranks], axis=1).ravel(),
    }


def export(run_dir: Path, out: Path, *arguments: str) -> int:
    return main([str(run_dir), str(out), "--format=torchrec", *arguments])


@needs_torchrec
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_torchrec_goes_on_where_the_run_ended(tmp_path, optimizer):
    """With adagrad the dense layers' sums start anew there, so that run is handed over before its first step."""
    steps = STEPS if optimizer == "sgd" else 0
    before, after = write_data(tmp_path / "before", STEPS * BATCH, 1), write_data(tmp_path / "after", MORE * BATCH, 2)
    test = write_data(tmp_path / "test", 3 * BATCH, 3)
    stays = join_data(tmp_path / "both", before, after) if steps else after
    evaluated = (f"--test-data=npy:{test}", "--save-predictions", "--test-freq=1000")
    run(tmp_path / "run", before, optimizer, STEPS, *evaluated)
    losses = run(tmp_path / "stays", stays, optimizer, steps + MORE)["losses"][steps:]
    if not steps:
        run(tmp_path / "start", before, optimizer, 0)
    out = tmp_path / "out"
    assert export(tmp_path / ("run" if steps else "start"), out, "--with-optimizer-state") == 0
    dense_optimizer = "SGD" if optimizer == "sgd" else "Adagrad"
    there = hand_over(out, str(after), str(test), dense_optimizer)
    np.testing.assert_allclose(there["losses"].mean(axis=0), losses, rtol=2e-6)
    if steps:
        predictions = np.load(tmp_path / "run" / "predictions.npy")
        np.testing.assert_allclose(there["predictions"], predictions, rtol=2e-6)


@needs_torchrec
@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_other_interactions_go_on_there_too(tmp_path, interaction):
    before, after = write_data(tmp_path / "before", STEPS * BATCH, 1), write_data(tmp_path / "after", MORE * BATCH, 2)
    test, arguments = write_data(tmp_path / "test", 3 * BATCH, 3), INTERACTIONS[interaction]
    evaluated = (f"--test-data=npy:{test}", "--save-predictions", "--test-freq=1000")
    run(tmp_path / "run", before, "sgd", STEPS, *evaluated, *arguments)
    stays = join_data(tmp_path / "both", before, after)
    losses = run(tmp_path / "stays", stays, "sgd", STEPS + MORE, *arguments)["losses"][STEPS:]
    assert export(tmp_path / "run", tmp_path / "out") == 0
    there = hand_over(tmp_path / "out", str(after), str(test), "SGD")
    np.testing.assert_allclose(there["losses"].mean(axis=0), losses, rtol=2e-6)
    np.testing.assert_allclose(there["predictions"], np.load(tmp_path / "run" / "predictions.npy"), rtol=2e-6)


@needs_torchrec
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rows_and_their_sums_arrive_to_the_bit(tmp_path, optimizer):
    data, test = write_data(tmp_path / "data", STEPS * BATCH, 1), write_data(tmp_path / "test", 2 * BATCH, 3)
    run(tmp_path / "run", data, optimizer, STEPS, f"--test-data=npy:{test}", "--save-predictions")
    out = tmp_path / "out"
    assert export(tmp_path / "run", out, "--with-optimizer-state") == 0
    assert main([str(tmp_path / "run"), str(tmp_path / "file"), "--with-optimizer-state"]) == 0
    ours = load_file(tmp_path / "file")
    there = hand_over(out, str(data), str(test), "SGD")
    for table in range(len(CARDINALITIES)):
        name = f"sparse_arch.embedding_bag_collection.embedding_bags.emb_l_{table}.weight"
        assert (there[name] == ours[f"emb_l.{table}.weight"]).all()
        if optimizer != "sgd":
            sums = ours[f"emb_l.{table}.state"]
            assert sums.any()
            assert (there[f"emb_l_{table}.momentum1"] == sums.reshape(there[f"emb_l_{table}.momentum1"].shape)).all()
    predictions = np.load(tmp_path / "run" / "predictions.npy")
    np.testing.assert_allclose(there["predictions"], predictions, rtol=2e-6)
    assert there["losses"].shape == (2, STEPS)


# --- without TorchRec


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "run"
    assert train(directory, "--steps=3", "--optimizer=rwsadagrad", "--arch-mlp-top=16-8-1") == 0
    return directory


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_folder_is_a_checkpoint_of_torch(finished, tmp_path):
    assert export(finished, tmp_path / "out", "--with-optimizer-state") == 0
    assert main([str(finished), str(tmp_path / "file"), "--with-optimizer-state"]) == 0
    ours = load_file(tmp_path / "file")
    state = {f"embedding_bags.emb_l_{t}.weight": torch.zeros(rows, 8) for t, rows in enumerate(CARDINALITIES)}
    state |= {f"embedding_bags.emb_l_{t}.momentum1": torch.zeros(rows) for t, rows in enumerate(CARDINALITIES)}
    state |= {"bot_l.0.weight": torch.zeros(16, 3), "over_arch.model.1.bias": torch.zeros(1)}
    dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "out")), no_dist=True)
    for table in range(len(CARDINALITIES)):
        assert (state[f"embedding_bags.emb_l_{table}.weight"].numpy() == ours[f"emb_l.{table}.weight"]).all()
        assert (state[f"embedding_bags.emb_l_{table}.momentum1"].numpy() == ours[f"emb_l.{table}.state"][:, 0]).all()
    assert (state["bot_l.0.weight"].numpy() == ours["bot_l.0.weight"]).all()
    assert (state["over_arch.model.1.bias"].numpy() == ours["top_l.4.bias"]).all()


def test_the_settings_are_those_of_the_run(finished, tmp_path):
    assert export(finished, tmp_path / "out") == 0
    settings = json.loads((tmp_path / "out" / "torchrec.json").read_text())
    assert [table["num_embeddings"] for table in settings["tables"]] == list(CARDINALITIES)
    assert settings["tables"][3] == {
        "name": "emb_l_3", "num_embeddings": 5, "embedding_dim": 8, "feature_names": ["feature_3"]
    }  # fmt: skip
    assert settings["dlrm"] == {
        "dense_in_features": 3, "dense_arch_layer_sizes": [16, 8], "over_arch_layer_sizes": [16, 8, 1]
    }  # fmt: skip
    assert settings["model"] == "DLRM"
    assert settings["optimizer"] == "EXACT_ROWWISE_ADAGRAD"
    assert settings["learning_rate"] > 0
    assert not [name for name in load_file(tmp_path / "out" / "model.safetensors") if "momentum" in name]


@pytest.mark.parametrize(
    ("interaction", "model", "added"),
    [
        ("dcn", "DLRM_DCN", {"dcn_num_layers": 2, "dcn_low_rank_dim": 5}),
        (
            *("projection", "DLRM_Projection"),
            {"interaction_branch1_layer_sizes": [12, 16], "interaction_branch2_layer_sizes": [24]},
        ),
    ],
)
def test_parameters_of_an_interaction_have_torchrecs_names(tmp_path, interaction, model, added):
    assert train(tmp_path / "run", "--steps=1", "--arch-mlp-top=16-8-1", *INTERACTIONS[interaction]) == 0
    assert export(tmp_path / "run", tmp_path / "out") == 0
    settings = json.loads((tmp_path / "out" / "torchrec.json").read_text())
    sizes = {"dense_in_features": 3, "dense_arch_layer_sizes": [16, 8], "over_arch_layer_sizes": [16, 8, 1]}
    assert (settings["model"], settings["dlrm"]) == (model, sizes | added)
    ours, theirs = parameters(tmp_path / "run"), load_file(tmp_path / "out" / "model.safetensors")
    names = {
        **{f"crossnet.{name}": f"inter_arch.crossnet.{name}" for name in ("W_kernels.1", "V_kernels.0", "bias.1")},
        "branch1_l.2.weight": "inter_arch.interaction_branch1.model._mlp.1._linear.weight",
        "branch2_l.0.bias": "inter_arch.interaction_branch2.model._mlp.0._linear.bias",
        "top_l.0.weight": "over_arch.model.0._mlp.0._linear.weight",
    }
    seen = [name for name in names if name in ours]
    assert len(seen) == (4 if interaction == "dcn" else 3)
    assert all((ours[name] == theirs[names[name]]).all() for name in seen)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--arch-interaction-op=cat", "--arch-mlp-top=16-8-1"],
        ["--arch-interaction-itself", "--arch-mlp-top=16-8-1"],
        ["--activation-function=gelu", "--arch-mlp-top=16-8-1"],
        ["--arch-mlp-top=1"],
    ],
)
def test_a_model_that_torchrecs_dlrm_cannot_be_keeps_its_names(tmp_path, arguments):
    assert train(tmp_path / "run", "--steps=1", *arguments) == 0
    assert export(tmp_path / "run", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "torchrec.json").read_text())["dlrm"] is None
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "embedding_bags.emb_l_0.weight" in names
    assert "top_l.0.weight" in names
    assert not [name for name in names if "_arch" in name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--qr-flag", "--qr-collisions=4"], "--qr-flag"),
        (["--md-flag"], "--md-flag"),
        (["--weighted-pooling=learned"], "--weighted-pooling learned"),
        (["--optimizer=adam"], "leave out --with-optimizer-state"),
    ],
)
def test_tables_without_a_counterpart_are_refused_by_name(tmp_path, capsys, arguments, words):
    assert train(tmp_path / "run", "--steps=0", *arguments) == 0
    capsys.readouterr()
    assert words in one_line(capsys, export(tmp_path / "run", tmp_path / "out", "--with-optimizer-state"))
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused(finished, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for out in ("file", "full", "missing/out", "file/out", "loop"):
        one_line(capsys, export(finished, tmp_path / out))
    (tmp_path / "empty").mkdir()
    assert export(finished, tmp_path / "empty") == 0
    for arguments, words in (
        (["--format", "bogus"], "bogus"),
        (["--format"], "--format requires an argument"),
        (["--formt=a"], "formt"),
    ):
        assert words in one_line(capsys, main([str(finished), str(tmp_path / "new"), *arguments]))


# --- several processes here


def test_a_run_is_one_process(tmp_path):
    """The second process would wait for the directory of the first, or train the same again in one of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    result = subprocess.run(
        [*command, "cachedlrm.train", *SMALL, f"--run-dir={tmp_path / 'run'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    words = "error: torchrun started 2 processes and a run is one: start python -m cachedlrm.train without torchrun"
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_one_process_of_torchrun_is_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert train(tmp_path / "run", "--steps=0") == 0
    capsys.readouterr()
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "torchrun started 3 processes" in one_line(capsys, train(tmp_path / "other", "--steps=0"))
