"""Charts: where points and bars are, and what tells curves apart."""

from cachedlrm.report.charts import Axis, Bar, Series, bar_chart, line_chart


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
