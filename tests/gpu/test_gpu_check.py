"""What `make gpu-check` measures on a GPU, here on the CPU with small shapes."""

import json

import gpu_check
import gpu_measure
import gpu_processes
import gpu_tables
import measuring
import pytest
import torch
from gpu_processes import TimeBudget, run
from resident import train_resident

from cachedlrm.train import main as train
from support.documents import TESTS
from support.runs import SMALL

CPU = torch.device("cpu")
NO_EVALUATION = ["--device=cpu", "--test-freq=-1"]
EVERY_LOSS = [*SMALL, *NO_EVALUATION, "--print-freq=1"]
EVICTING = ["--gpu-cache-rows=300", "--prefetch-depth=2"]


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def _sparse_checks():
    yield
    torch.sparse.check_sparse_tensor_invariants.disable()  # as tests/plain_torch.py leaves it


# --- the plain program


def test_the_plain_program_has_the_losses_of_the_trainer_with_sgd(tmp_path):
    assert train([*EVERY_LOSS, *EVICTING, "--optimizer=sgd", f"--run-dir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["evicted_rows"] > 100
    assert train_resident([*EVERY_LOSS, "--optimizer=sgd"]).losses == report["losses"]


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_the_plain_program_has_the_losses_of_the_trainer_with_two_lookups_of_a_row(optimizer):
    # torch's coalesce() adds the gradients of a row in no fixed order: sums of three may differ in the last bit.
    arguments = [a for a in EVERY_LOSS if "size" not in a] + ["--arch-embedding-size=40-3-90-5"]
    arguments += ["--mini-batch-size=2", "--steps=150", f"--optimizer={optimizer}"]
    cached = gpu_measure.cached([*arguments, "--gpu-cache-rows=30"])
    assert cached["evicted_rows"] > 100
    assert cached["fetched_rows"] > 100
    assert cached["working_set_rows"] < cached["lookups"] - 100
    assert train_resident(arguments).losses == cached["losses"]


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_the_plain_program_is_near_the_trainer_everywhere(optimizer):
    arguments = [*EVERY_LOSS, f"--optimizer={optimizer}"]
    cached = gpu_measure.cached([*arguments, *EVICTING])
    assert train_resident(arguments).losses == pytest.approx(cached["losses"], rel=1e-5)


# --- one measurement


@pytest.fixture(scope="module")
def cached():
    return gpu_measure.cached([*EVERY_LOSS, *EVICTING, "--optimizer=adagrad"])


def test_a_measured_run_is_that_of_the_command(cached, tmp_path):
    assert train([*EVERY_LOSS, *EVICTING, "--optimizer=adagrad", f"--run-dir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    counted = [key for key, value in report.items() if isinstance(value, int | list) and "peak" not in key]
    assert {"losses", "fetched_bytes", "written_back_bytes", "cache_slots"} <= set(counted)
    counted.remove("host_limit_bytes")
    counted.remove("device_limit_bytes")  # what was free
    counted.remove("host_store_bytes")  # the command writes all rows down in the end
    assert {key: cached[key] for key in counted} == {key: report[key] for key in counted}


def test_copies_are_those_of_the_counters(cached):
    copies = cached["copies"]
    assert copies["to_host"]["bytes"] == cached["written_back_bytes"] > 0
    created = cached["first_touch_rows"] * cached["record_bytes"]  # computed on the host here, on the device on CUDA
    assert copies["to_device"]["bytes"] == cached["fetched_bytes"] + created > 0
    assert copies["to_host"]["copies"] <= cached["steps"]
    assert min(way["seconds"] for way in copies.values()) > 0


def test_copies_are_not_timed_afterwards(cached):
    assert gpu_measure._StagingBuffer.to_host.__qualname__ == "_StagingBuffer.to_host"


class Step:
    """What a snapshot says."""

    def __init__(self, step, elapsed_s, wait_ms, recent_steps):
        self.step, self.samples, self.elapsed_s, self.recent_steps = step, 10 * step, elapsed_s, recent_steps
        self.phase_ms = dict.fromkeys(gpu_measure.PHASES, 1.0) | {"wait": wait_ms, "plan": 1e6}


def test_the_second_half_is_what_counts():
    snapshots = [Step(2, 7.0, 99.0, 2), Step(4, 9.0, 99.0, 2), Step(6, 9.5, 10.0, 2), Step(7, 10.0, 40.0, 1)]
    found = gpu_measure._second_half(snapshots)
    assert found["rate"] == 30.0
    assert found["wait_ms"] == pytest.approx((2 * 10.0 + 40.0) / 3)
    assert found["step_ms"] == pytest.approx(1000 / 3)
    assert found["between_ms"] == pytest.approx(1000 / 3 - 20.0 - 4.0)
    assert gpu_measure._second_half(snapshots[:1])["rate"] == 20 / 7


def test_the_link_is_measured_both_ways():
    found = gpu_measure.link(CPU, num_bytes=1 << 20, staging_rows=10)
    assert len(found["rates"]) == 1 + len(gpu_measure.STAGING_COLUMNS)
    assert all(rate > 0 for rates in found["rates"].values() for rate in (rates["to_device"], rates["to_host"]))


def test_samples_in_files_train_the_same(cached, tmp_path):
    options = gpu_check.write_samples(tmp_path, EVERY_LOSS, 2000)
    generated = [option for option in EVERY_LOSS if not option.startswith(("--data", "--arch-embedding-size"))]
    assert gpu_measure.cached([*generated, *options, *EVICTING, "--optimizer=adagrad"])["losses"] == cached["losses"]


# --- the time


def test_what_does_not_fit_is_not_begun(monkeypatch):
    clock = Clock()
    budget = TimeBudget(60, clock)
    monkeypatch.setattr(gpu_processes, "run", lambda *arguments: pytest.fail("begun"))
    clock.now += 45
    assert budget.lacks(15) is None
    measure = gpu_processes.in_process(budget)
    assert measure("cached", [], 20, 0) == {"note": "not run: 15 s of 60 s were left and it takes 20 s or more"}
    clock.now += 45
    assert budget.left == 0


def test_a_process_is_stopped_when_its_time_is_over():
    status, output, _ = run(["sh", "-c", "echo on; exec sleep 60"], 0.3)
    assert (status, output) == (None, "on\n")


def test_processes_get_what_is_left_and_say_what_went_wrong(monkeypatch, capsys):
    clock, asked = Clock(), []
    answers = [
        (0, 'a warning\n{"rate": 7.0}\n', ""),
        (1, "", "Traceback\nRuntimeError: out of memory\n"),
        (None, "", ""),
    ]

    def answer(command, seconds):
        asked.append((command[2:], seconds))
        clock.now += 10
        return answers[len(asked) - 1]

    monkeypatch.setattr(gpu_processes, "run", answer)
    measure = gpu_processes.in_process(TimeBudget(60, clock))
    assert measure("cached", ["--steps=3"], 20, 4096) == {"rate": 7.0}
    assert measure("resident", [], 20, 0) == {"note": "failed: RuntimeError: out of memory", "failed": True}
    assert measure("link", [], 20, 0) == {"note": "stopped after 40 s, when the time was over"}
    assert asked == [(["cached", "4096", "--steps=3"], 60), (["resident", "0"], 50), (["link", "0"], 40)]
    assert "10 s: cached --steps=3: 7 samples/s, peak None B" in capsys.readouterr().out


# --- the report


def measure_here(kind, options, at_least_s, card_bytes):
    if kind == "link":
        return gpu_measure.link(CPU, num_bytes=1 << 20, staging_rows=10)
    return {"cached": gpu_measure.cached, "resident": gpu_measure.resident}[kind](options)


@pytest.fixture
def _small(monkeypatch):
    """Every measurement with a few steps of small tables on the CPU."""
    layers = ("--arch-mlp-bot=13-8", "--arch-mlp-top=8-1", "--threads=1")
    job = ("--arch-embedding-size=400-30-900-5", "--mini-batch-size=20", *layers)
    monkeypatch.setattr(gpu_check, "ON_CUDA", (*NO_EVALUATION, "--mini-batch-size=20", *layers))
    monkeypatch.setattr(gpu_check, "STEPS", 10)
    monkeypatch.setattr(gpu_check, "BATCH_SIZE", 20)
    monkeypatch.setattr(gpu_check, "MOST_ROUNDS", 2)
    caches = {name: options for name, options in gpu_check.CACHES.items() if "--cuda-graphs" not in options}
    monkeypatch.setattr(gpu_check, "CACHES", caches)
    sizes = ["--arch-embedding-size=400-30-900-5", "--arch-mlp-bot=13-8"]
    write = gpu_check.write_samples
    monkeypatch.setattr(gpu_check, "write_samples", lambda folder, given, count: write(folder, sizes, count))
    large = {"sgd": ("--optimizer=sgd", "--steps=4", "--print-freq=2")}
    monkeypatch.setattr(gpu_check, "TERABYTE", ("--gpu-cache-ratio=0.5", "--arch-embedding-size=400-30-900-5"))
    monkeypatch.setattr(gpu_check, "TERABYTE_RUNS", large)
    monkeypatch.setattr(gpu_check, "CARD_JOBS", {"default job": ("--steps=2", job[0])})


@pytest.mark.usefixtures("_small")
def test_a_report_of_everything():
    clock = Clock()
    device, sections, all_ran = gpu_check.measured(measure_here, TimeBudget(60, clock))
    text = "\n".join(sections)
    assert (device, all_ran) == ("cpu", True)
    for line in ("| cache, 1 % |", "| cache, 5 % |", "| cache, 100 % |", "| one tensor, plain PyTorch |"):
        assert line in text
    assert "2 rounds in turn" in text
    assert "Mean losses of the cached runs: equal, bit for bit." in text
    assert "Criteo 1TB, 1 %, under 1.50 GB: sgd | 0.00 GB | yes |" in text
    assert "peak within the budget: 8 GiB, default job |" in text
    assert "not measured" not in text


def test_a_report_without_time_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(gpu_check, "write_samples", lambda *arguments: [])
    _, sections, all_ran = gpu_check.measured(lambda *arguments: {"note": "no time"}, TimeBudget(0))
    assert all_ran, "what is skipped has not failed"
    text = "\n".join(sections)
    assert "| cache, 5 % | no time |" in text
    assert "| sgd, in one pass | no time |" in text
    assert "| 8 GiB, Criteo 1TB | no time |" in text
    assert "| 5 % cache at 0.95 or more of: one tensor, plain PyTorch | not measured | - |" in text


def test_a_card_larger_than_the_device_is_not_emulated():
    cards = gpu_check.measure_cards(lambda *arguments: {"note": "asked"}, 4 << 30)
    assert cards["4 GiB, default job"] == {"note": "asked"}
    assert cards["8 GiB, default job"] == {"note": "not run: the device has 4.0 GiB"}


ROUND = {
    "cache, 5 %": {"rate": 90.0, "step_ms": 2.0, "wait_ms": 0.25, "between_ms": 0.5, "hit_ratio": 0.5, "loss_mean": 0.5}
    | {"fetched_rows": 1000, "evicted_rows": 7, "device_peak_bytes": 3 << 20},
    gpu_tables.RESIDENT: {"rate": 100.0, "loss_mean": 0.25, "device_peak_bytes": 5 << 20},
}


def test_rates_are_medians_over_rounds():
    faster = {"cache, 5 %": ROUND["cache, 5 %"] | {"rate": 98.0, "loss_mean": 0.75}, gpu_tables.RESIDENT: {"note": "-"}}
    text = gpu_tables.rates([ROUND, faster])
    assert "| cache, 5 % | 94 (90-98) | 0.900 | 2.00 (2.00-2.00) | 0.25 (0.25-0.25) | 0.50 (0.50-0.50) |" in text
    assert "| one tensor, plain PyTorch | 100 | 1.000 | - | - | - | - | - | - | 5 MiB | 0.250000 |" in text
    assert "Mean losses of the cached runs: 2 different ones." in text


def test_targets_are_set_beside_what_was_measured():
    large = {"sgd": {"device_peak_bytes": 1.6e9}, "adam": {"note": "no time"}}
    emulated = {"4 GiB": {"device_peak_bytes": 1 << 20, "device_limit_bytes": 1 << 20}}
    rounds = [ROUND | {gpu_tables.ALL_CACHED: {"rate": 94.0}}]
    assert gpu_tables.targets(rounds, large, emulated).splitlines()[2:] == [
        "| 5 % cache at 0.95 or more of: one tensor, plain PyTorch | 0.900 | **no** |",
        "| 5 % cache at 0.95 or more of: cache, 100 % | 0.957 | yes |",
        "| Criteo 1TB, 1 %, under 1.50 GB: sgd | 1.60 GB | **no** |",
        "| Criteo 1TB, 1 %, under 1.50 GB: adam | not measured | - |",
        "| peak within the budget: 4 GiB | 1 MiB of 1 MiB | yes |",
    ]


def test_copies_are_set_against_the_link():
    moved = {"to_device": {"copies": 4, "bytes": 8 << 20, "seconds": 0.001}, "to_host": {"bytes": 0, "seconds": 0.0}}
    link = {"rates": {"peak": {"to_device": 16 << 30, "to_host": 16 << 30}}}
    text = gpu_tables.copies({"a run": {"copies": moved, "training_s": 2.0}, "none": {"note": "no time"}}, link)
    assert text.splitlines()[2:] == [
        "| a run | host to device | 8.0 | 4 | 2,048.0 | 8.39 | 49% | 0.004 |",
        "| a run | device to host | 0 | - | - | - | - | - |",
    ]


def test_all_files_with_tests_for_a_gpu_are_run():
    tests = TESTS
    marked = [
        f"tests/{path.relative_to(tests)}"
        for path in sorted(tests.rglob("*.py"))
        if "mark.gp" + "u" in path.read_text()
    ]
    assert tuple(marked) == gpu_check.TESTS


def test_without_a_gpu_the_report_says_what_was_not_run(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "run_tests", lambda budget: ("127 skipped", True))
    assert gpu_check.main() == 0
    (report,) = (tmp_path / "profiles").iterdir()
    assert f"`pytest -m gpu {' '.join(gpu_check.TESTS)}`: 127 skipped" in report.read_text()
    assert "**Not run:** this machine has no CUDA device" in report.read_text()
    assert report.read_text() in capsys.readouterr().out
