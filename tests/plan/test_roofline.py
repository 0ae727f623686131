"""Bounds of a step of two samples, by hand."""

from types import SimpleNamespace

import pytest

from cachedlrm.model.interaction import DOT, InteractionKind
from cachedlrm.plan.roofline import device_bytes, link_bytes, operations, step_ms
from cachedlrm.store.records import RecordLayout

STEP = SimpleNamespace(
    mini_batch_size=2, mlp_bot=(3, 5, 4), mlp_top=(7, 6, 1), num_features=2, interaction=DOT,
    groups=(SimpleNamespace(table_rows=(10, 20), layout=RecordLayout(4, "sgd")),),
)  # fmt: skip
TRAFFIC = SimpleNamespace(num_steps=10, lookups=40, fetched_rows=30, written_back_rows=50, record_bytes=16)


def test_arithmetic():
    layers = 2 * 3 * 5 + 3 * (5 * 4 + 7 * 6 + 6 * 1)  # nobody asks for the gradient of the dense features
    products = 3 * 4 * 3  # three pairs of three vectors
    assert operations(STEP) == 2 * 2 * (layers + products)
    assert operations(SimpleNamespace(**{**vars(STEP), "interaction": InteractionKind("cat")})) == 2 * 2 * layers
    crossed = SimpleNamespace(**{**vars(STEP), "interaction": InteractionKind("dcn", cross_layers=2, cross_rank=5)})
    assert operations(crossed) == 2 * 2 * (layers + 3 * 2 * (12 * 5 + 5 * 12))
    assert device_bytes(crossed) - device_bytes(STEP) == 4 * (2 * 2 * 2 * (5 + 12) + 3 * 2 * 2 * 12 * 5)


def test_bytes_on_the_device_and_over_the_link():
    assert device_bytes(STEP) == 4 * (2 * 2 * (5 + 4 + 6 + 1 + 8) + 3 * (15 + 20 + 42 + 6))
    features = 4 * 2 * (3 + 1)
    assert link_bytes(STEP, TRAFFIC) == max(features + (4 * 40 + 30 * 16) / 10, 50 * 16 / 10)
    back = SimpleNamespace(**{**vars(TRAFFIC), "written_back_rows": 500})
    assert link_bytes(STEP, back) == 800


def test_only_what_is_described_is_bounded():
    hardware = SimpleNamespace(device_flops=1e6, device_bandwidth=None, link_bandwidth=1e3, host_lookup_rate=20.0)
    bounds = step_ms(SimpleNamespace(hardware=hardware), STEP, TRAFFIC)
    assert bounds == {
        "arithmetic": pytest.approx(operations(STEP) / 1e3),
        "link": pytest.approx(link_bytes(STEP, TRAFFIC)),
        "host": pytest.approx(40 / 10 / 20 * 1e3),  # 40 lookups in 10 steps
    }
