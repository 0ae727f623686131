"""The live screen: a pure function of a snapshot, so it is tested without a terminal."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from cachedlrm.metrics import PHASES, Snapshot

_WIDE = 116  # from this width on, sections stand in two columns
_LABEL_WIDTH = 11
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"


@dataclass(frozen=True)
class RunHeader:
    """What does not change during a run.

    Attributes:
        data: ``--data``.
        model: tables, rows and dimension in words.
        cache: slots and policy in words.
        machine: device and threads in words.
    """

    data: str
    model: str
    cache: str
    machine: str


@dataclass(frozen=True)
class LiveView:
    """A screen for rich: header, progress, learning, cache, phases of a step, memory.

    Attributes:
        header: what the run is.
        snapshot: where it stood last; None before the first.
        step: steps issued, if more than the snapshot knows.
        losses: recent losses, oldest first.
        hit_ratios: recent hit ratios, oldest first.
    """

    header: RunHeader
    snapshot: Snapshot | None
    losses: tuple[float, ...] = ()
    hit_ratios: tuple[float, ...] = ()
    step: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        draw = _Drawing(ascii_only=options.ascii_only)
        header = Text.assemble(
            ("cachedlrm ", "bold"), f"{self.header.data}, {self.header.model}\n", (" " * 10 + self.header.cache, "dim")
        )
        header.append(f"\n{' ' * 10}{self.header.machine}", "dim")
        if self.snapshot is None:
            words = f"step {self.step:,}" if self.step else "preparing the first batches"
            yield Group(header, Text(f"\n{words}", "dim"))
            return
        snapshot = self.snapshot
        wide = width >= _WIDE
        column = (width - 3) // 2 if wide else width
        learning = self._learning(snapshot, draw, column)
        cache = self._cache(snapshot, draw, column)
        phases, memory = _phases(snapshot, draw, column), _memory(snapshot, draw, column)
        yield header
        yield Text()
        yield _progress(snapshot, max(self.step, snapshot.step), draw, width)
        yield Text()
        if wide:
            grid = Table.grid(padding=(0, 3, 0, 0))
            gap = [Text()]
            grid.add_row(Group(*learning, *gap, *memory), Group(*cache, *gap, *phases))
            yield grid
        else:
            for section in (learning, cache, phases, memory):
                yield from section

    def _learning(self, snapshot: Snapshot, draw: "_Drawing", width: int) -> list[Text]:
        auc = "no evaluation yet" if snapshot.auc is None else f"{snapshot.auc:.4f} held out"
        loss = Text(f"{snapshot.loss:.5f} ")
        loss.append(draw.sparkline(self.losses, width - _LABEL_WIDTH - 12), "cyan")
        return [
            _line("loss", loss),
            _line("AUC", Text(auc)),
            _line("speed", Text(f"{snapshot.samples_per_s:,.0f} samples/s")),
        ]

    def _cache(self, snapshot: Snapshot, draw: "_Drawing", width: int) -> list[Text]:
        recent, steps = snapshot.recent, max(1, snapshot.recent_steps)
        hits = Text(f"{recent.hit_ratio:6.2%} now, {snapshot.cache.hit_ratio:.2%} over the run ")
        hits.append(draw.sparkline(self.hit_ratios, width - _LABEL_WIDTH - 34), "green")
        moved_bytes = (recent.fetched_rows + recent.written_back_rows) * snapshot.record_bytes
        rows = (
            f"{recent.fetched_rows / steps:,.0f} fetched, {recent.first_touch_rows / steps:,.0f} created, "
            f"{recent.written_back_rows / steps:,.0f} written back"
        )
        total = snapshot.cache
        total_rows = total.fetched_rows + total.first_touch_rows + total.written_back_rows
        total_bytes = (total.fetched_rows + total.written_back_rows) * snapshot.record_bytes
        return [
            _line("hit ratio", hits),
            _line("rows/step", Text(f"{rows}  {_size(moved_bytes / steps)}")),
            _line("moved", Text(f"{total_rows:,} rows and {_size(total_bytes)} in the run")),
        ]


class _Drawing:
    """Bars and sparklines, with or without Unicode."""

    def __init__(self, ascii_only: bool) -> None:
        self._blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
        self._full, self._empty = ("#", ".") if ascii_only else ("█", "░")

    def bar(self, share: float, width: int, style: str) -> Text:
        filled = round(min(1.0, max(0.0, share)) * width)
        return Text.assemble((self._full * filled, style), (self._empty * (width - filled), "dim"))

    def sparkline(self, values: tuple[float, ...], width: int) -> str:
        values = values[-max(0, width) :] if width > 0 else ()
        if not values:
            return ""
        low, high = min(values), max(values)
        steps = len(self._blocks) - 1
        scale = steps / (high - low) if high > low else 0.0
        return "".join(self._blocks[round((value - low) * scale)] for value in values)


def _line(label: str, value: Text) -> Text:
    line = Text(no_wrap=True, overflow="crop")
    line.append(f"{label:<{_LABEL_WIDTH}}", "dim")
    line.append_text(value)
    return line


def _progress(snapshot: Snapshot, step: int, draw: _Drawing, width: int) -> Text:
    left = snapshot.num_steps - snapshot.step
    eta_s = snapshot.eta_s * (snapshot.num_steps - step) / left if left else 0.0
    share = step / snapshot.num_steps if snapshot.num_steps else 1.0
    words = f" {share:4.0%}  step {step:,}/{snapshot.num_steps:,}  ETA {format_seconds(eta_s)}"
    line = draw.bar(share, max(10, width - len(words)), "magenta")
    line.append(words)
    line.no_wrap = True
    return line


def _phases(snapshot: Snapshot, draw: _Drawing, width: int) -> list[Text]:
    """Where a step's time goes. Phases of the prefetch thread overlap the others when it runs ahead."""
    longest = max(snapshot.phase_ms.values(), default=0.0) or 1.0
    lines = []
    for phase in PHASES:
        milliseconds = snapshot.phase_ms.get(phase, 0.0)
        style = "red" if phase == "wait" else "blue"
        value = Text(f"{milliseconds:8.2f} ms ")
        value.append_text(draw.bar(milliseconds / longest, min(40, width - _LABEL_WIDTH - 14), style))
        lines.append(_line(phase.replace("_", " "), value))
    return lines


def _memory(snapshot: Snapshot, draw: _Drawing, width: int) -> list[Text]:
    lines = []
    slots = snapshot.cache_slots
    for label, used, limit, words in (
        ("slots", snapshot.resident_slots, slots, f"{snapshot.resident_slots:,} of {slots:,}"),
        ("device", snapshot.device_bytes, snapshot.device_limit_bytes, None),
        ("host", snapshot.host_bytes, snapshot.host_limit_bytes, None),
    ):
        share = used / limit if limit else 0.0
        value = draw.bar(share, min(26, width - _LABEL_WIDTH - 30), "yellow" if share > 0.9 else "green")
        value.append(f" {words or f'{_size(used)} of {_size(limit)}'}")
        lines.append(_line(label, value))
    return lines


def _size(num_bytes: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_seconds(seconds: float) -> str:
    """h:mm:ss"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
