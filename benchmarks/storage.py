"""``python benchmarks/storage.py [PART...]``: what the LMDB tier costs. Parts: writes, reads, throughput, stall, limit.

writes      bytes that reach the disk for each byte of record written back, in steady state with random evictions, and
            the size of the store beside that of its live records. From the kernel's counter of the device
            (/sys/dev/block/*/stat, sectors written) after a sync: whatever else writes there counts against us. The
            process's own counter (/proc/self/io, ``write_bytes``) counts a large folio of the page cache as a whole
            however little of it is written, and says more than the device gets.
reads       records a second, drawn at random, pages in memory.
throughput  training with a host budget of 25 % of the touched records, beside the same run with all of them in memory,
            in turn.
stall       how much longer than others the steps with a checkpoint take, the pipeline's draining and filling included.
limit       a run under a cgroup limit (version 1, root) whose touched records are at least four times the limit.

Writes ``profiles/storage-<part>_<date>.md``. Stores lie below STORAGE_BENCHMARK_DIR, or else where temporary files do.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import made_by, train_into, write_profile

from cachedlrm.base.units import format_bytes
from cachedlrm.cache.working_set import AddressBook
from cachedlrm.store.database import Database, Meta, open_database
from cachedlrm.store.environment import CHECKPOINT
from cachedlrm.store.lmdb_store import LmdbStore
from cachedlrm.store.record_log import RecordLog

PLACE = Path(os.environ.get("STORAGE_BENCHMARK_DIR", tempfile.gettempdir()))


def opened(path: Path, width: int, num_rows: int) -> tuple[Database, RecordLog]:
    database = open_database(path, {"model": "benchmark"}, [(num_rows, width)], 64 << 20, resumes=False)
    book = AddressBook(num_rows)
    book.register(np.arange(num_rows))
    return database, RecordLog(database, 0, width, book, num_rows)


def written_bytes(path: Path) -> int:
    """By the device of ``path``, by anybody."""
    os.sync()
    device = path.stat().st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text()
    return int(stat.split()[6]) * 512


def checkpoint(database: Database, log: RecordLog) -> None:
    log.begin_checkpoint()
    database.write(Meta(CHECKPOINT, b"state"))
    log.end_checkpoint()


def writes() -> list[str]:
    titles = (
        "record | live | evictions a turn | turns a checkpoint | disk bytes / byte | appended / evicted | store / live"
    )
    lines = [f"| {titles} |", "|" + "---|" * 7]
    num_rows, per_turn = 4_000_000, 5_000
    for width in (17, 32):
        for turns in (0, 40):
            path = PLACE / "storage-writes"
            shutil.rmtree(path, ignore_errors=True)
            database, log = opened(path, width, num_rows)
            rng = np.random.default_rng(0)
            records = np.zeros((per_turn, width), np.float32)
            for first in range(0, num_rows, per_turn):
                log.append(np.arange(first, first + per_turn), records)
            before = appended = largest = 0
            for turn in range(3200):
                if turn == 1600:  # as much again as there are rows twice over: steady
                    database.wait()
                    before, appended = written_bytes(path), log.appended_records
                log.append(rng.integers(0, num_rows, per_turn), records)
                if turns and turn % turns == turns - 1:
                    checkpoint(database, log)
                if turn % 100 == 99:
                    database.wait()
                    largest = max(largest, database.file_bytes)
            database.wait()
            total, live = 1600 * per_turn, num_rows * width * 4
            ratio = (written_bytes(path) - before) / (total * width * 4)
            rewritten = (log.appended_records - appended) / total
            lines.append(
                f"| {4 * width} B | {format_bytes(live)} | {per_turn:,} | {turns or 'none'} | {ratio:.2f} | "
                f"{rewritten:.2f} | {largest / live:.2f} |"
            )
            database.close()
            shutil.rmtree(path)
    return lines


def reads() -> list[str]:
    lines = [
        "| record | rows | M records/s: median (p10-p90) of 30 | with the host tier's bookkeeping |",
        "|---|---|---|---|",
    ]
    for width in (16, 32):
        path, num_rows = PLACE / "storage-reads", 2_000_000
        shutil.rmtree(path, ignore_errors=True)
        database, log = opened(path, width, num_rows)
        for first in range(0, num_rows, 10_000):
            log.append(np.arange(first, first + 10_000), np.ones((10_000, width), np.float32))
        checkpoint(database, log)
        database.wait()
        store = LmdbStore(num_rows, 10_000, width, log)
        rng, rates, through = np.random.default_rng(0), [], []
        out = np.empty((50_000, width), np.float32)
        for turn in range(35):
            addresses = rng.choice(num_rows, 50_000, replace=False)
            started = time.perf_counter()
            log.read(addresses, out)
            middle = time.perf_counter()
            store.read(addresses, out)
            if turn >= 5:
                rates.append(len(out) / (middle - started) / 1e6)
                through.append(len(out) / (time.perf_counter() - middle) / 1e6)
        low, middle_rate, high = np.percentile(rates, [10, 50, 90])
        lines.append(
            f"| {4 * width} B | {num_rows:,} | {middle_rate:.2f} ({low:.2f}-{high:.2f}) | {np.median(through):.2f} |"
        )
        database.close()
        shutil.rmtree(path)
    return lines


def trained(*arguments: str, prefix: tuple[str, ...] = ()) -> tuple[dict, list[dict]]:
    """The report of a run of the program, with the sizes of its files, and its metrics."""
    run = PLACE / "storage-run"
    shutil.rmtree(run, ignore_errors=True)
    report, metrics = train_into(run, *arguments, prefix=prefix)
    store = run / "store" / "data.mdb"
    report["store_bytes"] = store.stat().st_size if store.exists() else 0
    report["final_bytes"] = (run / "final.safetensors").stat().st_size
    shutil.rmtree(run)
    return report, metrics


def throughput() -> list[str]:
    steps = 600
    shape = [f"--steps={steps}", "--test-freq=-1", "--gpu-cache-ratio=0.01", "--optimizer=rwsadagrad"]
    rows = trained(*shape)[0]["first_touch_rows"]
    budget = rows * 68 // 4
    ratios, lines = (
        [],
        ["| turn | samples/s, all in memory | LMDB | ratio | fetched rows | store |", "|---|---|---|---|---|---|"],
    )
    for turn in range(3):
        memory, _ = trained(*shape, "--print-freq=1")
        disk, _ = trained(*shape, "--print-freq=1", "--store=lmdb", f"--host-budget={budget}")
        assert memory["losses"] == disk["losses"]
        ratios.append(disk["samples_per_s"] / memory["samples_per_s"])
        lines.append(
            f"| {turn} | {memory['samples_per_s']:,.0f} | {disk['samples_per_s']:,.0f} | {ratios[-1]:.2f} | "
            f"{disk['fetched_rows']:,} | {format_bytes(disk['store_bytes'])} |"
        )
    lines.append(
        f"\nMedian ratio {statistics.median(ratios):.2f}; {rows:,} rows touched, host budget {format_bytes(budget)}; "
        "losses equal to the last bit."
    )
    return lines


def stall() -> list[str]:
    every, steps = 40, 300
    lines = ["| store | cache | step ms, median | stall ms, each checkpoint | median |", "|" + "---|" * 5]
    for store, ratio in (("host", 0.05), ("host", 0.01), ("lmdb", 0.01)):
        options = ["--store=lmdb", "--host-budget=64MiB"] if store == "lmdb" else []
        _, rows = trained(
            f"--steps={steps}", "--test-freq=-1", f"--gpu-cache-ratio={ratio}", "--optimizer=adagrad", "--print-freq=1",
            f"--checkpoint-every={every}", *options,
        )  # fmt: skip
        at = np.array([row["elapsed_s"] for row in rows]) * 1e3  # of the end of each step
        step = float(np.median(np.diff(at)))
        # A checkpoint comes after its step's line; as many steps as the prefetch depth may then wait for the pipeline.
        stalls = [at[after + 2] - at[after - 1] - 3 * step for after in range(every, steps - 3, every)]
        shown = ", ".join(f"{stall:.0f}" for stall in stalls)
        lines.append(f"| {store} | {ratio:.0%} | {step:.0f} | {shown} | {statistics.median(stalls):.0f} |")
    return lines


def limit() -> list[str]:
    most = 760 << 20
    group = Path("/sys/fs/cgroup/memory/cachedlrm-benchmark")
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(str(most))
    prefix = ("bash", "-c", f'echo $$ > {group}/cgroup.procs; exec "$0" "$@"')
    rows, dim = 26 * 130_000, 128
    begun = time.monotonic()
    report, _ = trained(
        "--data=reference", "--data-size=400000", "--mini-batch-size=64", f"--arch-sparse-feature-size={dim}",
        "--arch-embedding-size=" + "-".join(["130000"] * 26), "--arch-mlp-bot=13-128", "--arch-mlp-top=64-1",
        "--optimizer=adam", "--init=counter", "--num-indices-per-lookup=10", "--steps=400", "--threads=1",
        "--gpu-budget=60MiB", "--store=lmdb", "--host-budget=60MiB", "--checkpoint-every=100", prefix=prefix,
    )  # fmt: skip
    wall = time.monotonic() - begun
    peak = int((group / "memory.max_usage_in_bytes").read_text())
    failures = int((group / "memory.failcnt").read_text())
    group.rmdir()
    touched = report["first_touch_rows"] * report["record_bytes"]
    return [
        f"{rows:,} rows of {report['record_bytes']:,} bytes; {report['first_touch_rows']:,} touched: "
        f"{format_bytes(touched)}, {touched / most:.2f} times the limit of {format_bytes(most)} (cgroup v1, page cache "
        f"included; it was reached {failures:,} times, its peak was {format_bytes(peak)}). Anonymous memory at most "
        f"{format_bytes(report['host_peak_bytes'])} with --host-budget 60 MiB and 60 MiB for the device, the CPU "
        f"here; {report['evicted_rows']:,} rows evicted, {report['fetched_rows']:,} fetched; store "
        f"{format_bytes(report['store_bytes'])}; {report['samples_per_s']:,.0f} samples/s, of {wall:,.0f} s in all "
        f"{wall - report['steps'] * 64 / report['samples_per_s']:,.0f} for the start and the end: looking for NaN in "
        f"every record, and final.safetensors, {format_bytes(report['final_bytes'])} in order of the rows."
    ]


PARTS = {"writes": writes, "reads": reads, "throughput": throughput, "stall": stall, "limit": limit}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        measured = PARTS[part]()
        write_profile(
            f"storage-{part}", f"# The tier on disk: {part}", f"{made_by(__file__, [part])}.", "\n".join(measured)
        )
