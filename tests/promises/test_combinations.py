"""Rows of 16 bits with every two options of the step together: cached, stopped and resumed is resident, with ``==``."""

from itertools import combinations

import pytest

from cachedlrm import train as train_module
from cachedlrm.train import main
from support.runs import parameters, report, train

WORDS = {
    "bf16": ["--row-dtype=bf16"],
    "fp16": ["--row-dtype=fp16"],
    "bf16-state": ["--row-dtype=bf16", "--row-state-dtype=bf16"],
    "plain": [],
    "qr": ["--qr-flag", "--qr-threshold=100"],
    "md": ["--md-flag", "--md-threshold=10"],
    "clip": ["--clip-grad-norm=0.05"],
    "decay": ["--weight-decay=0.2"],
    "micro": ["--micro-batch-size=20", "--mlperf-grad-accum-iter=2"],
    "mean": ["--pooling=mean"],
    "shuffle": ["--shuffle"],
    "cosine": ["--lr-policy=cosine", "--lr-num-warmup-steps=3"],
}
CASES = [
    "bf16 plain decay micro mean shuffle cosine",
    "bf16 qr clip decay shuffle",
    "bf16 md clip mean",
    "fp16 plain clip micro mean shuffle",
    "fp16 qr clip micro cosine",
    "fp16 md decay mean cosine",
    "bf16-state plain",
    "bf16-state qr micro mean cosine",
    "bf16-state md clip decay micro shuffle",
]
DTYPES, TABLES = ("bf16", "fp16", "bf16-state"), ("plain", "qr", "md")
OPTIMIZERS = ("adagrad", "sgd", "rwsadagrad", "adam")
POLICIES = ("lru", "lookahead", "lfu", "static", "lrfu")
KILLED_AFTER = 9  # steps


def run_of(case: str) -> list[str]:
    options = [option for word in case.split() for option in WORDS[word]]
    return [
        *["--data=zipf:samples=900,hot=3", "--mini-batch-size=40", "--print-freq=1", "--test-freq=-1"],
        *[f"--optimizer={OPTIMIZERS[CASES.index(case) % 4]}", "--learning-rate=0.05", *options],
    ]


def test_every_two_options_meet():
    """Each level of one with each of the other: dtypes, kinds of tables, and six that are there or not."""
    of_case = [set(case.split()) for case in CASES]
    factors = [DTYPES, TABLES, *((word, f"no {word}") for word in list(WORDS)[6:])]
    levels = [words | {f"no {word}" for word in WORDS if word not in words} for words in of_case]
    for one, other in combinations(factors, 2):
        assert all(any({a, b} <= words for words in levels) for a in one for b in other), (one, other)


@pytest.mark.parametrize("case", CASES)
def test_a_cached_and_resumed_run_has_the_bits_of_a_resident_one(case, tmp_path, monkeypatch):
    resident, cached, number = tmp_path / "resident", tmp_path / "cached", CASES.index(case)
    assert train(resident, *run_of(case)) == 0
    small = [f"--policy={POLICIES[number % 5]}", "--lookahead=4", f"--prefetch-depth={number % 4}"]
    store = ["--store=lmdb", "--host-budget=200KiB"] if number % 2 else []
    trained = train_module.Progress.trained

    def dies(self, batch, step_losses):
        trained(self, batch, step_losses)
        if self.steps > KILLED_AFTER:
            raise RuntimeError("as if it was killed")

    with monkeypatch.context() as patch:
        patch.setattr(train_module.Progress, "trained", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train(cached, *run_of(case), *small, *store, "--gpu-cache-rows=130", "--checkpoint-every=4")
    assert main([f"--resume={cached}", "--gpu-cache-rows=190", "--ui=off"]) == 0
    ours, theirs = report(cached), report(resident)
    for counter in ("evicted_rows", "written_back_rows", "fetched_rows"):
        assert ours[counter] > 50 > theirs[counter] == 0
    assert ours["losses"] == theirs["losses"]
    ours, theirs = parameters(cached, with_optimizer_state=True), parameters(resident, with_optimizer_state=True)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name].tobytes() != theirs[name].tobytes()} == set()
