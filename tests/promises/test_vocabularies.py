"""Rows mean values: whatever was trained on one preparation refuses the rows of another, by the names of both."""

import json
import re
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from cachedlrm.base.errors import UserError
from cachedlrm.export.__main__ import main as export_main
from cachedlrm.predict import main as predict
from cachedlrm.store.database import Meta, open_database
from cachedlrm.store.environment import CHECKPOINT
from cachedlrm.train import main as train_main
from support.raw_criteo import prepare
from support.runs import one_line

COLUMNS = ["--label=label", "--dense=price", "--sparse=item"]


def day(path: Path, seed: int, shift: int) -> Path:
    """A day's clicks on 60 items, whose order of popularity is another one each day; the label hangs on the item."""
    random = np.random.default_rng(seed)
    share = np.roll(1 / np.arange(1, 61), shift)
    item = random.choice(60, 2000, p=share / share.sum())
    label = (random.random(2000) < np.where(item * 7 % 11 < 5, 0.9, 0.1)).astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"label": label, "price": random.random(2000, np.float32), "item": item}), path)
    return path


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Two days, each prepared on its own; and a run on the first, with a model file and a store."""
    folder = tmp_path_factory.mktemp("days")
    for name, seed, shift in (("a", 0, 0), ("b", 1, 20)):
        raw = day(folder / f"{name}.parquet", seed, shift)
        assert prepare("parquet", raw, "--out", folder / name, *COLUMNS, "--test-fraction=0") == 0
    options = ["--store=lmdb", "--gpu-cache-rows=40", "--host-budget=1MiB", f"--save-model={folder / 'model.pt'}"]
    assert train(folder / "run", f"--data=npy:{folder / 'a'}", *options) == 0
    return folder


def train(run: Path, *arguments: str) -> int:
    usual = ["--arch-mlp-bot=1-8-4", "--arch-mlp-top=8-1", "--mini-batch-size=50", "--nepochs=2", "--ui=off"]
    given = {argument.split("=")[0] for argument in arguments}
    return train_main([*(one for one in usual if one.split("=")[0] not in given), f"--run-dir={run}", *arguments])


def fingerprint(folder: Path) -> str:
    return json.loads((folder / "prepared.json").read_text())["vocabulary"]["fingerprint"]


def test_everything_that_leaves_a_run_says_its_vocabulary(days, tmp_path):
    expected = fingerprint(days / "a")
    report = json.loads((days / "run" / "report.json").read_text())
    assert report["vocabulary"] == expected
    assert [table["user_name"] for table in report["tables"]] == ["item"]
    assert "| item | 61 |" in (days / "run" / "report.md").read_text()
    assert torch.load(days / "model.pt", weights_only=True)["vocabulary"] == expected
    assert export_main([str(days / "run"), str(tmp_path / "out.safetensors")]) == 0
    assert export_main([str(days / "run"), str(tmp_path / "torchrec"), "--format=torchrec"]) == 0
    assert json.loads((tmp_path / "torchrec" / "torchrec.json").read_text())["vocabulary"] == expected
    for path in (days / "run" / "final.safetensors", tmp_path / "out.safetensors"):
        with safe_open(path, framework="numpy") as file:
            assert file.metadata()["vocabulary"] == expected


def test_held_out_samples_of_another_day_are_refused(days, tmp_path, capsys):
    message = one_line(capsys, train(tmp_path / "run", f"--data=npy:{days / 'a'}", f"--test-data=npy:{days / 'b'}"))
    assert f"--test-data npy:{days / 'b'} has vocabulary {fingerprint(days / 'b')} and --data npy:" in message
    assert f"{days / 'a'} has {fingerprint(days / 'a')}, in which a row stands for another value; name data " in message
    assert not (tmp_path / "run").exists()


def test_another_day_under_the_vocabulary_of_the_first_is_predicted(days, tmp_path):
    """Prepared on its own it gave an AUC of 0.4, status 0."""
    raw = days / "b.parquet"
    for option in ("--vocabulary", "--extend"):
        out = tmp_path / option
        command = ["parquet", raw, "--out", out, *COLUMNS, "--test-fraction=0", option, days / "a"]
        assert prepare(*command) == 0
        run = [f"--data=npy:{days / 'a'}", f"--test-data=npy:{out}", "--nepochs=4"]
        assert train(tmp_path / f"run{option}", *run) == 0
        assert json.loads((tmp_path / f"run{option}" / "report.json").read_text())["auc"] > 0.85
    loaded = [f"--load-model={days / 'model.pt'}", f"--test-data=npy:{tmp_path / '--vocabulary'}", "--inference-only"]
    assert train(tmp_path / "served", f"--data=npy:{days / 'a'}", *loaded) == 0


def test_a_larger_vocabulary_is_predicted_with_its_new_values_as_row_0(days, tmp_path, capsys):
    """As the same file is that was prepared under the vocabulary of the run."""
    values, counts = np.arange(50, 90).repeat(5), np.arange(200, dtype=np.float32)
    pq.write_table(pa.table({"label": values % 2, "price": counts / 200, "item": values}), tmp_path / "c.parquet")
    predictions = {}
    for option in ("--vocabulary", "--extend"):
        command = ["parquet", tmp_path / "c.parquet", "--out", tmp_path / option, *COLUMNS, "--test-fraction=0.1"]
        assert prepare(*command, option, days / "a") == 0
        capsys.readouterr()
        out = tmp_path / f"p{option}.npy"
        assert predict([str(days / "run"), f"--data=npy:{tmp_path / option}", f"--out={out}", "--gauc-table=item"]) == 0
        predictions[option] = np.load(out).tolist(), re.findall(r"AUC.*", said := capsys.readouterr().out)
        assert ("values that the model does not know: row 0" in said) == (option == "--extend")
        assert f"{tmp_path / option} also holds out 20 samples: --data npy:{tmp_path / option / 'test'}\n" in said
        assert "180 predictions: " in said
    assert np.load(tmp_path / "--extend" / "train_sparse.npy").max() > 61
    assert predictions["--extend"] == predictions["--vocabulary"]
    assert len(predictions["--extend"][1]) == 2
    assert predict([str(days / "run"), f"--data=npy:{tmp_path / '--extend' / 'test'}", f"--out={out}"]) == 0
    assert "holds out" not in (said := capsys.readouterr().out)
    assert "20 predictions: " in said
    for option, run in (("--vocabulary", tmp_path / "v"), ("--extend", tmp_path / "e")):
        shutil.copytree(days / "run", run)
        more = [
            f"--test-data=npy:{tmp_path / option}",
            "--nepochs=3",
            "--test-freq=120",
            "--save-predictions",
            "--ui=off",
        ]
        assert train_main([f"--resume={run}", *more]) == 0
    assert (np.load(tmp_path / "e" / "predictions.npy") == np.load(tmp_path / "v" / "predictions.npy")).all()
    assert json.loads((tmp_path / "e" / "report.json").read_text())["vocabulary"] == fingerprint(days / "a")


def test_a_run_predicts_the_data_that_its_vocabulary_extends(days, tmp_path, capsys):
    """Held-out samples of a larger vocabulary give the run that one; its training samples are not foreign for that."""
    run, later, raw = tmp_path / "run", tmp_path / "later", days / "b.parquet"
    command = ["parquet", raw, *COLUMNS, "--test-fraction=0", "--extend", days / "a"]
    assert prepare(*command, "--min-count=3", "--out", later) == 0
    assert train(run, f"--data=npy:{days / 'a'}", f"--test-data=npy:{later}", "--nepochs=1") == 0
    out, small = tmp_path / "p.npy", ["--ui=off", f"--out={tmp_path / 'p.npy'}"]
    assert predict([str(run), f"--data=npy:{days / 'a'}", *small]) == 0
    predictions = np.load(out)
    same = ["parquet", days / "a.parquet", *COLUMNS, "--test-fraction=0", "--vocabulary", later]
    assert prepare(*same, "--out", tmp_path / "same") == 0
    assert predict([str(run), f"--data=npy:{tmp_path / 'same'}", *small]) == 0
    assert np.array_equal(np.load(out), predictions)
    capsys.readouterr()
    assert f"{run} has {fingerprint(later)}" in one_line(
        capsys, predict([str(run), f"--data=npy:{days / 'b'}", *small])
    )


def rows_of(model: Path) -> torch.Tensor:
    """The rows of the one table [rows, 4] and their state [rows, 4]."""
    content = torch.load(model, weights_only=True)
    state = content["opt_state_dict"]["state"]
    return torch.hstack([content["state_dict"]["emb_l.0.weight"], *(state[0]["sum"],)])


def test_a_model_file_goes_on_with_a_larger_vocabulary_and_knows_the_smaller_one(days, tmp_path, capsys):
    """Its rows come first in the larger tables; the others begin as without it."""
    later, old = tmp_path / "later", days / "model.pt"
    values = np.arange(40, 90).repeat(20)
    raw = {"label": values % 2, "price": np.linspace(0, 1, 1000, dtype=np.float32), "item": values}
    pq.write_table(pa.table(raw), tmp_path / "c.parquet")
    command = ["parquet", tmp_path / "c.parquet", *COLUMNS, "--test-fraction=0", "--extend", days / "a"]
    assert prepare(*command, "--out", later) == 0
    loaded = [f"--data=npy:{later}", f"--load-model={old}"]
    for name, options in (
        ("fresh", [f"--data=npy:{later}", "--steps=0"]),
        ("same", [*loaded, "--steps=0"]),
        ("resident", loaded),
        ("cached", [*loaded, "--gpu-cache-rows=20", "--store=lmdb", "--host-budget=1MiB"]),
    ):
        assert train(tmp_path / name, f"--save-model={tmp_path / name}.pt", *options) == 0
    rows, known = rows_of(tmp_path / "same.pt"), rows_of(old)
    assert len(rows) == 91
    assert len(known) == 61
    assert torch.equal(rows[:61], known)
    assert torch.equal(rows[61:], rows_of(tmp_path / "fresh.pt")[61:])
    assert json.loads((tmp_path / "cached" / "report.json").read_text())["fetched_rows"] > 30
    assert torch.equal(rows_of(tmp_path / "cached.pt"), rows_of(tmp_path / "resident.pt"))
    content = torch.load(tmp_path / "cached.pt", weights_only=True)
    assert (content["vocabulary"], content["vocabulary_bases"]) == (fingerprint(later), [fingerprint(days / "a")])
    # one that does not say its vocabulary learns it from its data first
    del (content := torch.load(old, weights_only=True))["vocabulary"]
    torch.save(content, tmp_path / "old.pt")
    unknown = f"--load-model={tmp_path / 'old.pt'}"
    message = one_line(capsys, train(tmp_path / "known", f"--data=npy:{later}", unknown, "--steps=0"))
    assert "emb_l.0.weight is 61 x 4 in the file and 91 x 4 in this model, and the file does not say" in message
    learns = [f"--data=npy:{days / 'a'}", unknown, "--steps=0", f"--save-model={tmp_path / 'known.pt'}"]
    assert train(tmp_path / "known", *learns) == 0
    loaded = [f"--load-model={tmp_path / 'known.pt'}", "--steps=0", f"--save-model={tmp_path / 'grown.pt'}"]
    assert train(tmp_path / "grown", f"--data=npy:{later}", *loaded) == 0
    assert torch.equal(rows_of(tmp_path / "grown.pt"), rows)
    # and back: the data of the smaller one, in the tables of the larger one
    larger = [f"--data=npy:{days / 'a'}", f"--load-model={tmp_path / 'cached.pt'}"]
    message = one_line(capsys, train(tmp_path / "back", *larger))
    assert "is 91 x 4 in the file and 61 x 4 in this model;" in message
    assert "or the file's vocabulary extends that of the data, set --arch-embedding-size to the file's" in message
    assert train(tmp_path / "back", *larger, "--arch-embedding-size=91", "--steps=3") == 0
    # a run that goes on with the smaller one's data still has the rows of the larger one
    assert train(tmp_path / "on", f"--data=npy:{days / 'a'}", f"--start-from={tmp_path / 'cached'}", "--steps=3") == 0
    report = json.loads((tmp_path / "on" / "report.json").read_text())
    assert (report["vocabulary"], report["table_rows"]) == (fingerprint(later), 91)
    assert predict([str(tmp_path / "on"), f"--data=npy:{later}", f"--out={tmp_path / 'p.npy'}", "--ui=off"]) == 0
    assert train(tmp_path / "other", f"--data=npy:{days / 'b'}", f"--load-model={tmp_path / 'cached.pt'}") == 2


def test_generated_ids_are_rows_of_no_vocabulary(days, tmp_path, capsys):
    spec, prepared = "zipf:samples=100", f"--data=npy:{days / 'a'}"
    message = one_line(capsys, predict([str(days / "run"), f"--data={spec}", f"--out={tmp_path / 'p.npy'}"]))
    assert f"--data {spec} has vocabulary ids-as-they-are and {days / 'run'} has {fingerprint(days / 'a')}" in message
    message = one_line(capsys, train(tmp_path / "run", prepared, f"--test-data={spec}"))
    assert f"--test-data {spec} has vocabulary ids-as-they-are and --data npy:" in message


@pytest.mark.parametrize("options", [[], ["--inference-only"]])
def test_a_model_of_another_day_is_refused(days, tmp_path, capsys, options):
    loaded = [f"--load-model={days / 'model.pt'}", f"--test-data=npy:{days / 'b'}", *options]
    message = one_line(capsys, train(tmp_path / "run", f"--data=npy:{days / 'b'}", *loaded))
    assert f"--data npy:{days / 'b'} has vocabulary {fingerprint(days / 'b')} and --load-model " in message
    assert f"model.pt has {fingerprint(days / 'a')}, in which a row stands for another value" in message
    assert train(tmp_path / "same", f"--data=npy:{days / 'a'}", f"--load-model={days / 'model.pt'}") == 0


def test_raw_ids_are_refused_by_a_model_of_prepared_ones(days, tmp_path, capsys):
    spec = f"parquet:{days / 'a.parquet'}"
    message = one_line(capsys, train(tmp_path / "run", f"--data={spec}", f"--load-model={days / 'model.pt'}"))
    assert f"--data {spec} has vocabulary ids-as-they-are and --load-model {days / 'model.pt'} has " in message


def test_a_model_of_other_tables_leads_to_its_data(days, tmp_path, capsys):
    """`--arch-embedding-size` of the file would make the rows of one day stand for the items of the other."""
    model = torch.load(days / "model.pt", weights_only=True)
    del model["vocabulary"]
    torch.save(model, tmp_path / "old.pt")
    arguments = [f"--data=npy:{days / 'a'}", f"--load-model={tmp_path / 'old.pt'}"]
    message = one_line(capsys, train(tmp_path / "run", *arguments, "--arch-embedding-size=99"))
    assert (
        "emb_l.0.weight is 61 x 4 in the file and 99 x 4 in this model; a table has its rows from the data: " in message
    )
    assert train(tmp_path / "old", *arguments, "--steps=1") == 0


def test_a_resumed_run_is_refused_the_data_of_another_day(days, tmp_path, capsys):
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.symlink_to(days / "a")
    assert train(run, f"--data=npy:{folder}", "--store=lmdb", "--steps=20") == 0
    folder.unlink()
    folder.symlink_to(days / "b")
    message = one_line(capsys, train_main([f"--resume={run}", "--steps=40", "--ui=off"]))
    assert str(folder) in message or fingerprint(days / "a") in message
    folder.unlink()
    folder.symlink_to(days / "a")
    assert train_main([f"--resume={run}", "--steps=40", "--ui=off"]) == 0


def test_a_store_that_says_no_vocabulary_is_of_an_earlier_release(tmp_path):
    shapes = [(10, 2)]
    with closing(open_database(tmp_path, {"model": "a"}, shapes, 1 << 20, resumes=False)) as database:
        database.write(Meta(CHECKPOINT, b"x"))
        database.wait()
    with closing(open_database(tmp_path, {"model": "a", "vocabulary": "x"}, shapes, 1 << 20, resumes=True)):
        pass


def test_a_store_of_another_vocabulary_names_both(tmp_path):
    shapes = [(10, 2)]
    with closing(open_database(tmp_path, {"vocabulary": "x"}, shapes, 1 << 20, resumes=False)) as database:
        database.write(Meta(CHECKPOINT, b"x"))
        database.wait()
    words = "of a run with vocabulary x, and this run has vocabulary y; name by --data what the run was started with"
    with pytest.raises(UserError, match=words):
        open_database(tmp_path, {"vocabulary": "y"}, shapes, 1 << 20, resumes=True)
