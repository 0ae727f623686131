"""The same engine on a GPU: on a real one by `make gpu-check`, elsewhere on a simulated one and in fewer steps."""

import functools
import json
import os

import numpy as np
import pytest
import torch

from cachedlrm.model.graphed_pass import CudaRecorder
from support.runs import MODEL
from support.training import ALL_ROWS, STEPS, TABLE_ROWS
from support.training import train as train_steps

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

REAL = torch.cuda.is_available()
train = functools.partial(train_steps, steps=STEPS if REAL else 20)
resident = functools.cache(train)


def job(samples: int, batch_size: int, cache_rows: int | None = None) -> list[str]:
    """A job for a GPU, or a fiftieth of it."""
    sizes = (samples, batch_size, cache_rows) if REAL else (samples // 10, batch_size // 5, 420)
    rows = [] if cache_rows is None else [f"--gpu-cache-rows={sizes[2]}"]
    model = [] if REAL else [*MODEL, "--threads=1"]
    return [
        f"--data=zipf:samples={sizes[0]}",
        f"--mini-batch-size={sizes[1]}",
        "--device=cuda",
        "--ui=off",
        *rows,
        *model,
    ]


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("prefetch_depth", [0, 1, 4] if REAL or "SIMCUDA_SCHEDULE" in os.environ else [0, 4])
@pytest.mark.parametrize("policy", ["lru", "lfu", "lrfu", "static", "lookahead"])
@pytest.mark.parametrize("lookups_per_bag", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rwsadagrad", "adam"])
def test_a_cached_run_has_the_bits_of_a_resident_one(optimizer, lookups_per_bag, policy, prefetch_depth):
    cached = train(optimizer, lookups_per_bag, 170, policy=policy, prefetch_depth=prefetch_depth, device="cuda")
    cached.assert_rows_travelled()
    cached.assert_same_bits(resident(optimizer, lookups_per_bag, device="cuda"))


@pytest.mark.parametrize("prefetch_depth", [0, 3])
def test_temporary_slots_and_evaluation(prefetch_depth):
    cached = train("adagrad", 3, 30, 400, prefetch_depth=prefetch_depth, evaluate=True, device="cuda")
    cached.assert_rows_travelled()
    cached.assert_same_bits(resident("adagrad", 3, evaluate=True, device="cuda"))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("interaction", ["dot", "cat"])
@pytest.mark.parametrize("quota_slots", [170, ALL_ROWS])
@pytest.mark.parametrize("prefetch_depth", [0, 4])
def test_graphs_have_the_bits_of_eager_passes(prefetch_depth, quota_slots, interaction, deterministic):
    torch.use_deterministic_algorithms(deterministic)
    eager = train("adam", 3, quota_slots, None, "lru", prefetch_depth, True, interaction, "cuda")
    graphs = train("adam", 3, quota_slots, None, "lru", prefetch_depth, True, interaction, "cuda", CudaRecorder())
    if quota_slots < ALL_ROWS:
        graphs.assert_rows_travelled()
    graphs.assert_same_bits(eager)


@pytest.mark.parametrize(
    "options",
    [["--bf16"], ["--loss-threshold=0.2", "--activation-function=gelu"], ["--loss-function=wbce"], ["--deterministic"]],
    ids=lambda options: options[0],
)
def test_graphs_change_no_loss_of_a_run(tmp_path, options):
    from cachedlrm.train import main  # noqa: PLC0415

    losses = []
    for name, graphs in (("eager", []), ("graphs", ["--cuda-graphs"])):
        given = [*job(10300, 500, 20000), "--print-freq=1", "--nepochs=2", *options, *graphs]
        assert main([*given, f"--run-dir={tmp_path / name}"]) == 0
        losses.append(json.loads((tmp_path / name / "report.json").read_text())["losses"])
    assert losses[0] == losses[1]


def test_the_cpu_is_near():
    ours, cpu = train("adagrad", 3, 170, device="cuda"), resident("adagrad", 3)
    assert ours.counters == train("adagrad", 3, 170).counters
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(cpu.losses), rtol=1e-4, atol=1e-5)


def test_first_touches_have_the_bits_of_the_host():
    from cachedlrm.store.init import CounterInit  # noqa: PLC0415 - beside its only use
    from cachedlrm.store.records import RecordLayout  # noqa: PLC0415

    rows = np.arange(0, ALL_ROWS, 7)
    init = CounterInit(11, TABLE_ROWS, RecordLayout(16, "rwsadagrad"), torch.device("cuda"))
    host = np.empty((len(rows), 17), np.float32)
    device = torch.empty(len(rows), 17, device="cuda")
    init.fill(rows, host)
    init.fill_on_device(torch.from_numpy(rows).cuda(), device)
    assert (device.cpu().numpy() == host).all()


@pytest.mark.parametrize("options", [[], ["--cuda-graphs"], ["--loss-threshold=0.1"]], ids=" ".join)
def test_a_step_never_waits_for_the_device(tmp_path, options):
    from cachedlrm.run import progress, trainer  # noqa: PLC0415
    from cachedlrm.train import main  # noqa: PLC0415

    step = trainer.Trainer.step

    def checked(self, batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trained = progress.Progress.trained

    def trained_checked(self, batch, losses):
        torch.cuda.set_sync_debug_mode("error" if self.steps else "default")  # the first step ends the warm-up
        try:
            return trained(self, batch, losses)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", checked)
        patch.setattr(progress.Progress, "trained", trained_checked)
        assert main([*job(10000, 500, 20000), *options, "--run-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["fetched_rows"] > 0


@pytest.mark.parametrize("options", [[], ["--cuda-graphs"]], ids=" ".join)
def test_a_budget_is_kept(tmp_path, options):
    from cachedlrm.train import main  # noqa: PLC0415

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    budget = 200 << 20
    arguments = [*job(60000, 1000), f"--gpu-budget={budget}", "--optimizer=adam", *options]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    assert torch.cuda.max_memory_allocated() - before <= budget


@pytest.mark.parametrize("options", [[], ["--cuda-graphs"]], ids=" ".join)
def test_device_memory_does_not_grow(tmp_path, options):
    from cachedlrm.train import main  # noqa: PLC0415

    samples, print_freq = (100000, 20) if REAL else (30000, 6)
    arguments = [*job(samples, 500, 30000), f"--print-freq={print_freq}", *options]
    assert main([*arguments, "--run-dir", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    peaks = [line["device_bytes"] for line in lines]
    assert peaks[-1] <= 1.02 * peaks[3], "the first batches may still grow the buffers"
