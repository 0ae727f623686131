"""report.html: one file that needs nothing else, whatever was measured and whatever things are called."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from cachedlrm.cache.counters import CacheCounters, TableCounters
from cachedlrm.options.config import DataOptions, Options
from cachedlrm.report.axes import BYTES, NUMBER, RATIO, log_ticks, round_ticks
from cachedlrm.report.charts import Axis, Bar, Series, bar_chart, line_chart
from cachedlrm.report.curves import changes, curve, per_step, thin
from cachedlrm.report.figures import figures
from cachedlrm.report.html import run_page
from cachedlrm.report.inference_report import InferenceReport, ServedModel
from cachedlrm.report.markdown import report_markdown
from cachedlrm.report.metrics import MetricsRow, metrics_row
from cachedlrm.report.runs import Run
from cachedlrm.report.style import STYLE
from cachedlrm.report.totals import RunTotals, build_report
from cachedlrm.report.typed_report import parse_report
from support.reports import checked, snapshot, totals

HOSTILE = "</title><script src=\"http://x\">alert('1')</script>&amp;\x1b[2J"
RICH = {
    "miss_ratio_curve": [
        {"cache_slots": slots, "hit_ratio": ratio, "moved_bytes_per_step": moved}
        for slots, ratio, moved in ((10, 0.5, 4096.0), (100, 0.9, 1024), (1000, 0.95, 0))
    ],
    "prediction": {
        "hit_ratio": 0.895, "fetched_rows_per_step": 5.0, "first_touch_rows_per_step": 6.0,
        "moved_bytes_per_step": 1408.0, "samples_per_s_at_most": 1000.0, "sampled_batches": 2, "batches": 10,
    },
}  # fmt: skip


def lines(count: int, **changed: object) -> list[MetricsRow]:
    return [metrics_row(snapshot(step=10 * (i + 1), loss=0.7 - i / 500, **changed)) for i in range(count)]


def as_run(made: RunTotals, rows: Sequence[MetricsRow], config: str = "[run]\nsteps = 10\n", **extra: object) -> Run:
    report = {**build_report(made, []), **extra}
    return Run("run", parse_report(json.loads(json.dumps(report))), rows, made.options, config)


def page(made: RunTotals, count: int = 3, **extra: object) -> str:
    return run_page(as_run(made, lines(count), **extra))


def headings(content: ElementTree.Element) -> list[str]:
    return [heading.text for heading in content.iter("h2")]


ALWAYS = ["Summary", "Is it learning?", "Is the cache working?", "Where does the time go?", "Does memory hold?",
          "Which table hurts?", "In figures", "To repeat it"]  # fmt: skip


def test_a_page_needs_nothing_else():
    text = page(totals())
    content = checked(text)
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert headings(content) == ALWAYS
    assert "".join(content.itertext()).count("AUC of 0.7500") == 1
    assert len(list(content.iter("figure"))) == 11


def test_whatever_things_are_called_is_text():
    tables = tuple(replace(table, name=HOSTILE) for table in totals().tables)
    options = replace(Options(), data=DataOptions(data=HOSTILE))
    made = totals(tables=tables, options=options, device_name=HOSTILE, device_bytes_breakdown={HOSTILE: 1})
    text = run_page(replace(as_run(made, lines(3), HOSTILE), name=HOSTILE))
    content = checked(text)
    assert "<script" not in text
    assert "\x1b" not in text
    words = "".join(content.itertext())
    assert words.count("<script src=\"http://x\">alert('1')</script>&amp;�[2J") >= 6


def test_tiles_say_which_table_misses_and_whether_the_device_is_nearly_full():
    for peak, full in ((1800, ""), (1801, ": nearly full")):
        content = checked(page(totals(device_peak_bytes=peak)))
        tiles = {div[0].text: (div[1].text, div[2].text) for div in content.iter("div") if div.get("class") == "tile"}
        assert tiles["Table that misses most"] == ("emb_l.1.weight_q", "75% of all misses")
        assert tiles["Device memory"] == ("1.8 KiB", f"of 2.0 KiB{full}")


def test_the_curve_of_sizes_and_the_prediction_are_shown_where_they_are():
    nothing = {"cache_slots": 0, "hit_ratio": 0.0, "moved_bytes_per_step": 0}  # has no place on a logarithmic axis
    content = checked(page(totals(), **RICH | {"miss_ratio_curve": [nothing, *RICH["miss_ratio_curve"]]}))
    assert headings(content)[6:8] == ["Was the cache the right size?", "Was it foreseen?"]
    rings = [circle for circle in content.iter("circle") if circle.get("class") == "mark"]
    assert len(rings) == 2
    # 50 rows lie on a logarithmic axis from 10 to 1000, 286 wide; 0.9 on one from 0.4 to 1, 150 high.
    assert float(rings[0].get("cx")) == pytest.approx(50 + 286 * 0.349485, abs=1e-3)
    assert float(rings[0].get("cy")) == pytest.approx(174 - 150 * 5 / 6, abs=1e-3)
    rows = ["|".join("".join(cell.itertext()) for cell in row) for row in content.iter("tr")]
    for row in ("hit ratio|89.50%|90.00%|+0.50 points", "rows fetched a step|5|4|-20.0%",
                "bytes moved a step|1.4 KiB|1.4 KiB|+0.0%",
                "samples a second, at most|1,000|500|50.0% of it"):  # fmt: skip
        assert row in rows


@pytest.mark.parametrize("count", [0, 1, 2, 401])
def test_a_page_of_few_and_of_many_lines(count):
    content = checked(page(totals(auc=None), count))
    assert headings(content) == ALWAYS
    assert "".join(content.itertext()).count("No value.") == (6 if count == 0 else 0)
    if count == 1:
        circles = [circle for circle in content.iter("circle") if circle.get("class") != "mark"]
        assert len(circles) == 11  # every curve is a point


def test_many_lines_make_a_small_page():
    rows = [metrics_row(snapshot(step=1))] * 20_000
    rows = [{**row, "step": step} for step, row in enumerate(rows, 1)]
    text = run_page(as_run(totals(), rows))
    assert len(text) < 150_000
    drawn = [element.get("d") for element in checked(text).iter("path")]
    assert max(path.count("L") for path in drawn) == 399


def test_a_run_without_a_step_and_one_without_values():
    nothing = totals(
        steps=0, samples=0, samples_per_s=0.0, training_s=0.0, loss_last=None, loss_mean=None, auc=None,
        counters=CacheCounters(), tables=tuple(TableCounters(t.name, t.rows, 0, 0, 0, 0) for t in totals().tables),
        phase_ms=dict.fromkeys(snapshot().phase_ms, 0.0),
    )  # fmt: skip
    content = checked(page(nothing, 0))
    assert headings(content) == ["Summary", "Does memory hold?", "In figures", "To repeat it"]
    assert "No step was trained" in "".join(content.itertext())
    bare = [{"step": 1, "loss": None}, {"step": 2}]
    assert "No value." in "".join(checked(run_page(as_run(totals(), bare))).itertext())


def test_a_run_that_served_a_model():
    before = ServedModel(0.8, None, 0.5, 1000.0, 4096, 512)
    inference = InferenceReport(77, 8, 4, before, replace(before, loss=float("nan"), auc=0.75))
    made = totals(steps=0, inference=inference)
    assert figures(as_run(made, []))["rows kept on the device"] == "-"
    content = checked(page(made, 0))
    assert headings(content) == ["Held-out samples", "Does memory hold?", "To repeat it"]
    assert "77 held-out samples, 1,000 samples/s, accuracy 80.000%, AUC 0.7500" in "".join(content.itertext())


def test_tables_beyond_the_first_unfold():
    many = tuple(TableCounters(f"emb_l.{number}", 10, 10, 10 - number % 10, 5, 5) for number in range(60))
    content = checked(page(totals(tables=many)))
    (folded,) = content.iter("details")
    assert folded.find("summary").text == "34 more tables"
    names = ["".join(row[0].itertext()) for row in content.iter("tr") if "emb_l." in "".join(row[0].itertext())]
    assert names[0] == "emb_l.9"
    assert len(names) == len(set(names)) == 60


def with_options(store: str = "host", prefetch_depth: int = 2) -> Options:
    options = Options()
    store_options, cache = replace(options.store, store=store), replace(options.cache, prefetch_depth=prefetch_depth)
    return replace(options, store=store_options, cache=cache)


def test_what_runs_beside_training_is_apart():
    alone, beside = (page(totals(options=with_options(prefetch_depth=depth))) for depth in (0, 2))
    assert "the prefetch thread" not in alone
    assert "Beside it: the prefetch thread" in beside


@pytest.mark.parametrize(("depth", "waited"), [(2, "0.2%"), (0, "2.4%")])
def test_waiting_is_the_share_of_a_step_that_the_bars_show(depth, waited):
    content = checked(page(totals(options=with_options(prefetch_depth=depth))))
    tiles = {div[0].text: div[1].text for div in content.iter("div") if div.get("class") == "tile"}
    assert tiles["Waiting for rows"] == waited
    texts = [text.text for text in content.iter("text")]
    shares = [texts[texts.index(name) + 1] for name in ("wait", "plan", "evict", "admit")]
    assert shares == ["0.500 ms, 0.2%", "3.100 ms, 1.6%", "0.400 ms, 0.2%", "0.700 ms, 0.3%"]
    steps = next(figure for figure in content.iter("figure") if figure[0].text == "A step of the training thread")
    waiting = [bar.get("class") for bar in steps.iter("rect")].count("f1")
    assert waiting == (4 if depth == 0 else 1)
    assert f"training waited {4.7 if depth == 0 else 0.5:.2f} ms a step" in "".join(content.itertext())


@pytest.mark.parametrize(("store", "colour"), [("host", "f4"), ("lmdb", "f0")])
def test_records_are_held_against_their_budget_and_the_process_is_apart(store, colour):
    made = totals(
        options=with_options(store), host_peak_bytes=900 << 20, host_limit_bytes=1 << 20, host_store_bytes=1000 << 10
    )
    rows = [{**row, "disk_bytes": size << 20} for row, size in zip(lines(3), (2, 5, 4), strict=True)]
    limits, _, below = list(checked(run_page(as_run(made, rows))).iter("figure"))[-3:]
    assert [text.text for text in limits.iter("text")] == [
        "device", "1000 B of 2.0 KiB, 50.0%", "records on the host", "1000.0 KiB of 1.0 MiB, 97.7%"
    ]  # fmt: skip
    assert [bar.get("class") for bar in limits.iter("rect")][1::2] == ["f0", colour]
    texts = [text.text for text in below.iter("text")]
    assert dict(zip(texts[::2], texts[1::2], strict=True)) == {
        "all tables with optimizer state": "125.0 KiB", "records on the host": "1000.0 KiB", "store on disk": "5.0 MiB",
        "the process, without mapped pages": "900.0 MiB", "its mapped pages": "1 B",
    }  # fmt: skip
    text = report_markdown(made, build_report(made, []), rows, "")
    for line in ("| host: records | 1000.0 KiB |", "| host: budget of records or free memory | 1.0 MiB |",
                 "| disk: peak of the store's file | 5.0 MiB |"):  # fmt: skip
        assert line in text
    assert "disk" not in report_markdown(made, build_report(made, []), lines(1), "")


FOREIGN = (None, -1, 1 << 70, float("nan"), "x", True, [1], {"a": "b"}, [{"name": "x"}], 0, 1e18)


@pytest.mark.parametrize("key", [*build_report(totals(), []), "inference"])
def test_foreign_values_are_refused_by_name(key):
    report, refusals = build_report(totals(), []), []
    for value in FOREIGN:
        try:
            parse_report({**report, key: value})
        except ValueError as error:
            refusals.append(str(error))
    assert refusals
    assert all(refusal.startswith(key) for refusal in refusals), refusals
    if key not in ("accuracy", "host_limit_bytes", "inference", *RICH, "tables"):
        with pytest.raises(ValueError, match=f"{key} is missing"):
            parse_report({name: value for name, value in report.items() if name != key})


@pytest.mark.parametrize("value", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_values_that_are_not_refused_are_shown(value):
    report = build_report(totals(), []) | RICH
    report["tables"][0]["rows"] = 0
    for key in [*report, "inference"]:
        try:
            parse_report(report | {key: value})
        except ValueError:
            continue
        if key != "steps":  # without steps nothing is shown
            report[key] = value
    checked(run_page(Run("run", parse_report(report), lines(2), Options(), "")))


@pytest.mark.parametrize(("key", "value"), [("hit_ratio", True), ("steps", 1.0), ("steps", False), ("loss_mean", "1")])
def test_a_value_of_another_type_is_none(key, value):
    with pytest.raises(ValueError, match=f"^{key} is not a"):
        parse_report({**build_report(totals(), []), key: value})


def test_a_report_comes_back_with_its_types():
    made = totals(tables=(TableCounters("emb_l.0", 3, 0, 0, 0, 0), *totals().tables[1:]))
    report = parse_report(json.loads(json.dumps(build_report(made, []))))
    assert report.counters == made.counters
    assert report.table_counters == made.tables


# --- charts


def test_points_of_a_curve_are_where_they_should_be():
    chart = line_chart("t", [Series("", [(0, 0.0), (10, 0.5), (40, 1.0)])], Axis("y"))
    (path,) = [path.get("d") for path in chart.iter("path") if "curve" in path.get("class")]
    assert path == "M50.0 174.0L121.5 99.0L336.0 24.0"
    labels = [text.text for text in chart.iter("text")]
    assert labels[:2] == ["y", "step"]
    assert labels[2:] == ["0", "0.5", "1.0", "0", "10", "20", "30", "40"]
    assert chart.find("svg").get("aria-label") == "t, y by step: 0 to 1"


def test_several_curves_have_a_legend_and_dashes():
    chart = line_chart("t", [Series(name, [(1, 2), (2, 3)]) for name in "abc"] + [Series("d", [])], Axis("y"))
    assert [item[0].tail for item in chart.iter("li")] == ["a: 2 to 3", "b: 2 to 3", "c: 2 to 3"]
    looks = [path.get("class") for path in chart.iter("path") if "curve" in path.get("class")]
    assert looks == [*(f"curve c{n} d{n}" for n in range(3))] * 2


def test_a_run_keeps_its_colour_where_another_has_no_values():
    chart = line_chart("t", [Series("a", []), Series("b", [(1, 2), (2, 3)])], Axis("y"))
    looks = [path.get("class") for path in chart.iter("path") if "curve" in path.get("class")]
    assert looks == ["curve c1 d1"] * 2
    assert [item[0].tail for item in chart.iter("li")] == ["b: 2 to 3"]


def test_bars_are_shares_of_the_longest():
    chart = bar_chart("t", "", [Bar("a", 2.0, "2"), Bar("b", 1.0, "1"), Bar("c", -1.0, "?")])
    widths = [rect.get("width") for rect in chart.iter("rect")]
    assert widths == ["350", "350", "350", "175", "350", "0"]
    assert [rect.get("width") for rect in bar_chart("t", "", [Bar("a", 9.0, "9")], 2.0).iter("rect")] == ["350", "350"]
    assert bar_chart("t", "", [Bar("a", 0.0, "0")]).find("svg") is not None


@pytest.mark.parametrize(
    ("low", "high", "unit", "labels"),
    [
        (0.43, 0.98, NUMBER, ["0.4", "0.6", "0.8", "1.0"]),
        (0, 98, NUMBER, ["0", "50", "100"]),
        (0, 23_400, NUMBER, ["0", "10k", "20k", "30k"]),
        (0, 7_500_000, NUMBER, ["0", "2M", "4M", "6M", "8M"]),
        (0.9, 0.92, RATIO, ["90.0%", "90.5%", "91.0%", "91.5%", "92.0%"]),
        (0, 3 << 20, BYTES, ["0", "1 MiB", "2 MiB", "3 MiB"]),
        (0, 0, NUMBER, ["0", "0.5", "1.0"]),
        (5, 5, NUMBER, ["4.5", "5.0", "5.5"]),
        (-3, 2, NUMBER, ["-4", "-2", "0", "2"]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, unit, labels):
    ticks = round_ticks(low, high, unit)
    assert list(ticks.labels) == labels
    assert ticks.places[0] <= low
    assert ticks.places[-1] >= high


@pytest.mark.parametrize("low", [0.0, 5e-324, 1e-300, -1e18, 1e18, 3.0])
@pytest.mark.parametrize("width", [0.0, 5e-324, 1e-9, 1.0, 1e18])
def test_ticks_of_odd_values(low, width):
    for unit in (NUMBER, RATIO, BYTES):
        ticks = round_ticks(low, low + width, unit)
        assert 2 <= len(ticks.places) <= 9
        assert all(a < b for a, b in itertools.pairwise(ticks.places))
        assert max(map(len, ticks.labels)) <= 40


def test_ticks_of_a_logarithmic_axis():
    assert log_ticks(10, 2_000_000, NUMBER).labels == ("10", "100", "1000", "10k", "100k", "1M")
    assert log_ticks(30, 300, NUMBER).labels == ("50", "100", "200")
    assert log_ticks(30, 31, NUMBER).labels == ("30", "31")


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


# --- colours


def luminance(colour: str) -> float:
    """Of "#rrggbb", as WCAG 2.1 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out(scheme):
    colours = dict(re.findall(r"--(\w+): (#\w{6});", STYLE.split(":root {")[scheme + 1]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "card"):
        assert min(contrast(text, ground) for text in ("text", "muted")) >= 4.5
        assert min(contrast(f"c{number}", ground) for number in range(6)) >= 3
