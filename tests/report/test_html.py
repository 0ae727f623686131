"""report.html: one file that needs nothing else, whatever was measured and whatever things are called."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from cachedlrm.options.config import DataOptions, Options
from cachedlrm.plan.prediction import PredictedCache, PredictedRun
from cachedlrm.report.environment import environment
from cachedlrm.report.html import run_page
from cachedlrm.report.metrics import metrics_row
from cachedlrm.report.record import InferenceReport, Report, TableReport
from support.reports import NO_STEP, TABLES, checked, lines, report, run_of, served_model, snapshot

HOSTILE = "</title><script src=\"http://x\">alert('1')</script>&amp;\x1b[2J"
RICH = {
    "miss_ratio_curve": (
        PredictedCache(10, 0.5, 4096.0), PredictedCache(100, 0.9, 1024.0), PredictedCache(1000, 0.95, 0.0)
    ),
    "prediction": PredictedRun(
        hit_ratio=0.895, fetched_rows_per_step=5.0, first_touch_rows_per_step=6.0, moved_bytes_per_step=1408.0,
        samples_per_s_at_most=1000.0, sampled_batches=2, batches=10,
    ),
}  # fmt: skip


def page(made: Report, count: int = 3, options: Options | None = None) -> str:
    return run_page(run_of(made, lines(count), options))


def headings(content: ElementTree.Element) -> list[str]:
    return [heading.text for heading in content.iter("h2")]


ALWAYS = ["Summary", "Is it learning?", "Is the cache working?", "Where does the time go?", "Does memory hold?",
          "Which table hurts?", "In figures", "To repeat it"]  # fmt: skip


def test_a_page_needs_nothing_else():
    text = page(report())
    content = checked(text)
    assert "http" not in text.replace("http-equiv", "")
    assert "<script" not in text
    assert headings(content) == ALWAYS
    assert "".join(content.itertext()).count("On held-out samples: AUC 0.7500. Its tables") == 1
    assert len(list(content.iter("figure"))) == 11


def test_whatever_things_are_called_is_text():
    tables = tuple(replace(table, name=HOSTILE) for table in report().tables)
    options = replace(Options(), data=DataOptions(data=HOSTILE))
    made = report(tables=tables, environment=environment(HOSTILE, []), device_bytes_breakdown={HOSTILE: 1})
    text = run_page(replace(run_of(made, lines(3), options, HOSTILE), name=HOSTILE))
    content = checked(text)
    assert "<script" not in text
    assert "\x1b" not in text
    words = "".join(content.itertext())
    assert words.count("<script src=\"http://x\">alert('1')</script>&amp;�[2J") >= 6


def test_tiles_say_which_table_misses_and_whether_the_device_is_nearly_full():
    for peak, full in ((1800, ""), (1801, ": nearly full")):
        content = checked(page(report(device_peak_bytes=peak)))
        tiles = {div[0].text: (div[1].text, div[2].text) for div in content.iter("div") if div.get("class") == "tile"}
        assert tiles["Table that misses most"] == ("emb_l.1.weight_q", "75% of all misses")
        assert tiles["Device memory"] == ("1.8 KiB", f"of 2.0 KiB{full}")


def test_the_curve_of_sizes_and_the_prediction_are_shown_where_they_are():
    nothing = PredictedCache(0, 0.0, 0.0)  # has no place on a logarithmic axis
    content = checked(page(report(**RICH | {"miss_ratio_curve": (nothing, *RICH["miss_ratio_curve"])})))
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
    content = checked(page(report(auc=None), count))
    assert headings(content) == ALWAYS
    assert "".join(content.itertext()).count("No value.") == (6 if count == 0 else 0)
    if count == 1:
        circles = [circle for circle in content.iter("circle") if circle.get("class") != "mark"]
        assert len(circles) == 11  # every curve is a point


def test_many_lines_make_a_small_page():
    rows = [metrics_row(snapshot(step=1))] * 20_000
    rows = [{**row, "step": step} for step, row in enumerate(rows, 1)]
    text = run_page(run_of(report(), rows))
    assert len(text) < 150_000
    drawn = [element.get("d") for element in checked(text).iter("path")]
    assert max(path.count("L") for path in drawn) == 399


def test_a_run_without_a_step_and_one_without_values():
    tables = tuple(TableReport(table.name, table.rows, 0, None, 0, 0) for table in TABLES)
    nothing = report(**NO_STEP, tables=tables)
    content = checked(page(nothing, 0))
    assert headings(content) == ["Summary", "Does memory hold?", "In figures", "To repeat it"]
    assert "No step was trained" in "".join(content.itertext())
    bare = [{"step": 1, "loss": None}, {"step": 2}]
    assert "No value." in "".join(checked(run_page(run_of(report(), bare))).itertext())


def test_a_run_that_served_a_model():
    before = served_model(0.8, None, 0.5, 1000.0, 4096, 512)
    made = report(steps=0, inference=InferenceReport(77, 8, 4, before, replace(before, loss=None, auc=0.75)))
    content = checked(page(made, 0))
    assert headings(content) == ["Held-out samples", "Does memory hold?", "To repeat it"]
    assert "77 held-out samples, 1,000 samples/s, accuracy 80.000%, AUC 0.7500, loss -" in "".join(content.itertext())


def test_tables_beyond_the_first_unfold():
    many = tuple(TableReport(f"emb_l.{number}", 10, 10, 1 - number % 10 / 10, 5, 5) for number in range(60))
    content = checked(page(report(tables=many)))
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
    alone, beside = (page(report(), options=with_options(prefetch_depth=depth)) for depth in (0, 2))
    assert "the prefetch thread" not in alone
    assert "Beside it: the prefetch thread" in beside


@pytest.mark.parametrize(("depth", "waited"), [(2, "0.2%"), (0, "2.4%")])
def test_waiting_is_the_share_of_a_step_that_the_bars_show(depth, waited):
    content = checked(page(report(), options=with_options(prefetch_depth=depth)))
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
    made = report(host_peak_bytes=900 << 20, host_limit_bytes=1 << 20, host_store_bytes=1000 << 10)
    rows = [{**row, "disk_bytes": size << 20} for row, size in zip(lines(3), (2, 5, 4), strict=True)]
    limits, _, below = list(checked(run_page(run_of(made, rows, with_options(store)))).iter("figure"))[-3:]
    assert [text.text for text in limits.iter("text")] == [
        "device", "1000 B of 2.0 KiB, 50.0%", "records on the host", "1000.0 KiB of 1.0 MiB, 97.7%"
    ]  # fmt: skip
    assert [bar.get("class") for bar in limits.iter("rect")][1::2] == ["f0", colour]
    texts = [text.text for text in below.iter("text")]
    assert dict(zip(texts[::2], texts[1::2], strict=True)) == {
        "all tables with optimizer state": "125.0 KiB", "records on the host": "1000.0 KiB", "store on disk": "5.0 MiB",
        "the process, without mapped pages": "900.0 MiB", "its mapped pages": "1 B",
    }  # fmt: skip


@pytest.mark.parametrize("value", [-1.0, 0, 1e18, 1e300])
def test_odd_numbers_of_another_program_are_drawn(value):
    odd = dict.fromkeys(("training_s", "hit_ratio", "unique_hit_ratio", "samples_per_s", "loss_mean", "auc"), value)
    made = report(**odd, **RICH, phase_ms=dict.fromkeys(report().phase_ms, value))
    checked(page(replace(made, tables=(replace(TABLES[0], rows=0), *TABLES[1:]))))


def luminance(colour: str) -> float:
    """Of "#rrggbb", as WCAG 2.1 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out(scheme):
    colours = dict(re.findall(r"--(\w+): (#\w{6});", page(report()).split(":root {")[scheme + 1]))

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "card"):
        assert min(contrast(text, ground) for text in ("text", "muted")) >= 4.5
        assert min(contrast(f"c{number}", ground) for number in range(6)) >= 3
