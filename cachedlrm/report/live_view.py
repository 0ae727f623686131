"""The live screen: a pure function of a snapshot, so it is tested without a terminal."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from cachedlrm.base.text import printable
from cachedlrm.base.units import format_seconds
from cachedlrm.cache.counters import PHASES, PREPARING_PHASES
from cachedlrm.report.metrics import Snapshot

_WIDE = 132  # from this width on, sections stand in two columns
_NARROW = 70  # below it there is no room for the time that has passed
_WIDEST = 160  # beyond it lines would be too long to follow
_RIGHT_WIDTH = 75  # of the column with the longest lines
_SHORT = 24  # below this height there is no room for headings, from 5 lines more on there is for blank lines
_TINY = 21  # below it only the most important lines fit
_LABEL_WIDTH = 11
_GAP = 3
_CURVE_HEIGHT = 4  # of the losses, beside the longer right column
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"
_ACCENT, _ALERT = "cyan", "yellow"
_TRAINING_PHASES = tuple(phase for phase in PHASES if phase not in PREPARING_PHASES)


@dataclass(frozen=True)
class RunHeader:
    """The part of a screen that does not change during a run.

    Attributes:
        data: ``--data``.
        model: tables, rows and dimension in words.
        cache: slots and policy in words.
        machine: device and threads in words.
        trains: whether there are steps to train.
        evaluates: whether there will be evaluations.
    """

    data: str
    model: str
    cache: str
    machine: str
    trains: bool = True
    evaluates: bool = True


class History:
    """One value for each snapshot of a run; when there are too many, neighbours are merged into their mean.

    Args:
        limit: values kept at most; even.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._means: list[float] = []
        self._merged = 1  # values in a mean
        self._pending: list[float] = []

    def add(self, value: float) -> None:
        """Takes the next value; NaN and infinities have no place on a scale."""
        if not math.isfinite(value):
            return
        self._pending.append(value)
        if len(self._pending) < self._merged:
            return
        self._means.append(_mean(self._pending))
        self._pending = []
        if len(self._means) == self._limit:
            self._means = [_mean(self._means[i : i + 2]) for i in range(0, self._limit, 2)]
            self._merged *= 2

    def values(self) -> tuple[float, ...]:
        """Oldest first."""
        return (*self._means, _mean(self._pending)) if self._pending else tuple(self._means)


