"""Curves of a run from its lines of metrics, in order of the steps; thinned so that a page stays small."""

import itertools
from collections.abc import Sequence

from cachedlrm.report.metrics import MetricsRow
from cachedlrm.report.record import Report

Points = list[tuple[float, float]]
"""(x, y) in order of x."""

MOST_POINTS = 400


def curve(rows: Sequence[MetricsRow], key: str) -> Points:
    """A key of the lines over steps; lines without a value are left out."""
    return thin([(_step(row), value) for row in rows if (value := row.get(key)) is not None])


def changes(rows: Sequence[MetricsRow], key: str) -> Points:
    """The same for a key whose value repeats until it changes: the first line of each value."""
    points: Points = []
    for row in rows:
        value = row.get(key)
        if value is not None and (not points or points[-1][1] != value):
            points.append((_step(row), value))
    return thin(points)


def evaluations(report: Report, rows: Sequence[MetricsRow], key: str) -> Points:
    """A figure of the evaluations over their steps; of a run of an earlier version from its lines."""
    if not report.evaluations:
        return changes(rows, key)
    return thin([(one.step, value) for one in report.evaluations if (value := getattr(one, key)) is not None])


def per_step(rows: Sequence[MetricsRow], *keys: str) -> Points:
    """The sum of counts since the line before, divided by the steps since then."""
    points: Points = []
    before = 0.0
    for row in rows:
        step = _step(row)
        points.append((step, sum(row.get(key) or 0 for key in keys) / max(1.0, step - before)))
        before = step
    return thin(points)


def disk_bytes(rows: Sequence[MetricsRow]) -> int:
    """The largest size of the store on disk; 0 without one."""
    return int(max((row.get("disk_bytes") or 0 for row in rows), default=0))


def _step(row: MetricsRow) -> float:
    step = row["step"]
    assert step is not None
    return step


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points: the first, the last, and means of as many neighbours as it takes."""
    if len(points) <= most:
        return points
    inner, count = points[1:-1], most - 2
    bounds = [len(inner) * number // count for number in range(count + 1)]
    parts = [inner[start:end] for start, end in itertools.pairwise(bounds)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [points[0], *means, points[-1]]
