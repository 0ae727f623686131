"""--shuffle: all that looks ahead, back or away from a run sees its order, and the order decides the bits alone."""

import functools
import json

import numpy as np
import pytest

from cachedlrm.data.shuffle import ShuffledEpochs
from cachedlrm.plan.__main__ import main as plan
from cachedlrm.simulate import main as simulate
from cachedlrm.train import main
from support.runs import SMALL, parameters, report, train

RUN = ["--shuffle", "--nepochs=2", "--print-freq=1", "--test-freq=-1", "--optimizer=adagrad"]
CACHED = ["--gpu-cache-ratio=0.3", "--report-min", "--lookahead=3"]


@pytest.fixture(scope="module", autouse=True)
def _pieces():
    """A pool of 64 of 100 pieces of 20 samples, so that a step reads pieces and drops as many."""
    with pytest.MonkeyPatch.context() as patch:
        small = functools.partial(ShuffledEpochs, pool_bytes=64 * 20 * 4 * (3 + 2 + 2 * 4))
        patch.setattr("cachedlrm.options.schedule.ShuffledEpochs", small)
        yield


@pytest.fixture(scope="module")
def resident(tmp_path_factory):
    run = tmp_path_factory.mktemp("resident") / "run"
    assert train(run, *RUN) == 0
    return parameters(run, with_optimizer_state=True), report(run)["losses"]


def assert_bits(run, resident) -> None:
    rows, losses = parameters(run, with_optimizer_state=True), report(run)["losses"]
    assert losses == resident[1]
    assert all(np.array_equal(rows[name], values) for name, values in resident[0].items())


@pytest.mark.parametrize(("policy", "depth"), [("lru", 0), ("static", 2), ("lookahead", 2), ("oracle", 0)])
def test_a_cached_run_has_the_bits_of_a_resident_one(tmp_path, resident, policy, depth):
    run = tmp_path / "run"
    assert train(run, *RUN, *CACHED, f"--policy={policy}", f"--prefetch-depth={depth}") == 0
    assert_bits(run, resident)
    counted = report(run)
    assert counted["evicted_rows"] > 0 < counted["written_back_rows"]
    moved = counted["fetched_rows"] + counted["first_touch_rows"]
    if policy == "oracle":
        assert moved == counted["moved_rows_min"] > 0, "the future that it knows is the one that came"
    else:
        assert moved > counted["moved_rows_min"] > 0


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path, resident):
    run = tmp_path / "run"
    assert train(run, *RUN, *CACHED, "--policy=lookahead", "--checkpoint-every=7", "--steps=27") == 0
    assert main(["--resume", str(run), "--steps=40", "--ui=off"]) == 0
    assert_bits(run, resident)


def test_the_order_is_of_the_run_and_cannot_change(tmp_path, capsys):
    run = tmp_path / "run"
    assert train(run, *RUN, "--checkpoint-every=7", "--steps=10") == 0
    plain = tmp_path / "plain"
    assert train(plain, *RUN[1:], "--steps=10") == 0
    assert report(run)["losses"] != report(plain)["losses"]
    assert train(tmp_path / "other", *RUN, "--steps=10", "--numpy-rand-seed=4") == 0
    capsys.readouterr()
    assert main(["--resume", str(run), "--numpy-rand-seed=4", "--ui=off"]) == 2
    assert "was started with --numpy-rand-seed 123" in capsys.readouterr().err


def test_simulation_and_prediction_see_the_order(tmp_path, capsys):
    arguments = ["--policy=lru", "--prefetch-depth=0"]
    run = tmp_path / "run"
    assert train(run, *RUN, *CACHED, *arguments, "--predict") == 0
    counted = report(run)
    capsys.readouterr()
    data = [argument for argument in [*SMALL, *RUN[:2]] if not argument.startswith(("--threads", "--ui"))]
    assert simulate([*data, *arguments, "--cache-ratios=0.3", "--report-min", "--json"]) == 0
    (cache,) = json.loads(capsys.readouterr().out)["points"]
    assert cache["hit_ratio"] == counted["hit_ratio"]
    assert cache["moved_rows_min"] == counted["moved_rows_min"]
    assert plan([*data, *arguments, "--gpu-cache-ratio=0.3", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["prediction"]["hit_ratio"] == counted["hit_ratio"]
    assert planned["host_bytes"]["shuffled"] > 0
