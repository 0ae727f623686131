"""What a terminal, a pipe, a file and a full disk get to see."""

import io
import os
import re
import subprocess
import sys

import pytest
import rich.console
from msgspec import structs

from cachedlrm.cache.counters import PHASES, CacheCounters
from cachedlrm.report.console import LiveConsole, PlainConsole, open_console
from cachedlrm.report.live_view import History, LiveView, RunHeader, curve, sparkline
from support.documents import TESTS
from support.reports import snapshot

HEADER = RunHeader(
    "zipf", "33,762,577 rows in 26 tables, dim 16, adagrad", "1,688,128 slots (5.00%), lrfu", "cpu, 2 threads"
)
LARGE = CacheCounters(
    10**12, 9 * 10**11, 10**11, 9 * 10**10, 12_000, 12_000, 12_000, 12_000, 12_000 << 10, 12_000 << 10
)
LOSSES = tuple(0.44 + 0.25 * 0.98**i for i in range(200))
SIZES = [(80, 24), (140, 40)]
CURSOR_ON, CURSOR_OFF = "\x1b[?25h", "\x1b[?25l"


def screen(width: int, height: int, *, header: RunHeader = HEADER, **changes: object) -> list[str]:
    """The lines of a drawn screen."""
    stream = io.StringIO()
    view = LiveView(header, snapshot(**changes), LOSSES, LOSSES)
    rich.console.Console(file=stream, width=width, height=height).print(view)
    return stream.getvalue().splitlines()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A stream on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


CLEAR = "\x1b[2J\x1b[H"


def live(stream: io.StringIO, now: list[float]) -> LiveConsole:
    terminal = rich.console.Console(file=stream, width=80, height=24, force_terminal=True)
    return LiveConsole(terminal, clock=lambda: now[0])


