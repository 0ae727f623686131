"""The cache's work table by table: against a plain model, and in runs, where it adds up to the run's counters."""

import json
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from cachedlrm.cache.counters import TABLE_COUNTS
from cachedlrm.cache.table_group import CacheSettings
from cachedlrm.data.batch import Batch, make_batch
from cachedlrm.store.records import RecordLayout
from support.models import LruModel, one_group
from support.runs import train

ROWS = (13, 2, 40)


def bags(rng: random.Random, num_samples: int) -> list[list[int]]:
    """Local ids of each bag, sample after sample; some bags are empty, some hold an id twice."""
    return [[rng.randrange(rows) for _ in range(rng.choice([0, 1, 1, 3]))] for _ in range(num_samples) for rows in ROWS]


def test_counts_by_table_are_those_of_a_plain_model():
    rng = random.Random(3)
    batches = [bags(rng, 5) for _ in range(30)] + [[[]] * 3]
    cache = one_group(ROWS, RecordLayout(1, "sgd"), 25, 60, CacheSettings(policy="lru", prefetch_depth=0))
    lru, touched, hits = LruModel(25), set(), 0

    def as_batch(batch: list[list[int]]) -> Batch:
        num_samples = len(batch) // 3
        ids, offsets = np.array([row for bag in batch for row in bag], np.int64), np.cumsum([0, *map(len, batch)])
        dense, labels = np.empty((num_samples, 0), np.float32), np.zeros(num_samples, np.float32)
        return make_batch(dense, ids, offsets, labels, ROWS, where="batch", first_sample=0)

    prepared = cache.prepare(map(as_batch, batches))
    for batch, made in zip(batches, prepared, strict=True):
        expected = np.zeros((3, len(TABLE_COUNTS)), np.int64)
        unique: dict[tuple[int, int], int] = {}
        for number, bag in enumerate(batch):
            for row in bag:
                unique[number % 3, row] = unique.get((number % 3, row), 0) + 1
        for (table, row), lookups in unique.items():
            is_hit = (table, row) in lru.slot_of
            expected[table] += [lookups, lookups * is_hit, 1, (table, row) not in touched]
        assert made.table_counts.tolist() == expected.tolist()
        assert made.counters.hit_lookups == expected[:, 1].sum()
        lru.victims(list(unique))
        slots = made.tensors.lookups[0].slots.tolist()
        lru.use(dict(zip(unique, slots, strict=True)))
        touched |= set(unique)
        hits += int(expected[:, 1].sum())
        cache.trained.mark(made.tensors.index)
    assert hits > 0


@pytest.mark.parametrize("window", [0, 1, 4])
def test_a_batch_is_prepared_when_the_window_after_it_is_known(window):
    cache = one_group((9,), RecordLayout(1, "sgd"), 9, settings=CacheSettings("lookahead", window, 0))
    read = []

    def batches() -> Iterator[Batch]:
        for row in range(7):
            read.append(row)
            yield Batch(np.empty((1, 0), np.float32), np.array([row]), np.arange(2), np.zeros(1, np.float32))

    for index, batch in enumerate(cache.prepare(batches())):
        assert batch.tensors.index == index
        assert read == list(range(min(index + window + 1, 7)))
        cache.finish(batch, cache.begin(batch))


def test_batches_prepared_one_by_one_are_those_of_a_stream(monkeypatch):
    batches = [
        Batch(np.empty((2, 0), np.float32), np.array([n % 7, n % 5]), np.arange(3), np.zeros(2, np.float32))
        for n in range(20)
    ]
    stream, single = (
        one_group((9,), RecordLayout(1, "sgd"), 3, settings=CacheSettings("lru", prefetch_depth=0)) for _ in range(2)
    )
    evicted = 0
    for index, expected in enumerate(stream.prepare(batches)):
        found = single.prepare_one(batches[index], index)
        assert found.counters == expected.counters
        assert found.tensors.lookups[0].slots.tolist() == expected.tensors.lookups[0].slots.tolist()
        evicted += found.counters.evicted_rows
        for cache, batch in ((stream, expected), (single, found)):
            cache.finish(batch, cache.begin(batch))
    assert evicted > 0
    assert not single.is_broken
    monkeypatch.setattr(single.groups[0].planner, "plan", lambda working_set: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        single.prepare_one(batches[0], len(batches))
    assert single.is_broken


def test_a_batch_by_itself_waits_for_none_before_it():
    # Of the rows of batch 5, which was prepared and never trained, batch 6 evicts all.
    cache = one_group((9,), RecordLayout(1, "sgd"), 3, settings=CacheSettings("lru", prefetch_depth=0))
    stop = threading.Timer(20, cache.trained.stop)  # a wait for ever would be this test's
    stop.start()
    for index, rows in ((5, np.arange(3)), (6, np.arange(3, 6))):
        batch = Batch(np.empty((3, 0), np.float32), rows, np.arange(4), np.zeros(3, np.float32))
        prepared = cache.prepare_one(batch, index)
    stop.cancel()
    assert prepared.counters.evicted_rows == 3


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ["emb_l.0", "emb_l.1", "emb_l.2", "emb_l.3"]),
        (
            ["--qr-flag", "--qr-threshold=500"],
            ["emb_l.0", "emb_l.1", "emb_l.2.weight_q", "emb_l.2.weight_r", "emb_l.3"],
        ),
        (["--md-flag", "--md-threshold=100"], ["emb_l.0.embs", "emb_l.1", "emb_l.2.embs", "emb_l.3"]),
    ],
    ids=["plain", "qr", "md"],
)
def test_tables_add_up_to_the_run(tmp_path, options, names):
    assert train(tmp_path / "run", *options, "--steps=6", "--gpu-cache-ratio=0.2", "--test-freq=-1") == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    tables = report["tables"]
    assert [table["name"] for table in tables] == names
    assert sum(table["rows"] for table in tables) == report["table_rows"]
    assert {table["lookups"] for table in tables} == {600}
    assert sum(table["lookups"] for table in tables) == report["lookups"]
    assert sum(table["working_set_rows"] for table in tables) == report["working_set_rows"]
    assert sum(table["touched_rows"] for table in tables) == report["first_touch_rows"]
    hits = [table["hit_ratio"] * table["lookups"] for table in tables]
    assert round(sum(hits)) == round(report["hit_ratio"] * report["lookups"])
    assert 0 < sum(hits) < report["lookups"]
    assert tables[1]["touched_rows"] <= tables[1]["rows"] == 30
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert not any("table" in key for key in line)
