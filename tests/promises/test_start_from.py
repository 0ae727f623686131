"""A run that goes on from a finished one gives the bits of one that never stopped, and of plain torch.

The second run has other samples and larger tables. What it begins with is what the first one left, by table and row:
each row that either of them touched, the optimizer's state and the layers; a row that nobody touched begins as it did.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cachedlrm import train as train_module
from cachedlrm.base.rounding import FORMATS, TORCH_DTYPES, narrow_tensor, noise_state
from cachedlrm.data.batch import Batch
from cachedlrm.data.open import open_dataset
from cachedlrm.options.profiles import load_resolved
from cachedlrm.options.resolve import data_request
from cachedlrm.options.schedule import Schedule
from cachedlrm.predict import main as predict
from cachedlrm.train import main
from support.plain_torch import train_plain
from support.runs import one_line, parameters, report, train

SMALL, GROWN = "--arch-embedding-size=400-30-900-5", "--arch-embedding-size=500-30-1500-5"
FIRST = ["--steps=12", "--print-freq=1", "--test-freq=-1"]
SECOND = ["--data=zipf:samples=1500", GROWN, "--numpy-rand-seed=9", "--steps=15", "--print-freq=1", "--test-freq=15"]
CACHED = ["--gpu-cache-ratio=0.1", "--prefetch-depth=2"]
LMDB = ["--store=lmdb", "--host-budget=150000", "--checkpoint-every=4"]
PLACES = {"resident": [], "cached": CACHED, "lmdb": [*CACHED, *LMDB]}


def losses(run: Path) -> list[float]:
    return report(run)["losses"]


def state(run: Path) -> dict[str, bytes]:
    """All parameters and the state of rows and layers."""
    saved = load_file(run / "final.safetensors")
    layers = {name: array for name, array in saved.items() if name.startswith("optimizer.")}
    return {name: array.tobytes() for name, array in {**parameters(run, with_optimizer_state=True), **layers}.items()}


def assert_same(run: Path, other: Path) -> None:
    assert losses(run) == losses(other)
    assert state(run) == state(other)


def started(run: Path, first: Path, *arguments: str) -> int:
    """The second run; the options of model and optimizer are the first one's."""
    usual = [*SECOND, "--mini-batch-size=100", "--threads=1", "--save-predictions", "--ui=off"]
    given = {argument.split("=")[0] for argument in arguments}
    usual = [argument for argument in usual if argument.split("=")[0] not in given]
    return main([f"--start-from={first}", f"--run-dir={run}", *usual, *arguments])