# --- the screen


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_screen_says_everything(width, height):
    lines = screen(width, height, host_records=1_272_000, mapped_bytes=192 << 20)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for words in ("5 written back, 5 evicted", "768 B/step", "13.8 KiB in the run", "1,272,000 rows on host",
                  "waiting for rows 1.0%", "192.0 MiB mapped", "learning", "preparing", "▁", "━"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_large_numbers_keep_their_words(width, height):
    lines = screen(width, height, recent=LARGE, recent_steps=1, cache=LARGE,
                   host_record_bytes=1023 << 30, host_limit_bytes=1023 << 30,
                   phase_ms=dict.fromkeys(PHASES, 99_999.99))  # fmt: skip
    text = "\n".join(lines)
    assert len(lines) < height
    assert "12,000 fetched, 12,000 created, 12,000 written back, 12,000 evi" in text
    assert "1023.0 GiB of 1023.0 GiB" in text
    assert text.count("99999.99 ms") == len(PHASES)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_columns_align(width, height):
    lines = screen(width, height)
    training = next(line for line in lines if "preparing" in line)
    column = training.index("preparing")
    for phase in ("plan", "evict", "admit"):
        assert (
            next(line for line in lines if f"{phase} " in line and " ms" in line).index(f"{phase} ", column) == column
        )


@pytest.mark.parametrize("disk_bytes", [None, 3 << 30])
@pytest.mark.parametrize("height", [*range(13, 34), 60])
def test_a_taller_terminal_gets_air_and_a_short_one_loses_headings(height, disk_bytes):
    lines = screen(80, height, disk_bytes=disk_bytes, disk_limit_bytes=9 << 30)
    assert len(lines) < height  # the last line is the cursor's
    text = "\n".join(lines)
    assert ("memory" in text) == (height >= 24)
    assert ("\n\n" in text.partition("ETA")[2]) == (height >= 29)
    for label in ("loss", "AUC", "speed", "hit ratio", "traffic", "slots", "device", "host"):
        assert f"\n{label:<11}" in text, label
    assert ("3.0 GiB of 9.0 GiB" in text) == (disk_bytes is not None)


def test_a_tiny_terminal_has_the_step_in_one_line():
    text = "\n".join(screen(50, 15))
    assert "\nstep       50.0 ms  backward 50%, forward 40%, " in text
    assert "ETA 0:00:17" in text


def test_the_distance_to_min_is_shown_where_it_is_known():
    known = screen(80, 24, cache=structs.replace(snapshot().cache, moved_rows_min=80))
    assert "90.00% over the run, rows moved 1.250 x MIN  " in "\n".join(known)
    assert len(known) == len(screen(80, 24))
    assert "MIN" not in "\n".join(screen(80, 24))


def test_time_that_has_passed_gives_way_to_what_goes_on():
    def progress(width: int, doing: str) -> str:
        stream = io.StringIO()
        rich.console.Console(file=stream, width=width, height=24).print(LiveView(HEADER, snapshot(), doing=doing))
        return next(line for line in stream.getvalue().splitlines() if "step " in line)

    assert progress(80, "").endswith(" 61%  step 610/1,000  0:00:28, ETA 0:00:17")
    assert progress(60, "").endswith(" 61%  step 610/1,000  ETA 0:00:17")
    assert progress(80, "evaluating 34%").rstrip().endswith("step 610/1,000  evaluating 34%")
    assert progress(80, "writing").index("step") == progress(80, "").index("step")


def test_what_is_left_falls_with_every_step():
    def progress(step: int) -> str:
        stream = io.StringIO()
        view = LiveView(HEADER, snapshot(step=500, eta_s=100.0), step=step)
        rich.console.Console(file=stream, width=80, height=24).print(view)
        return next(line for line in stream.getvalue().splitlines() if "step " in line)

    assert [progress(step)[-11:] for step in (0, 500, 750, 1000)] == [
        "ETA 0:01:40", "ETA 0:01:40", "ETA 0:00:50", "ETA 0:00:00"
    ]  # fmt: skip


def test_a_tier_that_is_nearly_full_is_in_another_colour():
    def device(used: int) -> str:
        stream = io.StringIO()
        terminal = rich.console.Console(file=stream, width=80, height=24, force_terminal=True, color_system="standard")
        terminal.print(LiveView(HEADER, snapshot(device_bytes=used, device_limit_bytes=1000)))
        return next(line for line in stream.getvalue().splitlines() if "device " in line)

    cyan, yellow = "\x1b[36m", "\x1b[33m"
    assert (cyan in device(900), yellow in device(900)) == (True, False)
    assert (cyan in device(910), yellow in device(910)) == (False, True)


def test_a_data_path_cannot_break_the_screen():
    hostile = RunHeader("npy:/a\nb\x1b[2J\udcff" + "x" * 300, "m", "c", "m")
    lines = screen(80, 24, header=hostile)
    assert len(lines) == len(screen(80, 24))
    assert lines[0].startswith("cachedlrm  npy:/a?b?[2J?xxx")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_figures_nobody_knows_draw(bad):
    text = "\n".join(screen(80, 24, eta_s=bad, loss=bad, samples_per_s=bad, device_limit_bytes=0, cache_slots=0))
    assert "-:--:--" in text


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    console = open_console("auto", stream)
    with console:
        console.start(HEADER)
        console.update(snapshot())
        console.finish("done")
    assert CURSOR_OFF in stream.getvalue()
    assert "\x1b[36m" not in stream.getvalue()  # cyan
    assert "\x1b[33m" not in stream.getvalue()  # yellow


def test_a_terminal_without_unicode_gets_ascii(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with open_console("live", stream) as console:
        console.start(RunHeader("npy:/dätä/表", "m", "c", "m"))
        console.update(snapshot())
        console.message("ü")
        console.finish("report: /dätä")
    stream.flush()
    text = raw.getvalue().decode("ascii")
    assert "npy:/d?t?/?" in text
    assert "####" in text


# --- curves


def test_sparklines():
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1, 1, 8, 8], 2) == "▁█"
    assert sparkline([1, float("nan"), 8], 10) == "▁█"
    assert sparkline([3, 3, 3], 3) == "▁▁▁"
    assert sparkline([1, 8], 5, ascii_only=True) == "_#"
    assert sparkline([], 5) == sparkline([1.0], 0) == sparkline([1.0], -3) == ""


