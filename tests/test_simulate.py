"""The miss-ratio curve as a command: its table, its JSON, its options."""

import json
import shlex
from pathlib import Path

import pytest

from cachedlrm.simulate import main
from support.runs import SMALL, one_line, train

RUN_ONLY = ("--threads", "--ui")
IDS = [argument for argument in SMALL if not argument.startswith(RUN_ONLY)]


def simulated(capsys, *arguments: str) -> dict:
    given = {argument.split("=")[0] for argument in arguments}
    ids = [argument for argument in IDS if argument.split("=")[0] not in given]
    assert main([*ids, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def trained(directory: Path, *arguments: str) -> dict:
    assert train(directory, "--test-freq=-1", *arguments) == 0
    return json.loads((directory / "report.json").read_text())


def test_the_table_for_people(capsys):
    arguments = [*IDS, "--cache-ratios=0.1,1", "--report-min", "--link-bandwidth=1MB", "--policy=lru"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    header, first, last, seen, recommended, total = text.splitlines()
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
    assert last.endswith("  recommended, more than is touched")
    assert last.partition("  recommended")[0].split()[-2:] == ["1.000", "0.000"]
    touched = curve["points"][1]["first_touch_rows"]
    assert seen.startswith(f"the ids touch {touched:,} of 1,335 rows ({touched / 1335:.2%}): they cannot judge larger")
    assert recommended == "recommended: --gpu-cache-ratio 1, the smallest within 1 point of the best hits"
    assert total.startswith("zipf:samples=2000, lru: 20 steps, 8,000 lookups in ")


def test_what_does_not_fit_the_described_device_is_marked_and_not_recommended(capsys):
    sizes = ["--cache-ratios=0.2,0.3,0.5,1", "--policy=lru"]
    small, enough, *_, whole = simulated(capsys, *sizes)["points"]
    assert small["device_bytes"] < enough["device_bytes"] < whole["device_bytes"]
    device = [f"--device-memory={enough['device_bytes'] + 1000}", "--device-reserved=1000"]
    curve = simulated(capsys, *sizes, *device)
    assert (curve["device_limit_bytes"], curve["recommended_slots"]) == (enough["device_bytes"], enough["cache_slots"])
    assert curve["touched_rows"] == whole["first_touch_rows"] < curve["table_rows"]
    assert main([*IDS, *sizes, *device]) == 0
    marks = [line.partition("  ")[2].split("  ")[-1] for line in capsys.readouterr().out.splitlines()[1:5]]
    assert marks == ["", "recommended", "does not fit", "does not fit, more than is touched"]
    none = simulated(capsys, *sizes, "--device-memory=1000")
    assert none["recommended_slots"] is None
    assert main([*IDS, *sizes, "--device-memory=1000"]) == 0
    assert "recommended: none of these, as none fits" in capsys.readouterr().out


def test_a_device_profile_is_what_the_caches_are_sized_for(capsys):
    profile = simulated(capsys, "--cache-ratios=0.1", "--profile=rtx3050-4gb")
    assert profile["device_limit_bytes"] == (4 << 30) - (768 << 20)
    own = simulated(capsys, "--cache-ratios=0.1")
    assert (own["device_limit_bytes"], own["recommended_slots"]) == (None, 133)  # the only one
    more = profile["points"][0]["device_bytes"] - own["points"][0]["device_bytes"]
    assert more > 32 << 20, "staging, and cuBLAS's workspace"


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
