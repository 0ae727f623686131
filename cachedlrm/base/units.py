"""Values as people write them on a command line (sizes, numbers, lists, yes and no), and sizes and times in words."""

import math
import re
from fractions import Fraction
from typing import Literal

LARGEST = 2**63 - 1
"""The largest whole number of any option: what an int64 holds."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(text: str) -> int:
    """``2GiB``, ``500 MB``, ``1.5GiB`` or a plain number of bytes; a part of a byte is dropped.

    Raises:
        ValueError: not a size, or not from 1 to `LARGEST`.
    """
    match = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([a-z]*)", text.strip().lower())
    if match and match[2] in _UNITS:
        size = int(Fraction(match[1]) * _UNITS[match[2]])  # a float would round from 2**53 on
        if 1 <= size <= LARGEST and (match[2] or "." not in match[1]):
            return size
    raise ValueError(f'"{text}" is not a size such as 2GiB, 512MiB, 1GB or 1000000')


def format_bytes(num_bytes: int) -> str:
    """Bytes in binary units, rounded up so that the text, read as an option, is enough: 3.1 MiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{-(-num_bytes * 10 // size) / 10:.1f} {unit}"
    return f"{num_bytes} B"


def parse_budget(text: str) -> int | Literal["auto"]:
    """A size as `parse_bytes` takes it, or ``auto``.

    Raises:
        ValueError: neither.
    """
    if text.strip().lower() == "auto":
        return "auto"
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise ValueError(f"{error}, nor is it auto") from error


def parse_frequency(text: str) -> int | Literal["epoch"]:
    """A number of steps as `parse_whole` takes it, or ``epoch``.

    Raises:
        ValueError: neither.
    """
    if text.strip().lower() == "epoch":
        return "epoch"
    try:
        return parse_whole(text)
    except ValueError as error:
        raise ValueError(f"{error}, nor is it epoch") from error


def parse_whole(text: str) -> int:
    """A whole number in decimal digits.

    Raises:
        ValueError: not a whole number (3.5 is refused, not rounded), or larger than `LARGEST` either way.
    """
    if not re.fullmatch(r"[+-]?[0-9]+", text.strip()):
        raise ValueError(f'"{text}" is not a whole number')
    if len(text) > 40 or abs(int(text)) > LARGEST:  # int() refuses thousands of digits in words of its own
        raise ValueError(f'"{text[:40]}" is larger than {LARGEST}')
    return int(text)


def parse_sizes(text: str) -> tuple[int, ...]:
    """``512-256-1``: whole numbers from 1 on, joined by dashes.

    Raises:
        ValueError: anything else.
    """
    parts = text.split("-")
    if not all(re.fullmatch(r"[0-9]{1,19}", part) and 1 <= int(part) <= LARGEST for part in parts):
        raise ValueError(f'"{text}" is not whole numbers from 1 on, joined by dashes')
    return tuple(int(part) for part in parts)


def parse_weights(text: str) -> tuple[float, ...]:
    """``0.5-1.0``: at least two numbers from 0 on, joined by dashes.

    Raises:
        ValueError: anything else.
    """
    parts = text.split("-")
    if len(parts) < 2 or not all(re.fullmatch(r"[0-9]{1,19}(\.[0-9]*)?", part) for part in parts):
        raise ValueError(f'"{text}" is not two or more numbers, joined by dashes, such as 0.5-1.0')
    return tuple(map(float, parts))


def parse_ratios(text: str) -> tuple[float, ...]:
    """``0.01,0.02,0.05``: numbers above 0 and at most 1, joined by commas.

    Raises:
        ValueError: anything else.
    """
    parts = text.split(",")
    ratios = tuple(float(part) for part in parts if re.fullmatch(r"[0-9]{0,19}\.?[0-9]{1,19}", part.strip()))
    if len(ratios) < len(parts) or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f'"{text}" is not numbers above 0 and at most 1, joined by commas, such as 0.01,0.05')
    return ratios


def parse_switch(text: str) -> bool:
    """``True`` or ``False``.

    Raises:
        ValueError: anything else.
    """
    if text.lower() not in ("true", "false"):
        raise ValueError(f'"{text}" is neither True nor False')
    return text.lower() == "true"


def finite(value: float | None) -> float | None:
    """The value, or None for NaN and infinities, for which JSON has no number."""
    return value if value is not None and math.isfinite(value) else None


def format_seconds(seconds: float) -> str:
    """h:mm:ss; dashes if it is not known yet."""
    if not math.isfinite(seconds):
        return "-:--:--"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
