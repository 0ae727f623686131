"""The same engine on a GPU. Run by `make gpu-check` where there is one; skipped elsewhere."""

import json
import os

import numpy as np
import pytest
import torch

from test_exactness import ALL_ROWS, TABLE_ROWS, resident, train

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("prefetch_depth", [0, 1, 4])
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


def test_a_step_never_waits_for_the_device(tmp_path):
    from cachedlrm import progress, trainer  # noqa: PLC0415
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
        arguments = ["--data=zipf:samples=10000", "--gpu-cache-rows=20000", "--mini-batch-size=500", "--ui=off"]
        assert main([*arguments, "--device=cuda", "--run-dir", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["fetched_rows"] > 0


def test_a_budget_is_kept(tmp_path):
    from cachedlrm.train import main  # noqa: PLC0415

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    budget = 200 << 20
    arguments = ["--data=zipf:samples=60000", f"--gpu-budget={budget}", "--mini-batch-size=1000", "--ui=off"]
    assert main([*arguments, "--device=cuda", "--optimizer=adam", "--run-dir", str(tmp_path / "run")]) == 0
    assert torch.cuda.max_memory_allocated() - before <= budget


def test_device_memory_does_not_grow(tmp_path):
    from cachedlrm.train import main  # noqa: PLC0415

    arguments = ["--data=zipf:samples=100000", "--gpu-cache-rows=30000", "--mini-batch-size=500", "--print-freq=20"]
    assert main([*arguments, "--device=cuda", "--ui=off", "--run-dir", str(tmp_path / "run")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    peaks = [line["device_bytes"] for line in lines]
    assert peaks[-1] <= 1.02 * peaks[3], "the first batches may still grow the buffers"
