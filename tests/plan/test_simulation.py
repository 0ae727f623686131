"""Simulated caches count what training runs with them count."""

import json
from pathlib import Path

import pytest

from cachedlrm.data.open import open_dataset
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan.simulation import CurvePoint, miss_ratio_curve
from cachedlrm.simulate import main, parse_simulation
from support.models import POLICIES
from support.runs import SMALL, train

RUN_ONLY = ("--threads", "--ui")
IDS = [argument for argument in SMALL if not argument.startswith(RUN_ONLY)]
COUNTED = (
    "lookups", "hit_ratio", "working_set_rows", "unique_hit_ratio", "first_touch_rows", "fetched_rows", "evicted_rows",
    "written_back_rows", "fetched_bytes", "written_back_bytes", "moved_rows_min",
)  # fmt: skip


def simulated(capsys, *arguments: str) -> dict:
    given = {argument.split("=")[0] for argument in arguments}
    ids = [argument for argument in IDS if argument.split("=")[0] not in given]
    assert main([*ids, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def trained(directory: Path, *arguments: str) -> dict:
    assert train(directory, "--test-freq=-1", *arguments) == 0
    return json.loads((directory / "report.json").read_text())


CASES = [
    *([f"--policy={policy}", "--lookahead=4"] for policy in POLICIES),
    ["--policy=lookahead", "--lookahead=500", "--report-min", "--prefetch-depth=0"],
    ["--md-flag", "--md-threshold=10", "--report-min"],
    ["--mlperf-grad-accum-iter=3", "--nepochs=2", "--num-batches=7", "--optimizer=adam", "--report-min"],
    ["--data=reference", "--data-size=900", "--arch-embedding-size=300-50", "--arch-mlp-bot=3-2", "--steps=4"],
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_counters_are_those_of_training_runs(tmp_path, capsys, case):
    curve = simulated(capsys, *case, "--cache-ratios=0.05,.3,1")
    assert [point["cache_ratio"] for point in curve["points"]] == [0.05, 0.3, 1.0]
    evicted = 0
    for point in curve["points"]:
        run = trained(tmp_path / str(point["cache_ratio"]), *case, f"--gpu-cache-ratio={point['cache_ratio']}")
        assert {key: point[key] for key in COUNTED} == {key: run[key] for key in COUNTED}
        assert (point["cache_slots"], curve["steps"], curve["table_rows"]) == (
            run["cache_slots"], run["steps"], run["table_rows"]
        )  # fmt: skip
        evicted += run["evicted_rows"]
    assert evicted > 0


def test_a_curve_from_python():
    options, simulation = parse_simulation([*IDS, "--report-min", "--policy=oracle"])
    dataset = open_dataset(options.data.data, None, data_request(options))
    curve = miss_ratio_curve(resolve(options, dataset), dataset, simulation.cache_ratios)
    assert [point.ratio for point in curve.points] == [0.01, 0.02, 0.05, 0.1, 0.2]
    ratios = [point.counters.hit_ratio for point in curve.points]
    assert ratios == sorted(ratios)
    assert all(isinstance(point, CurvePoint) for point in curve.points)
    assert all(point.counters.moved_rows == point.counters.moved_rows_min for point in curve.points)