def test_curves_of_several_lines():
    assert curve([0, 8, 15], 3, 2) == [" ▁█", "▁██"]
    assert curve([], 3, 2) == ["", ""]
    assert curve([5.0], 3, 3) == [" ", " ", "▁"]
    for height in (1, 4):
        assert len({len(line) for line in curve(LOSSES, 50, height)}) == 1


def test_a_history_covers_the_run_in_bounded_space():
    history = History(limit=8)
    for i in range(1000):
        history.add(float(i))
        assert len(history.values()) <= 8
    values = history.values()
    assert list(values) == sorted(values)
    assert values[0] < 150  # the beginning is still there
    assert values[-1] > 850
    history.add(float("nan"))
    assert history.values() == values


# --- the modes


def test_the_live_screen_is_drawn_by_the_clock_alone():
    now = [10.0]
    stream = io.StringIO()
    console = live(stream, now)
    console.start(HEADER)
    console.update(snapshot())
    size = len(stream.getvalue())
    for _ in range(100):
        now[0] += 0.002
        console.update(snapshot())
        console.advance(611)
    assert len(stream.getvalue()) == size
    now[0] += 0.06
    console.advance(612)
    assert "step 612/1,000" in stream.getvalue()[size:]
    console.close()


def test_a_terminal_of_another_size_is_cleared_once(monkeypatch):
    now, stream = [10.0], io.StringIO()
    console = live(stream, now)
    console.start(HEADER)
    console.update(snapshot())
    assert CLEAR not in stream.getvalue()
    monkeypatch.setattr(rich.console.Console, "size", rich.console.ConsoleDimensions(50, 15))
    for _ in range(2):
        now[0] += 1
        console.update(snapshot())
    assert stream.getvalue().count(CLEAR) == 1
    assert "backward " in without_colours(stream.getvalue().partition(CLEAR)[2])
    console.close()


def test_an_evaluation_is_shown_at_once_and_until_it_ends():
    stream = io.StringIO()
    console = live(stream, [0.0])
    console.start(HEADER)
    console.update(snapshot())
    console.busy(611, "evaluating")
    assert "step 611/1,000" in stream.getvalue()
    assert "step 611/1,000  evaluating" in without_colours(stream.getvalue())
    size = len(stream.getvalue())
    console.busy(611, "evaluating", 0.5)  # not drawn: no time has passed
    assert len(stream.getvalue()) == size
    console.advance(611)
    console.close()
    assert "evaluating" not in stream.getvalue()[size:]


def test_what_comes_before_the_start_is_a_line_that_the_screen_replaces():
    stream, now = io.StringIO(), [0.0]
    console = live(stream, now)
    console.busy(0, "counting", 0.0)
    assert without_colours(stream.getvalue()).split() == ["counting", "0%"]
    now[0] += 0.3
    console.busy(0, "counting", 0.5)
    assert without_colours(stream.getvalue()).split()[-2:] == ["counting", "50%"]
    console.start(HEADER)
    console.close()
    assert "counting" not in stream.getvalue()[stream.getvalue().index("cachedlrm") :]
    console = live(stream, now)
    console.busy(0, "counting", 0.0)
    console.close()  # a mistake ends the run
    assert stream.getvalue().rindex(CURSOR_ON) > stream.getvalue().rindex("counting")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_newest_view_is_left_standing(error):
    stream = io.StringIO()
    console = live(stream, [0.0])

    def train() -> None:
        with console:
            console.start(HEADER)
            console.update(snapshot())
            console.update(snapshot(step=999, auc=0.1234))  # not drawn: no time has passed
            console.busy(1000, "evaluating", 0.5)
            raise error

    with pytest.raises(error):
        train()
    last = without_colours(stream.getvalue()[stream.getvalue().rindex("cachedlrm") :])
    assert "step 1,000/1,000" in last
    assert "0.1234 held out" in last
    assert "evaluating" not in last
    size = len(stream.getvalue())
    console.close()
    assert len(stream.getvalue()) == size


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_terminal_is_restored_whatever_happens(error):
    stream = io.StringIO()
    stdout = sys.stdout
    console = live(stream, [0.0])

    def train() -> None:
        with console:
            console.start(HEADER)
            console.update(snapshot())
            raise error

    with pytest.raises(error):
        train()
    assert stream.getvalue().rindex(CURSOR_ON) > stream.getvalue().rindex(CURSOR_OFF)
    assert sys.stdout is stdout
    console.close()  # once more does nothing


