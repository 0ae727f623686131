"""What is counted, and what a line of metrics says of it."""

import json
import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachedlrm.base.machine import host_memory
from cachedlrm.cache.counters import PHASES, PREPARING_PHASES, CacheCounters
from cachedlrm.report.metrics import metrics_row
from support.reports import snapshot

CONTRACT_KEYS = {
    "step", "samples", "elapsed_s", "loss", "auc", "samples_per_s", "hit_ratio", "unique_hit_ratio", "hit_ratio_total",
    "first_touch_rows", "fetched_rows", "evicted_rows", "written_back_rows", "fetched_bytes", "written_back_bytes",
    "device_bytes", "host_bytes", "mapped_bytes", *(f"{phase}_ms" for phase in PHASES),
}  # fmt: skip


counters = st.builds(CacheCounters, *[st.integers(0, 1 << 62)] * 8)


@given(counters, counters)
def test_counters_are_a_sum_of_their_parts(a, b):
    assert a + b == b + a
    assert a + b - b == a
    assert a + CacheCounters() == a
    assert (a + b).lookups == a.lookups + b.lookups
    assert (a + b).written_back_rows == a.written_back_rows + b.written_back_rows


def test_counters_and_snapshots_are_frozen():
    with pytest.raises(AttributeError):
        CacheCounters().lookups = 1
    with pytest.raises(FrozenInstanceError):
        snapshot().step = 1


def test_waiting_is_a_share_of_the_training_thread():
    assert snapshot().waited_share == pytest.approx(0.5 / 50)
    assert snapshot(phase_ms=dict.fromkeys(PHASES, 0.0)).waited_share == 0.0
    assert snapshot(phase_ms={"wait": 3.0, "plan": 9.0}).waited_share == 1.0
    assert set(PREPARING_PHASES) < set(PHASES)
    # Without a prefetch thread the training thread waits for what it prepares: 0.5 + 3.1 + 0.4 + 0.7 of 54.2.
    assert snapshot(prefetch_depth=0).waited_share == pytest.approx(4.7 / 54.2)
    assert snapshot(prefetch_depth=2).waited_share == snapshot().waited_share


def test_a_line_has_the_keys_of_the_contract():
    assert metrics_row(snapshot()).keys() >= CONTRACT_KEYS


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_line_is_json_whatever_was_measured(bad):
    worst = snapshot(
        loss=bad, auc=bad, samples_per_s=bad, elapsed_s=bad, eta_s=bad, phase_ms=dict.fromkeys(PHASES, bad)
    )
    row = json.loads(json.dumps(metrics_row(worst), allow_nan=False))
    assert row["loss"] is row["auc"] is row["samples_per_s"] is row["elapsed_s"] is row["wait_ms"] is None
    assert row["step"] == 610


@pytest.mark.parametrize(("info", "expected"), [({"rss": 90, "shared": 30}, (60, 30)), ({"rss": 90}, (90, 0))])
def test_host_memory_with_and_without_shared_pages(monkeypatch, info, expected):
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(**info))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert host_memory() == expected
