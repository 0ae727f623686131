"""Charts as SVG elements as wide as a phone; wide screens show several in a row, so that text keeps its size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from cachedlrm.report.axes import NUMBER, Ticks, Unit, log_ticks, round_ticks
from cachedlrm.report.curves import Points
from cachedlrm.report.document import element

WIDTH, HEIGHT = 350, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 24, 36
_COLOURS, _DASHES = 6, 4
_BAR_ROW = 34


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: in the legend.
        points: finite numbers.
    """

    name: str
    points: Points


@dataclass(frozen=True)
class Axis:
    """How one axis reads.

    Attributes:
        label: what it shows, with its unit.
        unit: of its numbers.
        from_zero: whether it begins at 0 and not near the least value.
        logarithmic: whether equal factors are equally far apart; values must be above 0.
        whole: whether there are no fractions.
    """

    label: str
    unit: Unit = NUMBER
    from_zero: bool = False
    logarithmic: bool = False
    whole: bool = False


STEPS = Axis("step", from_zero=True, whole=True)


def line_chart(
    title: str,
    series: Sequence[Series],
    y_axis: Axis,
    *,
    x_axis: Axis = STEPS,
    mark: tuple[float, float] | None = None,
    dots: bool = False,
) -> Element:
    """Curves, with their legend if there are several; a note where there is no value.

    Args:
        title: above it.
        series: one without points is left out; the others keep their colours.
        y_axis: upwards.
        x_axis: to the right.
        mark: a point to ring.
        dots: show the points too.
    """
    drawn = [(number, one) for number, one in enumerate(series) if one.points]
    if not drawn:
        return element("figure", element("figcaption", title), element("p", "No value.", class_="note"))
    points = [point for _, one in drawn for point in one.points] + ([mark] if mark else [])
    x_place = _XPlace([x for x, _ in points], x_axis)
    ys = [y for _, y in points]
    y_ticks = round_ticks(min(0.0, *ys) if y_axis.from_zero else min(ys), max(ys), y_axis.unit, whole=y_axis.whole)
    low, high = y_ticks.places[0], y_ticks.places[-1]

    def y_place(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    drawing = [
        element("text", y_axis.label, x=4, y=13),
        element("text", x_axis.label, x=WIDTH - _RIGHT, y=HEIGHT - 4, class_="end"),
        *_horizontal_grid(y_ticks, [y_place(place) for place in y_ticks.places]),
        *_vertical_grid(x_place),
    ]
    for number, one in drawn:
        places = [(x_place(x), y_place(y)) for x, y in one.points]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        drawing.append(element("path", d=path, class_=f"curve {_look(number)}"))
        if dots or len(places) == 1:
            drawing += [element("circle", cx=x, cy=y, r=2.6, class_=f"f{number % _COLOURS}") for x, y in places]
    if mark:
        drawing.append(element("circle", cx=x_place(mark[0]), cy=y_place(mark[1]), r=5, class_="mark"))
    said = "; ".join(_said(one, y_axis.unit) for _, one in drawn)
    caption = element("figcaption", title, *([element("span", said)] if len(series) == 1 else []))
    figure = element("figure", caption, _drawing(HEIGHT, f"{title}, {y_axis.label} by {x_axis.label}: {said}", drawing))
    if len(series) > 1:
        figure.append(_legend([(number, _said(one, y_axis.unit)) for number, one in drawn]))
    return figure


def _said(series: Series, unit: Unit) -> str:
    first, last = series.points[0][1], series.points[-1][1]
    course = unit.say(last) if len(series.points) == 1 else f"{unit.say(first)} to {unit.say(last)}"
    return f"{series.name}: {course}" if series.name else course


def _look(number: int) -> str:
    return f"c{number % _COLOURS} d{number % _DASHES}"


def _legend(names: Sequence[tuple[int, str]]) -> Element:
    """Colours with their names; dashes tell them apart too."""
    return element(
        "ul",
        *(
            element(
                "li",
                element("svg", element("path", d="M0 4H26", class_=f"curve {_look(number)}"), viewBox="0 0 26 8",
                        aria_hidden="true"),
                name,
            )
            for number, name in names
        ),
        class_="legend",
    )  # fmt: skip


class _XPlace:
    """Places of values along the x axis, which ends at the least and the greatest of them."""

    def __init__(self, xs: Sequence[float], axis: Axis) -> None:
        self._axis = axis
        low, high = 0.0 if axis.from_zero else min(xs), max(xs)
        if not high > low:
            low, high = (low / 2, high * 2) if axis.logarithmic else (low - 1, high + 1)
        self._low, self._high = self._scaled(low), self._scaled(high)
        if axis.logarithmic:
            ticks = log_ticks(low, high, axis.unit)
        else:
            ticks = round_ticks(low, high, axis.unit, most=6, whole=axis.whole)
        inside = [
            (place, label) for place, label in zip(ticks.places, ticks.labels, strict=True) if low <= place <= high
        ]
        self.ticks = [(self(place), label) for place, label in inside]

    def _scaled(self, x: float) -> float:
        return math.log10(x) if self._axis.logarithmic else x

    def __call__(self, x: float) -> float:
        share = (self._scaled(x) - self._low) / (self._high - self._low)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _horizontal_grid(ticks: Ticks, places: Sequence[float]) -> list[Element]:
    lines = [element("path", d=f"M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}", class_="grid") for y in places]
    labels = zip(ticks.labels, places, strict=True)
    return [*lines, *(element("text", label, x=_LEFT - 5, y=y + 4, class_="end") for label, y in labels)]


def _vertical_grid(x_place: _XPlace) -> list[Element]:
    bottom = HEIGHT - _BOTTOM
    drawn = [element("path", d=f"M{_LEFT} {bottom}H{WIDTH - _RIGHT}", class_="axis")]
    for x, label in x_place.ticks:
        drawn.append(element("path", d=f"M{x:.1f} {bottom}v4", class_="axis"))
        drawn.append(element("text", label, x=x, y=bottom + 16, class_="middle"))
    return drawn


@dataclass(frozen=True)
class Bar:
    """A line of a bar chart.

    Attributes:
        label: left, above the bar.
        value: its length; below 0 counts as 0.
        words: right, above the bar.
        colour: number of its colour.
    """

    label: str
    value: float
    words: str
    colour: int = 0


def bar_chart(title: str, subtitle: str, bars: Sequence[Bar], longest: float | None = None) -> Element:
    """Horizontal bars from 0 to ``longest``, which is the greatest value unless it is given."""
    full = longest if longest is not None else max((bar.value for bar in bars), default=0.0)
    drawing: list[Element] = []
    for number, bar in enumerate(bars):
        top = number * _BAR_ROW
        share = min(1.0, max(0.0, bar.value / full)) if full > 0 else 0.0
        drawing += [
            element("text", bar.label, x=0, y=top + 13, class_="strong"),
            element("text", bar.words, x=WIDTH, y=top + 13, class_="end"),
            element("rect", x=0, y=top + 18, width=WIDTH, height=9, rx=2, class_="track"),
            element("rect", x=0, y=top + 18, width=share * WIDTH, height=9, rx=2, class_=f"f{bar.colour % _COLOURS}"),
        ]
    caption = element("figcaption", title, *([element("span", subtitle)] if subtitle else []))
    said = "; ".join(f"{bar.label}: {bar.words}" for bar in bars)
    return element("figure", caption, _drawing(len(bars) * _BAR_ROW, f"{title}: {said}", drawing))


def share_bar(share: float, colour: int = 0) -> Element:
    """A bar for the cell of a table, beside its number."""
    return element(
        "svg",
        element("rect", x=0, y=0, width=100, height=6, class_="track"),
        element("rect", x=0, y=0, width=100 * min(1.0, max(0.0, share)), height=6, class_=f"f{colour % _COLOURS}"),
        viewBox="0 0 100 6", preserveAspectRatio="none", class_="bar", aria_hidden="true",
    )  # fmt: skip


def _drawing(height: int, description: str, parts: Sequence[Element]) -> Element:
    return element(
        "svg", element("title", description), *parts, viewBox=f"0 0 {WIDTH} {height}", role="img",
        aria_label=description,
    )  # fmt: skip
