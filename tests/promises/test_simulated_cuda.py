"""Whole runs on a simulated CUDA device have the bits of the CPU, whatever the order of copies and training.

Each run takes place under schedule ``late`` and under one of the others in turn; with ``SIMCUDA_ALL=1``, as
`make torture` has it, under all, and ``random`` with several seeds. All accesses to device memory are checked.
"""

import importlib
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch

from cachedlrm import CachedEmbeddingBags
from cachedlrm.cache import streams, transfer
from cachedlrm.data.open import open_dataset
from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.resolve import data_request, resolve
from cachedlrm.plan import step_bytes, tiers
from cachedlrm.run import job
from cachedlrm.train import main
from simcuda import simulated_cuda
from support.runs import parameters, report, train

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="simulates a device")

# Few losses are printed: the host waits for each, and so puts in order what was not.
COMMON = ["--data=zipf:samples=800", "--mini-batch-size=50", "--numpy-rand-seed=3", "--print-freq=50", "--test-freq=9"]
MIXED = ["--md-flag", "--md-threshold=40"]
RESUMED = "resumed"
STARTED = "goes on from another, whose tables were smaller"
LIBRARY = "library"  # where no copy of a model makes the host wait first

# Plain sgd is not among them: on the CPU it takes each gradient in its turn, on CUDA their sum (model/row_update.py).
RUNS = {
    "lru": ["--policy=lru", "--prefetch-depth=1", "--gpu-cache-rows=160", "--optimizer=adagrad"],
    "lfu, nothing ahead": ["--policy=lfu", "--prefetch-depth=0", "--gpu-cache-rows=160", "--optimizer=adam"],
    "lrfu": ["--policy=lrfu", "--prefetch-depth=4", "--gpu-cache-rows=160", "--optimizer=adagrad"],
    "lookahead": ["--policy=lookahead", "--prefetch-depth=2", "--gpu-cache-rows=160", "--optimizer=rwsadagrad"],
    "static": ["--policy=static", "--prefetch-depth=2", "--gpu-cache-rows=160", "--optimizer=adam"],
    "mixed dimensions, checkpoints": [
        *["--policy=lru", "--prefetch-depth=3", "--gpu-cache-rows=170", "--optimizer=rwsadagrad", *MIXED],
        *["--checkpoint-every=7"],
    ],
    "mixed dimensions, lookahead, lmdb": [
        *["--policy=lookahead", "--prefetch-depth=4", "--gpu-cache-rows=190", "--optimizer=adam", *MIXED],
        *["--store=lmdb", "--host-budget=1MiB", "--checkpoint-every=5", "--row-dtype=fp16", "--row-state-dtype=bf16"],
        *["--clip-grad-norm=0.1", "--weight-decay=0.1"],
    ],
    "graphs, projection": [
        *["--policy=lru", "--prefetch-depth=2", "--gpu-cache-rows=160", "--optimizer=adam", "--cuda-graphs"],
        *["--arch-interaction-op=projection", "--interaction-branch1-layer-sizes=12-16"],
        *[
            "--interaction-branch2-layer-sizes=24",
            "--clip-grad-norm=0.1",
            "--dense-optimizer=adamw",
            "--dense-eps=1e-4",
        ],
        "--lr-policy=cosine",
    ],
    "remainders, weighted": [
        *["--data=zipf:samples=800,hot=3", "--policy=lrfu", "--prefetch-depth=2", "--gpu-cache-rows=320"],
        *["--optimizer=sgd", "--weighted-pooling=learned", "--row-dtype=bf16"],
        *["--clip-grad-norm=0.1", "--weight-decay=0.1"],
    ],
    "several passes, bf16, cross layers": [
        *["--policy=lru", "--prefetch-depth=2", "--gpu-cache-rows=300", "--optimizer=adagrad", "--bf16"],
        *["--data=zipf:samples=800,hot=3-1-2-1", "--pooling=mean", "--clip-grad-norm=0.1"],
        *["--mlperf-grad-accum-iter=2", "--micro-batch-size=20", "--init=reference", "--arch-interaction-op=dcn"],
    ],
    "all resident": [
        *["--arch-embedding-size=20-7-30-5", "--policy=lru", "--prefetch-depth=3", "--gpu-cache-ratio=1.0"],
        *["--optimizer=adam", "--test-freq=-1"],
    ],
    RESUMED: [
        *["--policy=lru", "--prefetch-depth=3", "--gpu-cache-rows=170", "--optimizer=rwsadagrad", *MIXED],
        *["--checkpoint-every=7", "--eps=1e-4", "--dense-optimizer=sgd", "--dense-momentum=0.9", "--lr-policy=linear"],
    ],
    STARTED: [
        *["--policy=lookahead", "--prefetch-depth=3", "--gpu-cache-rows=170", "--row-dtype=fp16", "--shuffle"],
        *["--optimizer=adam", "--store=lmdb", "--host-budget=1MiB", "--numpy-rand-seed=9"],
    ],
}
OTHERS = ["copies-first", "training-first", "random"]
SETTINGS = {
    name: [("late", 0), *([(other, seed) for other in OTHERS for seed in range(3 if other == "random" else 1)])]
    if os.environ.get("SIMCUDA_ALL") == "1"
    else [("late", 0), (OTHERS[number % len(OTHERS)], number)]
    for number, name in enumerate(RUNS)
}