@dataclass(frozen=True)
class LiveView:
    """A screen for rich: header, progress, learning, cache, phases of a step, memory.

    Attributes:
        header: what the run is.
        snapshot: where it stood last; None before the first.
        losses: losses of the run, oldest first.
        hit_ratios: hit ratios of the run, oldest first.
        step: steps issued, if more than the snapshot knows.
        doing: work other than training that goes on, such as an evaluation; else empty.
    """

    header: RunHeader
    snapshot: Snapshot | None
    losses: tuple[float, ...] = ()
    hit_ratios: tuple[float, ...] = ()
    step: int = 0
    doing: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = min(options.max_width, _WIDEST), console.size.height
        is_tiny = height < _TINY
        yield from self._header_lines()[: 1 if is_tiny else 3]
        snapshot = self.snapshot
        if snapshot is None:
            yield Text()
            yield Text(self._before_first_snapshot(), "dim")
            return
        if not is_tiny and (height != _SHORT or snapshot.disk_bytes is None):
            yield Text()
        pen = _Pen(options.ascii_only)
        yield self._progress(snapshot, pen, width)
        if width >= _WIDE and not is_tiny:
            yield from self._two_columns(snapshot, pen, width)
        elif is_tiny:
            learning, cache = self._learning(snapshot, pen, width, 1), self._cache(snapshot, pen, width)
            yield from (*learning[1:], *(cache[i] for i in (1, 3, 4)), _slowest(snapshot))
            yield from _memory(snapshot, pen, width)[1:]
        else:
            sections = (self._learning(snapshot, pen, width, 1), self._cache(snapshot, pen, width),
                        _phases(snapshot, pen, width), _memory(snapshot, pen, width))  # fmt: skip
            for section in sections:
                if height >= _SHORT + 5:
                    yield Text()
                yield from section if height >= _SHORT else section[1:]

    def _two_columns(self, snapshot: Snapshot, pen: "_Pen", width: int) -> Iterator[Text]:
        left = width - _GAP - _RIGHT_WIDTH
        learning = self._learning(snapshot, pen, left, _CURVE_HEIGHT)
        cache, phases = self._cache(snapshot, pen, _RIGHT_WIDTH), _phases(snapshot, pen, _RIGHT_WIDTH)
        yield Text()
        yield from _side_by_side(
            [*learning, Text(), *_memory(snapshot, pen, left, process_apart=True)], [*cache, Text(), *phases], left
        )

    def _before_first_snapshot(self) -> str:
        if self.doing:
            return self.doing
        if not self.header.trains:
            return "no step to train"
        return f"step {self.step:,}" if self.step else "preparing the first batches"

    def _header_lines(self) -> list[Text]:
        title = Text.assemble(
            (f"{'cachedlrm':<{_LABEL_WIDTH}}", f"bold {_ACCENT}"), (printable(self.header.data), "bold")
        )
        title.append(f", {printable(self.header.model)}")
        lines = [
            title,
            *(_line("", Text(printable(words), "dim")) for words in (self.header.cache, self.header.machine)),
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
        return lines

    def _progress(self, snapshot: Snapshot, pen: "_Pen", width: int) -> Text:
        step, left = max(self.step, snapshot.step), snapshot.num_steps - snapshot.step
        eta_s = snapshot.eta_s * (snapshot.num_steps - step) / left if left else 0.0
        share = step / snapshot.num_steps if snapshot.num_steps else 1.0
        words = f"  step {step:,}/{snapshot.num_steps:,}  "
        clock = f"{format_seconds(snapshot.elapsed_s)}, ETA {format_seconds(eta_s)}"
        room = len(clock) if width >= _NARROW else 0
        happens = self.doing or (clock if room else f"ETA {format_seconds(eta_s)}")
        bar_width = max(10, width - len(words) - max(room, len(happens)) - 6)
        line = pen.bar(share, bar_width).append(f"  {share:4.0%}", "bold").append(words)
        line.append(happens, _ACCENT if self.doing else "")
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _learning(self, snapshot: Snapshot, pen: "_Pen", width: int, curve_height: int) -> list[Text]:
        value = f"{snapshot.loss:.5f}  "
        losses = []
        for i, blocks in enumerate(curve(self.losses, width - _LABEL_WIDTH - len(value), curve_height, pen.ascii_only)):
            words = value if i == 0 else " " * len(value)
            losses.append(_line("" if i else "loss", Text.assemble((words, "bold"), (blocks, _ACCENT))))
        share = snapshot.waited_share
        speed = Text.assemble((f"{snapshot.samples_per_s:,.0f} samples/s", "bold"), ("  waiting for rows ", "dim"))
        speed.append(f"{share:.1%}", _ALERT if share > 0.2 else "")
        return [pen.rule("learning", width), *losses, _line("AUC", self._auc(snapshot)), _line("speed", speed)]

    def _auc(self, snapshot: Snapshot) -> Text:
        evaluation, best = snapshot.evaluation, snapshot.best
        if evaluation is None:
            return Text("no evaluation yet" if self.header.evaluates else "-", "dim")
        if evaluation.auc is None:
            words = Text("- held-out labels are not 0 and 1, both", "dim")
        else:
            words = Text.assemble((f"{evaluation.auc:.4f}", "bold"), (" held out", "dim"))
        if evaluation.logloss is not None:
            words.append(", logloss ", "dim").append(f"{evaluation.logloss:.4f}")
        if best is not None and best is not evaluation:
            figure = f"{best.auc:.4f}" if best.auc is not None else f"{best.logloss:.4f}"
            words.append(f", best {figure} at step {best.step:,}", "dim")
        return words

    def _cache(self, snapshot: Snapshot, pen: "_Pen", width: int) -> list[Text]:
        recent, total, steps = snapshot.recent, snapshot.cache, max(1, snapshot.recent_steps)
        hits = Text.assemble((f"{recent.hit_ratio:.2%} now", "bold"), f", {total.hit_ratio:.2%} over the run  ")
        if total.moved_of_min is not None:
            hits = hits[:-2].append(f", rows moved {total.moved_of_min:.3f} x MIN  ")
        hits.append(sparkline(self.hit_ratios, width - _LABEL_WIDTH - len(hits.plain), pen.ascii_only), _ACCENT)
        rows = (
            f"{recent.fetched_rows / steps:,.0f} fetched, {recent.first_touch_rows / steps:,.0f} created, "
            f"{recent.written_back_rows / steps:,.0f} written back, {recent.evicted_rows / steps:,.0f} evicted"
        )
        moved_bytes = (recent.fetched_bytes + recent.written_back_bytes) / steps
        total_bytes = total.fetched_bytes + total.written_back_bytes
        traffic = Text(f"{_size(moved_bytes)}/step, {_size(total_bytes)} in the run")
        if snapshot.host_records is not None:
            traffic.append(f", {snapshot.host_records:,} rows on host")
        resident, quota, temporary = snapshot.resident_slots, snapshot.cache_slots, snapshot.temporary_slots
        slots = pen.bar(resident / (quota + temporary) if quota + temporary else 0.0, 20)
        slots.append(f" {resident:,} of {quota:,}" + (f" and {temporary:,} temporary" if temporary else ""))
        return [
            pen.rule("cache", width),
            _line("hit ratio", hits),
            _line("rows/step", Text(rows)),
            _line("traffic", traffic),
            _line("slots", slots),
        ]


class _Pen:
    """Bars and rules, with or without Unicode."""

    def __init__(self, ascii_only: bool) -> None:
        self.ascii_only = ascii_only
        self._full, self._half, self._track, self._rule = ("#", "", ".", "-") if ascii_only else ("━", "╸", "─", "─")

    def bar(self, share: float, width: int, style: str = _ACCENT, track: bool = True) -> Text:
        halves = round(min(1.0, max(0.0, share)) * width * 2) if math.isfinite(share) else 0
        filled = self._full * (halves // 2) + (self._half if halves % 2 else "")
        return Text.assemble((filled, style), ((self._track if track else " ") * (width - len(filled)), "dim"))

    def rule(self, title: str, width: int) -> Text:
        line = Text.assemble((f"{title:<{_LABEL_WIDTH - 1}} ", "bold"), (self._rule * (width - _LABEL_WIDTH), "dim"))
        line.no_wrap, line.overflow = True, "crop"
        return line


def _line(label: str, value: Text) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    line.append(f"{label:<{_LABEL_WIDTH}}", "dim")
    line.append_text(value)
    return line


def _side_by_side(left: Sequence[Text], right: Sequence[Text], left_width: int) -> Iterator[Text]:
    """Two columns. Not a table: that would fill the last line, where the terminal's ^C would then begin a new one."""
    for one, other in itertools.zip_longest(left, right, fillvalue=Text()):
        line = Text(no_wrap=True, overflow="crop")
        line.append_text(one)
        line.truncate(left_width, overflow="crop", pad=True)
        yield line.append(" " * _GAP).append_text(other)


def _slowest(snapshot: Snapshot) -> Text:
    """The training thread's time by phase, the longest first, in one line."""
    spent = {phase: snapshot.phase_ms.get(phase, 0.0) for phase in snapshot.own_phases}
    total = sum(spent.values())
    order = sorted(spent, key=spent.__getitem__, reverse=True)
    shares = (f"{phase.replace('_', ' ')} {spent[phase] / total:.0%}" for phase in order if spent[phase] > 0)
    return _line("step", Text(f"{total:.1f} ms  " + ", ".join(shares)))


def _phases(snapshot: Snapshot, pen: _Pen, width: int) -> list[Text]:
    """Where a step's time goes: what training does on the left, what makes rows ready for it on the right."""
    longest = max(snapshot.phase_ms.values(), default=0.0) or 1.0
    half = (width - _GAP) // 2
    left, right = pen.rule("training", half), pen.rule("preparing", width - half - _GAP)
    lines = [left.append(" " * _GAP).append_text(right)]

    def cell(phase: str) -> Text:
        milliseconds = snapshot.phase_ms.get(phase, 0.0)
        bar = pen.bar(
            milliseconds / longest, max(0, half - _LABEL_WIDTH - 13), _ALERT if phase == "wait" else _ACCENT, False
        )
        return _line(phase.replace("_", " "), Text(f"{milliseconds:9.2f} ms ").append_text(bar))

    for i, phase in enumerate(_TRAINING_PHASES):
        line = cell(phase)
        if i < len(PREPARING_PHASES):
            line.append(" " * (half + _GAP - len(line.plain))).append_text(cell(PREPARING_PHASES[i]))
        lines.append(line)
    return lines


def _memory(snapshot: Snapshot, pen: _Pen, width: int, process_apart: bool = False) -> list[Text]:
    """A bar for each tier. The process's own memory stands after the host's, or on a line of its own."""
    process = _size(snapshot.host_bytes)
    if snapshot.mapped_bytes:
        process += f", {_size(snapshot.mapped_bytes)} mapped"
    tiers = [
        ("device", snapshot.device_bytes, snapshot.device_limit_bytes),
        ("host", snapshot.host_record_bytes, snapshot.host_limit_bytes),
    ]
    if snapshot.disk_bytes is not None:
        tiers.append(("disk", snapshot.disk_bytes, snapshot.disk_limit_bytes or 0))
    words = [f" {_size(used)} of {_size(limit)}" for _, used, limit in tiers]
    longest = 20 if process_apart or width >= 92 else 8
    bar_width = min(longest, max(0, width - _LABEL_WIDTH - max(map(len, words))))
    lines = [pen.rule("memory", width)]
    for text, (label, used, limit) in zip(words, tiers, strict=True):
        share = used / limit if limit else 0.0
        bar = pen.bar(share, bar_width, _ALERT if share > 0.9 else _ACCENT).append(text)
        if label == "host" and not process_apart:
            bar.append(f"  process {process}", "dim")
        lines.append(_line(label, bar))
    return [*lines, _line("process", Text(process))] if process_apart else lines


def curve(values: Sequence[float], width: int, height: int = 1, ascii_only: bool = False) -> list[str]:
    """A curve between the least and the greatest value: lines from the top, of at most ``width`` characters."""
    values = [value for value in values if math.isfinite(value)]
    count = min(max(0, width), len(values))
    if not count:
        return [""] * height
    bounds = [len(values) * i // count for i in range(count + 1)]
    means = [_mean(values[bounds[i] : bounds[i + 1]]) for i in range(count)]
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    low, high = min(means), max(means)
    scale = (len(blocks) * height - 1) / (high - low) if high > low else 0.0
    levels = [round((mean - low) * scale) for mean in means]
    lines = []
    for row in reversed(range(height)):
        inside = [level - row * len(blocks) for level in levels]
        lines.append("".join(" " if level < 0 else blocks[min(level, len(blocks) - 1)] for level in inside))
    return lines


def sparkline(values: Sequence[float], width: int, ascii_only: bool = False) -> str:
    """A curve of one line."""
    return curve(values, width, 1, ascii_only)[0]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _size(num_bytes: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"