def test_messages_stand_above_the_screen():
    stream = io.StringIO()
    console = live(stream, [0.0])
    with console:
        console.start(HEADER)
        console.update(snapshot())
        console.message("evaluated [2048] samples\x1b[2J")
        assert "evaluated [2048] samples?[2J" in stream.getvalue()
        console.finish("done\nreport: " + "long/" * 40)
    assert stream.getvalue().endswith("\ndone\nreport: " + "long/" * 40 + "\n")


def test_auto_asks_the_stream(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(open_console("auto", Terminal()), LiveConsole)
    assert isinstance(open_console("plain", Terminal()), PlainConsole)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(open_console("auto", io.StringIO()), PlainConsole)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_console("auto", Terminal()), PlainConsole)


def test_plain_prints_lines_without_control_characters():
    stream = io.StringIO()
    with open_console("plain", stream) as console:
        console.start(RunHeader("npy:/a\nb\x1b[2J", "m", "c", "m"))
        console.update(snapshot())
        console.advance(611)
        console.message("careful")
        console.finish("done\nreport: x")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "npy:/a?b?[2J: m"
    assert lines[3].startswith("step 610/1000  loss 0.46351")
    assert lines[4:] == ["careful", "done", "report: x"]
    assert "\x1b" not in stream.getvalue()


def test_plain_says_what_takes_long():
    stream, now = io.StringIO(), [0.0]
    console = PlainConsole(stream, clock=lambda: now[0])
    for share in (0.0, 0.1, 0.2, 0.3):
        console.busy(7, "evaluating", share)
        now[0] += 6
    console.advance(8)
    console.busy(8, "evaluating", 0.0)
    console.busy(0, "reading")
    assert stream.getvalue().splitlines() == [
        "after step 7: evaluating", "after step 7: evaluating 20%", "after step 8: evaluating", "reading"
    ]  # fmt: skip


def test_off_prints_nothing_and_touches_no_stream():
    with open_console("off", Broken()) as console:
        console.start(HEADER)
        console.update(snapshot())
        console.advance(611)
        console.message("careful")
        console.finish("done")


@pytest.mark.parametrize("ui", ["auto", "plain", "live", "off"])
def test_a_closed_stdout_is_silence(ui, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with open_console(ui) as console:
        console.start(HEADER)
        console.busy(1, "evaluating")
        console.finish("done")


@pytest.mark.parametrize("ui", ["plain", "live"])
def test_a_display_that_cannot_print_does_not_end_the_run(ui):
    with open_console(ui, Broken()) as console:
        console.start(HEADER)
        console.update(snapshot())
        console.message("careful")
        console.finish("done")


SHOW = """
import sys
sys.path[:0] = sys.argv[2:]
from report.test_console import HEADER, open_console, snapshot
with open_console(sys.argv[1]) as console:
    console.start(HEADER)
    for _ in range(2000):
        console.update(snapshot())
    console.finish("done")
"""


@pytest.mark.parametrize("ui", ["plain", "live"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no file that is always full")
def test_a_full_disk_behind_stdout_leaves_exit_status_0(ui):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", SHOW, ui, str(TESTS)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("ui", ["plain", "live"])
def test_a_reader_that_leaves_costs_nothing(ui):
    command = [sys.executable, "-c", SHOW, ui, str(TESTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
    assert (process.returncode, error) == (0, b"")
