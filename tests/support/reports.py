"""A run at one moment, a finished run, and a check of pages."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

from cachedlrm.cache.counters import PHASES, CacheCounters
from cachedlrm.options.config import Options
from cachedlrm.report.environment import environment
from cachedlrm.report.metrics import MetricsRow, Snapshot, metrics_row
from cachedlrm.report.record import Report, ServedModel, TableReport, read_report, report_json
from cachedlrm.report.runs import Run
from cachedlrm.report.scores import Evaluated


def snapshot(**changes: object) -> Snapshot:
    """A run at step 610 of 1,000, where it was evaluated; ``auc`` is that of the evaluation."""
    if "evaluation" not in changes:
        auc = changes.pop("auc", 0.7886)
        changes["evaluation"] = None if auc is None else Evaluated(step=changes.get("step", 610), auc=auc)
    return replace(
        Snapshot(
            step=610, num_steps=1000, epoch=0, samples=1_249_280, elapsed_s=27.5, samples_per_s=45_312.0, eta_s=17.2,
            loss=0.46351, evaluation=None, best=None,
            cache=CacheCounters(1000, 900, 400, 300, 60, 40, 70, 70, 5120, 8960),
            recent=CacheCounters(100, 95, 40, 36, 2, 2, 10, 10, 256, 1280), recent_steps=2,
            phase_ms=dict(zip(PHASES, (3.1, 0.5, 0.4, 0.7, 20.0, 25.0, 3.5, 1.0), strict=True)),
            device_bytes=300 << 20, device_limit_bytes=4 << 30, host_bytes=900 << 20, host_limit_bytes=16 << 30,
            host_record_bytes=600 << 20, mapped_bytes=0, cache_slots=1_688_128, resident_slots=844_064,
        ),
        **changes,
    )  # fmt: skip


def served_model(
    accuracy: float, auc: float | None, loss: float | None, rate: float, embedding_bytes: int, mlp_bytes: int
) -> ServedModel:
    """A model that was served."""
    return ServedModel(
        accuracy=accuracy,
        auc=auc,
        loss=loss,
        samples_per_s=rate,
        embedding_bytes=embedding_bytes,
        mlp_bytes=mlp_bytes,
    )


TABLES = (
    TableReport("emb_l.0", 700, 500, 0.96, 200, 20),
    TableReport("emb_l.1.weight_q", 290, 400, 0.8125, 150, 38),
    TableReport("emb_l.1.weight_r", 10, 100, 0.95, 50, 2),
)
"""Those of a run with `COUNTERS`."""

COUNTERS = CacheCounters(1000, 900, 400, 300, 60, 40, 70, 70, 5120, 8960)
NO_STEP = {
    "steps": 0, "samples": 0, "samples_per_s": 0.0, "training_s": 0.0, "loss_last": None, "loss_mean": None,
    "auc": None, **CacheCounters().as_json(), "phase_ms": dict.fromkeys(PHASES, 0.0),
}  # fmt: skip
"""What changes in the report of a run that trained nothing."""


def report(**changes: object) -> Report:
    """A finished run of ten steps."""
    return replace(
        Report(
            steps=10, samples=1000, samples_per_s=500.0, training_s=2.0, loss_last=0.4, loss_mean=0.5, auc=0.75,
            table_rows=1000, cache_slots=50, temporary_slots=0, record_bytes=128, table_bytes=128_000,
            **COUNTERS.as_json(), moved_rows_min=None, tables=TABLES, device_peak_bytes=1000, device_limit_bytes=2000,
            device_bytes_breakdown={"slab": 600, "staging": 0, "working_set": 100, "dense": 100, "activations": 200},
            host_peak_bytes=10, host_limit_bytes=40, host_store_bytes=5, mapped_peak_bytes=1,
            phase_ms=snapshot().phase_ms, environment=environment("cpu", []),
        ),
        **changes,
    )  # fmt: skip


def lines(count: int, **changes: object) -> list[MetricsRow]:
    """Lines of metrics of a run whose loss falls; a snapshot every ten steps."""
    return [metrics_row(snapshot(step=10 * (i + 1), loss=0.7 - i / 500, **changes)) for i in range(count)]


def run_of(
    made: Report, rows: Sequence[MetricsRow] = (), options: Options | None = None, config: str = "[run]\nsteps = 10\n"
) -> Run:
    """A run as it is read from its directory."""
    return Run("run", read_report(report_json(made)), rows, options or Options(), config)


class Nesting(HTMLParser):
    """Checks that every element ends where it should, and collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/> stays open in HTML")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text: str) -> ElementTree.Element:
    """The page's content, after asserting that it is well-formed, alone and described."""
    nesting = Nesting()
    nesting.feed(text)
    nesting.close()
    assert nesting.open == []
    assert {"script", "link", "img", "iframe", "object", "form"}.isdisjoint(tag for tag, _ in nesting.seen)
    assert {"src", "href", "action", "style"}.isdisjoint(name for _, attributes in nesting.seen for name in attributes)
    assert not any(name.startswith("on") for _, attributes in nesting.seen for name in attributes)
    assert not re.search(r"url\(|@import", text.partition("</style>")[0])
    content = ElementTree.fromstring(re.search(r"<main>.*</main>", text, re.DOTALL)[0])
    for drawing in content.iter("svg"):
        if drawing.get("aria-hidden") is None:
            assert drawing.get("role") == "img"
            assert drawing.get("aria-label") == drawing.find("title").text
    for numbers in re.findall(r'(?: d| x| y|width|height|cx|cy)="([^"]*)"', text):
        assert not re.search("nan|inf", numbers)
    return content
