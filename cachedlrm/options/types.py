"""Types of options: how a value on a command line or in a profile is read, and what it may be."""

import math
from collections.abc import Callable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import cyclopts
from cyclopts import Group, Parameter

from cachedlrm.base.units import (
    LARGEST,
    parse_budget,
    parse_bytes,
    parse_frequency,
    parse_ratios,
    parse_sizes,
    parse_switch,
    parse_weights,
    parse_whole,
)
from cachedlrm.store.records import LEAST_EPS


def _converter(parse: Callable[[str], Any]) -> Callable[[type, Sequence[cyclopts.Token]], Any]:
    def convert(_: type, tokens: Sequence[cyclopts.Token]) -> Any:
        if len(tokens) > 1:  # cyclopts refuses this itself, but not for tuples
            raise ValueError(f"{tokens[-1].keyword} is given more than once")
        return parse(tokens[0].value)

    return convert


def _mlp_bot(text: str) -> tuple[int, ...]:
    no_dense = text.startswith("0-")  # of data without dense features
    sizes = (0, *parse_sizes(text[2:])) if no_dense else parse_sizes(text)
    if len(sizes) < 2:
        raise ValueError(f'"{text}" needs at least two sizes: the dense features and the embedding dimension')
    return sizes


def _mlp_top(text: str) -> tuple[int, ...]:
    if (sizes := parse_sizes(text))[-1] != 1:
        raise ValueError(f'"{text}" must end in 1, one prediction a sample')
    return sizes


def _path(text: str) -> Path:
    if not text:  # usually a shell variable that is not set; Path would make "." of it
        raise ValueError("needs a value, not an empty one")
    return Path(text)


def _must_be(allowed: str, test: Callable[[Any], bool]) -> Parameter:
    def check(_: type, value: Any) -> None:
        if value is not None and not test(value):
            raise ValueError(f"Must be {allowed}.")

    return Parameter(validator=check)


def _parsed(parse: Callable[[str], Any], metavar: str, shown: Callable[[Any], str] | bool | None = False) -> Parameter:
    """How a text becomes a value; ``shown`` makes a text of the default again, for the help. None: show it as it is."""
    return Parameter(converter=_converter(parse), n_tokens=1, negative=(), metavar=metavar, show_default=shown)


Sizes = Annotated[tuple[int, ...], _parsed(parse_sizes, "N-N-...")]
MlpBot = Annotated[tuple[int, ...], _parsed(_mlp_bot, "N-N-...")]
MlpTop = Annotated[tuple[int, ...], _parsed(_mlp_top, "N-N-...")]
Bytes = Annotated[int, _parsed(parse_bytes, "BYTES"), _must_be(f"from 1 to {LARGEST}", lambda n: 1 <= n <= LARGEST)]
Budget = Annotated[
    int | Literal["auto"],
    _parsed(parse_budget, "BYTES|auto"),
    _must_be(f"auto, or from 1 to {LARGEST}", lambda n: n == "auto" or 1 <= n <= LARGEST),
]
Frequency = Annotated[
    int | Literal["epoch"],
    _parsed(parse_frequency, "N|epoch"),
    _must_be("epoch, -1, or 1 or more", lambda steps: steps in ("epoch", -1) or steps >= 1),
]
Names = Annotated[
    tuple[str, ...],
    Parameter(
        converter=lambda _, tokens: tuple(token.value for token in tokens),
        n_tokens=1,
        negative=(),
        metavar="NAME",
        show_default=False,
    ),
]
Weights = Annotated[
    tuple[float, ...], _parsed(parse_weights, "W-W-...", shown=lambda weights: "-".join(map(str, weights)))
]
Ratios = Annotated[tuple[float, ...], _parsed(parse_ratios, "R,R,...", shown=lambda ratios: ",".join(map(str, ratios)))]
AbsolutePath = Annotated[Path, Parameter(converter=_converter(lambda text: _path(text).absolute()), n_tokens=1)]
GivenPath = Annotated[Path, Parameter(converter=_converter(_path), n_tokens=1)]
Flag = Annotated[bool, Parameter(negative=())]
Switch = Annotated[bool, _parsed(parse_switch, "True|False", shown=None)]
Whole = Annotated[int, Parameter(converter=_converter(parse_whole), n_tokens=1)]  # cyclopts alone would round 3.5
Count = Annotated[Whole, _must_be("0 or more", lambda count: count >= 0)]
Positive = Annotated[Whole, _must_be("1 or more", lambda count: count >= 1)]
PositiveOrOff = Annotated[Whole, _must_be("-1, or 1 or more", lambda count: count == -1 or count >= 1)]
MlpBits = Annotated[Whole, _must_be("8, 16 or 32", lambda bits: bits in (8, 16, 32))]
EmbeddingBits = Annotated[Whole, _must_be("4, 8 or 32", lambda bits: bits in (4, 8, 32))]
Threads = Annotated[Whole, _must_be("from 1 to 1024", lambda threads: 1 <= threads <= 1024)]
Lookups = Annotated[Whole, _must_be("from 1 to 100000", lambda lookups: 1 <= lookups <= 100_000)]
TracedSteps = Annotated[Whole, _must_be("from 0 to 1000", lambda steps: 0 <= steps <= 1000)]  # 100 KB each
Depth = Annotated[Whole, _must_be("from 0 to 64", lambda depth: 0 <= depth <= 64)]
Ratio = Annotated[float, _must_be("above 0 and at most 1", lambda ratio: 0 < ratio <= 1)]
Area = Annotated[float, _must_be("above 0 and at most 1", lambda area: 0 < area <= 1)]
Number = Annotated[float, _must_be("a finite number", math.isfinite)]
Threshold = Annotated[float, _must_be("from 0 to below 0.5", lambda threshold: 0 <= threshold < 0.5)]
# Beyond it, what optimizers make of it does not fit the 32 bits of parameters.
LearningRate = Annotated[float, _must_be("a finite number from 0 to 1e30", lambda rate: 0 <= rate <= 1e30)]
PerSecond = Annotated[float, _must_be("from 1 to 1e18", lambda rate: 1 <= rate <= 1e18)]
Rate = Annotated[float, _must_be("0 or more, and finite", lambda rate: 0 <= rate < math.inf)]
Epsilon = Annotated[float, _must_be(f"from {LEAST_EPS} to 1e30", lambda eps: LEAST_EPS <= eps <= 1e30)]
Momentum = Annotated[float, _must_be("from 0 to below 1", lambda momentum: 0 <= momentum < 1)]
Norm = Annotated[float, _must_be("above 0, and finite", lambda norm: 0 < norm < math.inf)]
Power = Annotated[float, _must_be("above 0 and at most 100", lambda power: 0 < power <= 100)]

Given = TypeVar("Given")
_MAY_CHANGE = "may change on --resume"
MayChange = Annotated[Given, _MAY_CHANGE]
"""The type of an option that ``--resume`` takes anew: it decides no bit of the run. All others stay as they were."""


def may_change(option: Field[Any]) -> bool:
    """Whether ``--resume`` takes another value of an option."""
    return _MAY_CHANGE in getattr(option.type, "__metadata__", ())


def option_group(title: str, order: int) -> Parameter:
    """Marks a dataclass whose fields are options, shown in ``--help`` under ``title``, groups by ``order``."""
    return Parameter(name="*", group=Group(title, sort_key=order))
