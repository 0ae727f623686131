"""Ticks of an axis: round numbers, and the words for them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from cachedlrm.base.units import format_bytes


@dataclass(frozen=True)
class Unit:
    """The unit of an axis.

    Attributes:
        scales: (least, size, word), the smallest first; an axis whose greatest value is ``least`` or more counts in
            ``size``. At least one.
        say: one value in words.
    """

    scales: tuple[tuple[float, float, str], ...]
    say: Callable[[float], str]

    def scale(self, greatest: float) -> tuple[float, str]:
        """Size and word for values up to ``greatest``."""
        _, size, word = [scale for scale in self.scales if scale[0] <= greatest][-1]
        return size, word


def _say_number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.5g}"


NUMBER = Unit(((0.0, 1.0, ""), (1e4, 1e3, "k"), (1e6, 1e6, "M"), (1e9, 1e9, "G")), _say_number)
RATIO = Unit(((0.0, 0.01, "%"),), lambda value: f"{value:.2%}")
BYTES = Unit(
    (
        (0.0, 1.0, " B"),
        *((2.0**power, 2.0**power, word) for power, word in ((10, " KiB"), (20, " MiB"), (30, " GiB"), (40, " TiB"))),
    ),
    lambda value: format_bytes(round(value)),
)


@dataclass(frozen=True)
class Ticks:
    """Places on an axis, in order, and their labels."""

    places: tuple[float, ...]
    labels: tuple[str, ...]


def round_ticks(low: float, high: float, unit: Unit, most: int = 5, whole: bool = False) -> Ticks:
    """Round numbers that enclose ``low`` to ``high`` (Heckbert, "Nice numbers for graph labels", Graphics Gems, 1990).

    Args:
        low: finite.
        high: finite, not below ``low``.
        unit: of both.
        most: about so many ticks.
        whole: no fractions.
    """
    size, word = unit.scale(max(abs(low), abs(high)))
    low, high = _apart(low / size, high / size)
    step = _round_step((high - low) / (most - 1))
    if whole:
        step = max(step, 1 / size)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(first, last + 1)
    return Ticks(
        tuple(number * step * size for number in numbers),
        tuple(_label(number * step, decimals) + word if number else "0" for number in numbers),
    )


def _apart(low: float, high: float) -> tuple[float, float]:
    """The two, moved apart where nothing but rounding lies between them."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-100):
        return low, high
    if abs(low) < 1e-100:
        return 0.0, 1.0
    return low - abs(low) / 10, high + abs(high) / 10


def _label(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}" if decimals < 7 else f"{value:.6g}"


def _round_step(step: float) -> float:
    """The least of 1, 2, 5 and 10 times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= step * (1 - 1e-9))


def log_ticks(low: float, high: float, unit: Unit) -> Ticks:
    """Powers of ten from ``low`` to ``high``, both above 0; with 2 and 5 times them where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        places = tuple(n * 10.0**power for power in powers for n in factors if low <= n * 10.0**power <= high)
        if len(places) > 2:
            break
    if len(places) < 2:
        places = (low, high)
    labels = []
    for place in places:
        size, word = unit.scale(place)
        labels.append(f"{place / size:.4g}{word}")
    return Ticks(places, tuple(labels))