@pytest.fixture(scope="module")
def adam(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("adam") / "first"
    assert train(run, SMALL, *FIRST, "--optimizer=adam", "--learning-rate=0.05") == 0
    return run


def batches(run: Path) -> list[Batch]:
    """Those of a run, by the number of its steps."""
    options = load_resolved(run / "config.toml")
    dataset = open_dataset(options.data.data, None, data_request(options))
    return list(Schedule(options, dataset.train).batches())


@pytest.mark.parametrize(
    ("optimizer", "dtype", "order"),
    [
        ("sgd", "fp32", []),
        ("adagrad", "fp32", ["--shuffle"]),
        ("rwsadagrad", "fp32", []),
        ("adam", "fp32", []),
        ("adagrad", "bf16", []),
        ("adam", "fp16", ["--shuffle"]),
    ],
)
def test_a_run_goes_on_with_the_bits_of_plain_torch(tmp_path, optimizer, dtype, order):
    """One torch.optim optimizer over both days, on whole tables; those of the second day's rows are appended."""
    first, rows_of = tmp_path / "first", [f"--optimizer={optimizer}", f"--row-dtype={dtype}"]
    assert train(first, SMALL, *FIRST, *rows_of, "--learning-rate=0.05") == 0
    runs = {}
    for place, options in PLACES.items():
        runs[place] = tmp_path / place
        assert started(runs[place], first, *options, *order) == 0
    for place in ("cached", "lmdb"):
        made = report(runs[place])
        assert min(made["evicted_rows"], made["fetched_rows"]) > 100
        assert_same(runs[place], runs["resident"])
        assert np.array_equal(np.load(runs[place] / "predictions.npy"), np.load(runs["resident"] / "predictions.npy"))

    begun, untouched = tmp_path / "begun", tmp_path / "untouched"
    assert train(begun, SMALL, "--steps=0", *rows_of) == 0  # as the first day began
    assert train(untouched, GROWN, "--steps=0", *rows_of, "--numpy-rand-seed=9") == 0
    before, appended = parameters(begun), parameters(untouched)
    tables = []
    for number in range(4):
        old, new = (torch.from_numpy(side[f"emb_l.{number}.weight"]) for side in (before, appended))
        tables.append(torch.cat([old, new[len(old) :]]))
    dense = {name: torch.from_numpy(array) for name, array in before.items() if not name.startswith("emb_l")}
    days = [moved(batch, (400, 30, 900, 5), (500, 30, 1500, 5)) for batch in batches(first)] + batches(runs["cached"])
    kept = None if dtype == "fp32" else rounding(dtype)
    plain, rows, layers = train_plain(days, tables, dense, optimizer, 0.05, kept=kept)
    assert plain == losses(first) + losses(runs["cached"])
    left = parameters(runs["cached"])
    for number, table in enumerate(rows):
        assert np.array_equal(left[f"emb_l.{number}.weight"], table.numpy())
    for name, layer in layers.items():
        assert np.array_equal(left[name], layer.numpy())


def rounding(dtype: str) -> Callable[[int, int, torch.Tensor, torch.Tensor], torch.Tensor]:
    """What is kept of rows of 16 bits after a step of either day: of a day are the seed and the numbers of rows."""

    def kept(step: int, table: int, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        sizes, seed = ((400, 30, 900), 123) if step <= 12 else ((500, 30, 1500), 9)
        halves = narrow_tensor(weights, rows + sum(sizes[:table]), noise_state(seed, step), FORMATS[dtype], 0)
        return halves.view(TORCH_DTYPES[dtype]).float()

    return kept


def moved(batch: Batch, old: tuple[int, ...], new: tuple[int, ...]) -> Batch:
    """A batch with its rows counted over larger tables."""
    first_old, first_new = np.cumsum([0, *old]), np.cumsum([0, *new])
    table = np.searchsorted(first_old, batch.rows, side="right") - 1
    return replace(batch, rows=batch.rows - first_old[table] + first_new[table])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_quotients_and_remainders_go_on_in_tables_that_have_grown(tmp_path, dtype):
    """A quotient has its row by number, and a remainder keeps its table."""
    first = tmp_path / "first"
    split = ["--qr-flag", "--qr-threshold=100", "--qr-collisions=3"]
    assert train(first, SMALL, *FIRST, *split, "--optimizer=adagrad", f"--row-dtype={dtype}") == 0
    assert train(tmp_path / "new", GROWN, *split, "--steps=0", "--numpy-rand-seed=9", f"--row-dtype={dtype}") == 0
    assert started(tmp_path / "still", first, "--learning-rate=0", "--steps=1") == 0
    before, appended, still = (parameters(tmp_path / name) for name in ("first", "new", "still"))
    assert len(before["emb_l.0.weight_q"]) == 134 < len(still["emb_l.0.weight_q"]) == 167
    for name in (name for name in before if name.startswith("emb_l")):
        assert np.array_equal(still[name], np.concatenate([before[name], appended[name][len(before[name]) :]])), name
    for place, options in PLACES.items():
        assert started(tmp_path / place, first, *options) == 0
        assert place == "resident" or report(tmp_path / place)["fetched_rows"] > 50
        assert_same(tmp_path / place, tmp_path / "resident")


def test_tables_of_mixed_dimensions_go_on_where_their_dimensions_stay(tmp_path, capsys):
    first, mixed = tmp_path / "first", ["--md-flag", "--md-threshold=10", "--md-round-dims"]
    assert train(first, SMALL, *FIRST, *mixed, "--optimizer=adam", "--row-dtype=bf16") == 0
    slightly = "--arch-embedding-size=410-30-910-5"
    for place in ("resident", "lmdb"):
        assert started(tmp_path / place, first, slightly, *PLACES[place]) == 0
    assert report(tmp_path / "lmdb")["fetched_rows"] > 50
    assert_same(tmp_path / "lmdb", tmp_path / "resident")
    capsys.readouterr()
    message = one_line(capsys, started(tmp_path / "run", first, "--arch-embedding-size=400-30-90000-5"))
    assert "as its tables grow, --qr-threshold or the --md options split them in another way" in message
    assert not (tmp_path / "run").exists()


def test_a_chain_of_runs_is_predicted_and_exported_without_the_earlier_ones(tmp_path, adam):
    """Rows that nobody touched begin as in the first run that had them, wherever its directory is by then."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    shutil.copytree(adam, first)
    assert started(second, first, *CACHED) == 0
    shutil.move(first, tmp_path / "moved")
    larger = ["--arch-embedding-size=600-30-2000-9", "--numpy-rand-seed=4", "--steps=3"]
    assert main([f"--start-from={second}", f"--run-dir={third}", "--data=zipf:samples=900", *larger, "--ui=off",
                 "--mini-batch-size=100", "--threads=1"]) == 0  # fmt: skip
    one, two, three = parameters(tmp_path / "moved"), parameters(second), parameters(third)
    touched = [set(load_file(run / "final.safetensors")["rows.0"].tolist()) for run in (second, third)]
    assert len(touched[0]) < len(touched[1])
    for earlier, later, rows in ((one, two, touched[0]), (two, three, touched[1])):
        same = later["emb_l.2.weight"][: len(earlier["emb_l.2.weight"])] == earlier["emb_l.2.weight"]
        assert 0 < same.all(axis=1).sum() < len(same)  # those that were not trained
        assert len(rows) > 0
    out = tmp_path / "p.npy"
    assert predict([str(second), "--out", str(out), "--ui=off"]) == 0
    assert np.array_equal(np.load(out), np.load(second / "predictions.npy"))


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, adam):
    run, whole, trained = tmp_path / "run", tmp_path / "whole", train_module.Progress.trained

    def dies(self, batch, step_losses):
        trained(self, batch, step_losses)
        if self.steps == 10:
            raise RuntimeError("as if it was killed")

    assert started(whole, adam) == 0
    with monkeypatch.context() as patch:
        patch.setattr(train_module.Progress, "trained", dies)
        with pytest.raises(RuntimeError, match="killed"):
            started(run, adam, *CACHED, *LMDB)
    os.utime(adam / "final.safetensors", ns=(5, 7))  # as if it was copied back
    assert main([f"--resume={run}", "--ui=off"]) == 0
    assert_same(run, whole)


def test_another_optimizer_begins_without_state(tmp_path, capsys, adam):
    run = tmp_path / "run"
    assert started(run, adam, "--optimizer=sgd", "--learning-rate=0", "--ui=plain", *CACHED) == 0
    assert "that run's rows have adam; the state of the layers' optimizer starts at zero" in capsys.readouterr().out
    before, after = parameters(adam), parameters(run)
    for number, rows in enumerate((400, 30, 900, 5)):
        assert np.array_equal(after[f"emb_l.{number}.weight"][:rows], before[f"emb_l.{number}.weight"])


def test_rows_of_16_bits_stay_so_and_those_that_nobody_touched_begin_as_they_did(tmp_path, capsys):
    """The second run has another seed; what it evaluated is predicted with the same bits."""
    first, second = tmp_path / "first", tmp_path / "second"
    dtypes = ["--row-dtype=bf16", "--row-state-dtype=bf16"]
    assert train(first, SMALL, *FIRST, *dtypes, "--optimizer=adam") == 0
    message = one_line(capsys, started(second, first, "--row-dtype=fp32"))
    assert message.startswith("error: --row-dtype fp32: --start-from ")
    assert message.endswith("is of a run with --row-dtype bf16; keep --row-dtype bf16\n")
    assert started(second, first, *CACHED) == 0
    assert predict([str(second), "--out", str(tmp_path / "p.npy"), "--ui=off"]) == 0
    assert np.array_equal(np.load(tmp_path / "p.npy"), np.load(second / "predictions.npy"))
    assert started(tmp_path / "adagrad", first, "--optimizer=adagrad", "--row-state-dtype=fp32", "--steps=1") == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch-embedding-size=300-30-900-5"], "gives table 0 300 rows and it has 400 in"),
        (["--arch-embedding-size=400-30-900"], "has 4 tables and the data has 3"),
        (["--arch-mlp-top=8-1"], "--arch-mlp-top 8-1: --start-from"),
        (["--load-model=x.pt"], "--start-from"),
        (["--row-dtype=bf16"], "is of a run with --row-dtype fp32; keep --row-dtype fp32"),
        (["--row-state-dtype=bf16"], "is of a run with --row-state-dtype fp32; keep --row-state-dtype fp32"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, capsys, adam, arguments, words):
    assert words in one_line(capsys, started(tmp_path / "run", adam, *arguments))
    assert not (tmp_path / "run").exists()


def test_no_finished_run_is_one_line(tmp_path, capsys, adam):
    message = one_line(capsys, started(tmp_path / "run", tmp_path / "nothing"))
    assert "holds no run" in message
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.toml").write_bytes((adam / "config.toml").read_bytes())
    assert "final.safetensors is missing" in one_line(capsys, started(tmp_path / "run", tmp_path / "unfinished"))


def test_the_record_says_where_it_began(tmp_path, adam):
    run = tmp_path / "run"
    assert started(run, adam) == 0
    assert f'start-from = "{adam}"' in (run / "config.toml").read_text()
    assert json.loads((run / "report.json").read_text())["steps"] == 15
