"""Curves of a run from its lines of metrics."""

from cachedlrm.report.curves import changes, curve, per_step, thin
from cachedlrm.report.metrics import MetricsRow


def test_curves_from_lines():
    rows: list[MetricsRow] = [
        {"step": 2, "loss": 1.0, "auc": None, "fetched_rows": 8},
        {"step": 4, "loss": None, "auc": 0.5, "fetched_rows": 6},
        {"step": 5, "loss": 0.5, "auc": 0.5, "fetched_rows": None},
        {"step": 9, "loss": 0.4, "auc": 0.6, "fetched_rows": 4, "first_touch_rows": 4},
    ]
    assert curve(rows, "loss") == [(2, 1.0), (5, 0.5), (9, 0.4)]
    assert changes(rows, "auc") == [(4, 0.5), (9, 0.6)]
    assert per_step(rows, "fetched_rows", "first_touch_rows") == [(2, 4.0), (4, 3.0), (5, 0.0), (9, 2.0)]


def test_thinning_keeps_the_ends_and_takes_means():
    points = [(float(x), float(x * x)) for x in range(8)]
    assert thin(points, 8) is points
    assert thin(points, 5) == [(0, 0), (1.5, 2.5), (3.5, 12.5), (5.5, 30.5), (7, 49)]
