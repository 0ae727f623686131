"""Simulated caches count what training runs with them count."""

import json
import shlex
from pathlib import Path

import pytest

from cachedlrm.data.open import open_dataset
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan.simulation import CurvePoint, miss_ratio_curve
from cachedlrm.simulate import main, parse_simulation
from support.models import POLICIES
from support.runs import SMALL, one_line, train

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


def test_the_table_for_people(capsys):
    arguments = [*IDS, "--cache-ratios=0.1,1", "--report-min", "--link-bandwidth=1MB", "--policy=lru"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    header, first, last, total = text.splitlines()
    assert " ".join(header.split()) == (
        "cache slots hits unique hits created fetched written back moved of MIN ms at 0.001 GB/s"
    )
    curve = simulated(capsys, *arguments[len(IDS) :])
    point = curve["points"][0]
    moved_bytes = point["fetched_bytes"] + point["written_back_bytes"]
    assert point["link_ms"] == pytest.approx(moved_bytes / 20 / 1e6 * 1e3)
    moved = point["first_touch_rows"] + point["fetched_rows"]
    cells = first.split()
    assert cells[:4] == ["10.00%", "133", f"{point['hit_ratio']:.2%}", f"{point['unique_hit_ratio']:.2%}"]
    assert cells[4:7] == [
        f"{point[key] / 20:,.1f}" for key in ("first_touch_rows", "fetched_rows", "written_back_rows")
    ]
    assert cells[-2:] == [f"{moved / point['moved_rows_min']:.3f}", f"{point['link_ms']:.3f}"]
    assert last.split()[-2:] == ["1.000", "0.000"]
    assert total.startswith("zipf:samples=2000, lru: 20 steps, 8,000 lookups in ")


def test_without_report_min_there_is_none(capsys):
    assert main([*IDS, "--cache-ratios=0.1"]) == 0
    assert "MIN" not in capsys.readouterr().out
    assert simulated(capsys, "--cache-ratios=0.1")["points"][0]["moved_rows_min"] is None


def test_a_profile_of_a_run(tmp_path, capsys):
    trained(tmp_path / "run", "--gpu-cache-ratio=0.1", "--policy=lfu")
    profile = f"--profile={tmp_path / 'run' / 'config.toml'}"
    assert main([profile, "--cache-ratios=0.1", "--json", "--steps=5"]) == 0
    curve = json.loads(capsys.readouterr().out)
    assert (curve["policy"], curve["steps"], curve["table_rows"]) == ("lfu", 5, 1335)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--gpu-cache-ratio 0.1", ["--gpu-cache-ratio 0.1", "--cache-ratios"]),
        ("--gpu-budget 1GiB", ["--gpu-budget", "--cache-ratios"]),
        ("--cache-ratios 0.1,2", ["--cache-ratios", "0.1,2", "0.01,0.05"]),
        ("--cache-ratios 0", ["--cache-ratios", "at most 1"]),
        ("--cache-ratios nan", ["--cache-ratios"]),
        ("--link-bandwidth fast", ["--link-bandwidth", "fast"]),
        ("--steps 0", ["--steps", "1 or more"]),
        ("--save-predictions", ["unknown option --save-predictions"]),
        ("--cache-ratio 0.1", ["did you mean --cache-ratios?"]),
        ("--data nothing", ["--data nothing", "unknown source"]),
        ("--profile nothing", ["--profile nothing"]),
        ("--num-indices-per-lookup 3", ["--num-indices-per-lookup", "--data reference"]),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, words):
    message = one_line(capsys, main(shlex.split(arguments)))
    assert all(word in message for word in words), message