def looked_up(device: str) -> list[bytes]:
    """What a loop of the library sees whose rows are all on the device in time."""
    stream = [torch.arange(4 * first, 4 * first + 4).view(4, 1) for first in range(8)]
    with CachedEmbeddingBags([64], 4, cache_rows=8, optimizer="sgd", prefetch_depth=2, device=device) as bags:
        for number, ids in enumerate(bags.prefetch(stream, lambda batch: batch, pause_every=2)):
            bags(ids).sum().backward()
            bags.step()
            if number == 1:  # as an evaluation reads, but for its copies afterwards, for which the host waits
                seen = bags._engine.cache.groups[0].read(np.arange(4))
        return [seen.cpu().numpy().tobytes(), bags.weight(0).numpy().tobytes()]


def trained(name: str, run: Path, device: str) -> tuple[dict[str, bytes], list[object]]:
    """Final parameters and optimizer state by name, and what the report says that must not differ."""
    given = {option.split("=")[0] for option in RUNS[name]}
    common = [option for option in COMMON if option.split("=")[0] not in given]
    if name == STARTED:
        first = run.with_name("first")
        if not first.exists():
            of_rows = ["--optimizer=adam", "--row-dtype=fp16", "--device=cpu"]
            assert train(first, *COMMON, *of_rows, "--arch-embedding-size=300-30-700-5", "--steps=6") == 0
        common = [*common, f"--start-from={first}"]
    assert train(run, *common, *RUNS[name], f"--device={device}") == 0
    if name == RESUMED:
        assert main([f"--resume={run}", "--ui=off", "--nepochs=2"]) == 0
    told = report(run)
    figures = [told[key] for key in ("loss_mean", "loss_last", "auc", "fetched_rows", "evicted_rows")]
    return {key: value.tobytes() for key, value in parameters(run, True).items()}, figures


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_bits_of_the_cpu(name, tmp_path, monkeypatch):
    # Staging of 32 rows, so that they move in several turns.
    monkeypatch.setattr(step_bytes, "_LEAST_STAGING_ROWS", 1)
    monkeypatch.setattr(tiers, "MOST_STAGING_ROWS", 32)
    monkeypatch.setattr(job, "MOST_STAGING_ROWS", 32)
    graphs = [option for option in RUNS[name] if option != "--cuda-graphs"]
    with monkeypatch.context() as patch:
        patch.setitem(RUNS, name, graphs)  # which are for CUDA
        state, figures = trained(name, tmp_path / "cpu", "cpu")
    for schedule, seed in SETTINGS[name]:
        with simulated_cuda(schedule, seed=seed, races=True) as machine:
            ours, told = trained(name, tmp_path / f"{schedule}-{seed}", "cuda")
        assert not machine.races.found, f"{schedule}, seed {seed}: " + "\n".join(machine.races.found)
        assert told == figures, f"{schedule}, seed {seed}"
        assert ours == state, f"{schedule}, seed {seed}"
        assert machine.races.num_checked > 1000
    evicted = figures[-1]
    assert evicted == 0 if name == "all resident" else evicted > 0


# --- what goes wrong without each order

ORDERS = {
    "streams, Event.record": ("cache.streams", "self._event.record(torch.cuda.current_stream(self._device))", "lru"),
    "streams, Event.wait": (
        "cache.streams", "torch.cuda.current_stream(self._device).wait_event(self._event)", "lru"
    ),
    "streams, Event.synchronize": ("cache.streams", "self._event.synchronize()", "lru"),
    "streams, follow": (
        "cache.streams", "self._stream.wait_stream(torch.cuda.current_stream(self._device))", LIBRARY
    ),
    "streams, a batch is marked": ("cache.streams", "self._events[index % len(self._events)].record()", "lru"),
    "streams, who waits waits on the device, too": (
        "cache.streams", "self._events[kept % len(self._events)].wait()", "lru"
    ),
    "cache, fresh memory": (
        "cache.embedding_cache",
        "self._stream.follow()  # slabs and staging are memory that earlier work of this stream may still write",
        LIBRARY,
    ),
    "cache, rows are admitted": ("cache.embedding_cache", "admitted.record()", "lru"),
    "group, rows were read": ("cache.table_group", "self._stream.follow()", LIBRARY),
    "transfer, victims are trained": ("cache.transfer", "self._trained.wait(plan.evict_after)", "lrfu"),
    "transfer, victims are in the store": ("cache.transfer", "self._finish_write_backs(plan.read_after)", "lrfu"),
    "transfer, a buffer was copied up": ("cache.transfer", "buffer.copied.synchronize()\n        return", "lru"),
    "transfer, a buffer was copied down": (
        "cache.transfer", "            buffer.copied.synchronize()\n            addresses", "lru"
    ),
    "transfer, a buffer was saved": (
        "cache.transfer", "        buffer.copied.synchronize()\n        records:", RESUMED
    ),
    "trainer, rows are admitted": ("run.trainer", "batch.admitted.wait()", "lru"),
    "library, rows are admitted": ("library.current", "self._prepared.admitted.wait()", LIBRARY),
    "upload, a buffer was trained": ("cache.upload", "self._trained.wait(index - len(self._ring))", "all resident"),
    "upload, a buffer was copied": ("cache.upload", "self._copied.synchronize()", "all resident"),
    "upload, a copy is marked": ("cache.upload", "self._copied.record()", "all resident"),
}  # fmt: skip
"""Statements, and the run that goes wrong without each."""


