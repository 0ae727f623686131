"""--resume on data that changed is refused with what differs; nothing is lost, and what was put back goes on."""

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cachedlrm.train import main
from support.raw_criteo import lines, write
from support.runs import one_line, parameters, report, train

MODEL = ["--arch-mlp-bot=2-8", "--arch-mlp-top=1", "--mini-batch-size=50", "--max-ind-range=40", "--ui=off"]
COUNT = 500


def columns(count: int, exchanged: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, count).astype(np.int32)
    found = {"label": 1 - labels if exchanged else labels}
    found |= {f"d{column}": random.random(count, np.float32) for column in range(2)}
    return found | {f"s{table}": random.integers(0, 40, count).astype(np.int32) for table in range(3)}


def write_npy(folder, *changes) -> None:
    held = columns(*changes)
    folder.mkdir(exist_ok=True)
    np.save(folder / "dense.npy", np.stack([held["d0"], held["d1"]], 1))
    np.save(folder / "sparse.npy", np.stack([held[f"s{table}"] for table in range(3)], 1))
    np.save(folder / "labels.npy", held["label"][:, None])


def write_parquet(folder, *changes) -> None:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns(*changes)), folder / "part.parquet")


def write_criteo(folder, count, exchanged=False) -> None:
    flip = str.maketrans("01", "10")
    write(folder / "day_0", [line[0].translate(flip) + line[1:] if exchanged else line for line in lines(count)])


KINDS = {"npy": write_npy, "parquet": write_parquet, "criteo": write_criteo}


@pytest.fixture(scope="module", params=KINDS)
def begun(request, tmp_path_factory):
    """A run of 15 of 20 steps, the write function and the folder of its data."""
    folder = tmp_path_factory.mktemp(request.param)
    write_data = KINDS[request.param]
    write_data(folder / "data", COUNT)
    model = [option.replace("=2-8", "=13-8") if request.param == "criteo" else option for option in MODEL]
    data = [f"--data={request.param}:{folder / 'data'}", *model]
    assert main([*data, f"--run-dir={folder / 'whole'}", "--nepochs=2", "--print-freq=1"]) == 0
    stopped = [f"--run-dir={folder / 'run'}", "--nepochs=2", "--print-freq=1", "--checkpoint-every=5", "--steps=15"]
    assert main([*data, *stopped]) == 0
    return folder, write_data


def test_data_that_changed_are_refused_and_those_put_back_go_on(begun, capsys):
    folder, write_data = begun
    resume = [f"--resume={folder / 'run'}", "--steps=20", "--ui=off"]
    before = (folder / "run" / "metrics.jsonl").read_bytes()
    for changes, words in (((COUNT + 50,), "it had 500 samples and has 550"), ((COUNT, True), "holds other values")):
        write_data(folder / "data", *changes)
        capsys.readouterr()
        error = one_line(capsys, main(resume))
        assert f"{folder / 'data'} has changed: " in error
        assert words in error
        assert "put back the data that the run began with" in error
        assert (folder / "run" / "metrics.jsonl").read_bytes() == before
    write_data(folder / "data", COUNT)
    assert main(resume) == 0
    run, whole = (parameters(folder / name) for name in ("run", "whole"))
    assert all((run[name] == whole[name]).all() for name in whole)
    assert report(folder / "run")["losses"] == report(folder / "whole")["losses"]


def test_held_out_data_count_under_the_same_name_only(tmp_path, capsys):
    for name in ("data", "test", "other"):
        write_npy(tmp_path / name, COUNT)
    run = tmp_path / "run"
    data = [f"--data=npy:{tmp_path / 'data'}", f"--test-data=npy:{tmp_path / 'test'}", *MODEL, f"--run-dir={run}"]
    assert main([*data, "--checkpoint-every=5", "--steps=5"]) == 0
    write_npy(tmp_path / "test", COUNT, True)
    capsys.readouterr()
    assert "labels.npy holds other values" in one_line(capsys, main([f"--resume={run}", "--steps=6", "--ui=off"]))
    other = f"--test-data=npy:{tmp_path / 'other'}"
    assert main([f"--resume={run}", "--steps=6", "--ui=off", other]) == 0


def test_a_run_of_an_earlier_release_goes_on_with_a_word(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, "--checkpoint-every=5", "--steps=5") == 0
    with lmdb.open(str(run / "store"), max_dbs=4) as store, store.begin(write=True) as transaction:
        assert transaction.delete(b"data", db=store.open_db(b"meta", transaction))
    capsys.readouterr()
    resume = [f"--resume={run}", "--ui=plain"]
    assert main([*resume, "--steps=6"]) == 0
    assert f"{run} does not say what its data were" in capsys.readouterr().out
    assert main([*resume, "--steps=7"]) == 0
    assert "does not say" not in capsys.readouterr().out, "now it does"
