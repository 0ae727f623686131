"""``python tests/support/kill.py N``: kills training N times at random instants and compares with runs left alone.


The trainer is forked from this process, which has loaded everything, so that most of a child's life is training. Each
resume may change what may change: store, cache size, policy, prefetch depth. A case ends when a child is not killed in
time; then its parameters, optimizer state and losses must be those of the run left alone, bit for bit.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from cachedlrm.export.__main__ import export
from cachedlrm.store import database, record_log
from cachedlrm.train import main

STEPS = 90
MODEL = [
    "--data=zipf:samples=9000",
    "--arch-embedding-size=6000-30-9000-5",
    "--arch-mlp-bot=3-16-8",
    "--arch-mlp-top=16-1",
    "--mini-batch-size=100",
    f"--steps={STEPS}",
    "--test-freq=30",
    "--print-freq=1",
    "--threads=1",
    "--ui=off",
]
_PATIENCE_S = 120
Result = tuple[bytes, list[float], float]
OPTIMIZERS = ["sgd", "adagrad", "rwsadagrad", "adam"]


def in_child(arguments: list[str], kill_after_s: float | None, log: Path) -> int | None:
    """Trains in a child; its exit status, or None if it was killed."""
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 70
        signal.alarm(_PATIENCE_S)
        try:
            status = main(arguments)
        finally:
            os._exit(status)
    if kill_after_s is not None:
        deadline = time.monotonic() + kill_after_s
        while time.monotonic() < deadline:
            ended, result = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(result)
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    _, result = os.waitpid(child, 0)
    status = os.waitstatus_to_exitcode(result)
    return None if status == -signal.SIGKILL else status


def cache_options(dice: random.Random) -> list[str]:
    """Options that must not change a bit."""
    store = dice.choice(["host", "lmdb"])
    return [
        f"--store={store}",
        f"--host-budget={'200KiB' if store == 'lmdb' else '100MiB'}",  # 1,400 to 4,700 rows, or all
        f"--gpu-cache-ratio={dice.choice([0.03, 0.05, 0.5])}",
        f"--policy={dice.choice(['lru', 'lfu', 'lrfu', 'static', 'lookahead'])}",
        "--lookahead=5",
        f"--prefetch-depth={dice.choice([0, 1, 3])}",
        f"--checkpoint-every={dice.choice([1, 2, 5, 17])}",
    ]


def result(run: Path, folder: Path) -> Result:
    """Parameters and optimizer state, losses, and AUC."""
    out = folder / "out.safetensors"
    export(run, out, with_optimizer_state=True)
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return out.read_bytes(), losses, json.loads((run / "report.json").read_text())["auc"]


def differences(found: Result, right: Result) -> str:
    """In what they differ; nothing if they are equal."""
    names = ("records", "losses", "AUC")
    words = [f"{name} differ" for name, there, here in zip(names, found, right, strict=True) if there != here]
    if found[1] != right[1]:
        first = next((n for n, pair in enumerate(zip(found[1], right[1], strict=False)) if pair[0] != pair[1]), None)
        words.append(f"{len(found[1])} losses, the first different one is number {first}")
    return "; ".join(words)


def one_case(
    dice: random.Random, run: Path, begin: list[str], seconds: float, most_kills: int
) -> tuple[int, list[str]]:
    """Starts, kills and resumes a run until it ends; (number of kills, what was done)."""
    log, history, kills = run.with_suffix(".log"), [], 0
    while True:
        where = [f"--resume={run}", "--ui=off"] if (run / "config.toml").exists() else [*begin, f"--run-dir={run}"]
        arguments = [*where, *cache_options(dice)]
        # Within the whole run and everything around it, or just its beginning: every instant is hit.
        after = dice.uniform(0.0, dice.choice([0.3, 1.0, 2.0]) * seconds) if kills < most_kills else None
        history.append(" ".join(arguments) + f" # to be killed after {after}")
        status = in_child(arguments, after, log)
        if status is not None:
            history.append(f"status {status}" + (f": {log.read_text()[-500:]}" if status else ""))
            return kills, history
        kills += 1


def torture(num_kills: int, seed: int, folder: Path) -> tuple[int, int, list[str]]:
    """Kills until there were ``num_kills``; (passed, failed, what failed)."""
    dice = random.Random(seed)
    record_log.segment_bytes = lambda _: 16 << 10  # small, so that segments fill, die and are reclaimed
    record_log.SPARE_SEGMENTS = 1
    database._GATHERED_BYTES = 1  # every segment in a transaction of its own, also between checkpoints
    whole, seconds = {}, {}
    for optimizer in OPTIMIZERS:
        run = folder / f"whole-{optimizer}"
        started = time.monotonic()
        assert main([*MODEL, f"--optimizer={optimizer}", f"--run-dir={run}"]) == 0
        seconds[optimizer] = time.monotonic() - started
        whole[optimizer] = result(run, folder)
    passed = failed = case = 0
    failures: list[str] = []
    while passed + failed < num_kills:
        case += 1
        optimizer, run = dice.choice(OPTIMIZERS), folder / f"case-{case}"
        begin, most_kills = [*MODEL, f"--optimizer={optimizer}"], min(8, num_kills - passed - failed)
        kills, history = one_case(dice, run, begin, seconds[optimizer], most_kills)
        try:
            wrong = differences(result(run, folder), whole[optimizer])
        except Exception as error:
            wrong = repr(error)
        if wrong:
            failed += max(1, kills)
            failures.append("\n".join([*history, wrong]))
        else:
            passed += kills
            shutil.rmtree(run)
    return passed, failed, failures


if __name__ == "__main__":
    kills_wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    chosen_seed = int(sys.argv[2]) if len(sys.argv) > 2 else int(time.time())
    with tempfile.TemporaryDirectory() as place:
        num_passed, num_failed, what = torture(kills_wanted, chosen_seed, Path(place))
    for text in what:
        print(text)
    print(f"seed {chosen_seed}: {num_passed} passed, {num_failed} failed")
    sys.exit(1 if num_failed else 0)