@contextmanager
def without(module_name: str, statement: str) -> Iterator[None]:
    """The package as if a statement were ``pass``: functions get the code that they would have."""
    module = importlib.import_module(f"cachedlrm.{module_name}")
    source = inspect.getsource(module)
    assert source.count(statement) == 1, f"{statement!r} is not in {module_name} once"
    ours = statement.strip().split("\n")[0]
    changed: dict[str, object] = {"__name__": module.__name__}
    exec(compile(source.replace(statement, statement.replace(ours, "pass")), module.__file__, "exec"), changed)
    before = []
    for name, owner in inspect.getmembers(module, inspect.isclass):
        for method, wrapped in list(vars(owner).items()) if owner.__module__ == module.__name__ else []:
            if isinstance(wrapped, FunctionType) and method in vars(changed[name]):
                function, other = inspect.unwrap(wrapped), inspect.unwrap(vars(changed[name])[method])
                if function.__code__ != other.__code__:
                    before.append((function, function.__code__))
                    function.__code__ = other.__code__
    assert len(before) == 1
    try:
        yield
    finally:
        for function, code in before:
            function.__code__ = code


@pytest.mark.parametrize("order", ORDERS)
def test_a_run_goes_wrong_without(order, tmp_path, monkeypatch):
    monkeypatch.setattr(step_bytes, "_LEAST_STAGING_ROWS", 1)
    monkeypatch.setattr(tiers, "MOST_STAGING_ROWS", 32)
    monkeypatch.setattr(job, "MOST_STAGING_ROWS", 32)
    module, statement, name = ORDERS[order]

    def go(run: Path, device: str) -> object:
        return looked_up(device) if name == LIBRARY else trained(name, run, device)

    expected = go(tmp_path / "cpu", "cpu")
    seen = []
    with without(module, statement):
        for schedule in ("late", "copies-first", "training-first"):
            with simulated_cuda(schedule, races=True) as machine:
                try:
                    seen.append(go(tmp_path / schedule, "cuda") == expected)
                except Exception as error:
                    seen.append(type(error).__name__)
                seen.append(machine.races.found[:1])
            if seen[-2:] != [True, []]:
                return
    raise AssertionError(f"the statement may go: {seen}")


# --- and what is not ordered


def waited_for(monkeypatch, tmp_path) -> tuple[list[tuple[int, int]], set[int]]:
    """What the copies of batches needed, and what they waited for beyond that.

    Training is issued and nothing of it is done but what is waited for here, while copies run as far as they may.

    Returns:
        Of each batch with victims its number and the batch that used a victim last; and the batches whose copies were
        not done when the training of that one was.
    """
    needed: dict[int, int] = {}
    execute = transfer.Transfer.execute

    def noting(self, plan, moves):
        needed[plan.index] = plan.evict_after
        return execute(self, plan, moves)

    monkeypatch.setattr(transfer.Transfer, "execute", noting)
    options = [*COMMON, "--policy=lru", "--gpu-cache-rows=2500", "--optimizer=sgd", "--device=cuda"]
    late = set()
    with simulated_cuda("copies-first") as machine:
        chosen = parse_command_line(options)
        dataset = open_dataset(chosen.data.data, chosen.data.test_data, data_request(chosen))
        built = job.build_job(resolve(chosen, dataset), dataset, tmp_path)
        cache, marks = built.trainer.cache, {}
        batches = iter(cache.prepare(built.schedule.batches(0), 0))
        for batch in islice(batches, 16):
            index = batch.tensors.index
            if needed[index] >= 0:
                machine.reach(marks[needed[index]])
                machine._settle(machine.streams[1])
                if not batch.admitted._event.query():
                    late.add(index)
            built.trainer.step(batch)
            marks[index] = cache.trained._events[index % len(cache.trained._events)]._event.mark
        assert not marks[index].is_reached, "the last batches are not trained yet"
    return [(index, after) for index, after in needed.items() if after >= 0], late


def test_copies_wait_for_no_more_training_than_they_need(monkeypatch, tmp_path):
    needed, late = waited_for(monkeypatch, tmp_path)
    assert sum(after < index - 1 for index, after in needed) > 2, "or there is nothing to see"
    assert not late


def test_copies_on_the_stream_of_training_would_wait(monkeypatch, tmp_path):
    monkeypatch.setattr(streams.CopyStream, "__call__", lambda self: nullcontext())
    assert waited_for(monkeypatch, tmp_path)[1]
