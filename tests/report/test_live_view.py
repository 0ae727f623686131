"""What a user sees, drawn from frozen snapshots."""

import io
import itertools
import json
import mmap
import re
from dataclasses import replace

import pytest
import rich.console

from cachedlrm.base.machine import host_memory
from cachedlrm.cache.counters import PHASES, CacheCounters
from cachedlrm.report.console import Console, LiveConsole, PlainConsole, open_console
from cachedlrm.report.live_view import LiveView, RunHeader
from cachedlrm.report.metrics import Snapshot, metrics_row
from cachedlrm.report.scores import Evaluated

HEADER = RunHeader(
    "zipf", "33,762,577 rows in 26 tables, dim 16, adagrad", "1,688,128 slots (5.00%), lrfu, 313.6 MiB on the device",
    "cpu, 2 threads, prefetch depth 2",
)  # fmt: skip
TOTAL = CacheCounters(1000, 900, 400, 300, 60, 40, 70, 70, 5120, 8960)
RECENT = CacheCounters(100, 95, 40, 36, 2, 2, 10, 10, 256, 1280)
SNAPSHOT = Snapshot(
    step=610, num_steps=1000, epoch=0, samples=1_249_280, elapsed_s=27.5, samples_per_s=45_312.0, eta_s=17.2,
    loss=0.46351, evaluation=Evaluated(step=610, auc=0.7886), best=None, cache=TOTAL, recent=RECENT, recent_steps=2,
    phase_ms=dict(zip(PHASES, (3.1, 0.24, 0.4, 0.7, 14.2, 25.4, 1.8, 1.1), strict=True)),
    device_bytes=300 << 20, device_limit_bytes=4 << 30, host_bytes=900 << 20, host_limit_bytes=16 << 30,
    host_record_bytes=600 << 20, mapped_bytes=0, cache_slots=1_688_128, resident_slots=844_064,
)  # fmt: skip
VIEW = LiveView(HEADER, SNAPSHOT, (0.7, 0.5, 0.48, 0.46), (0.8, 0.9, 0.95))


def draw(view: LiveView, width: int, height: int, **options) -> list[str]:
    stream = io.StringIO()
    rich.console.Console(file=stream, width=width, height=height, **options).print(view)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (140, 40)])
def test_the_screen_fits_and_answers(width, height):
    lines = draw(VIEW, width, height)
    assert len(lines) < height
    assert all(len(line) <= width for line in lines)
    screen = "\n".join(lines)
    for words in ("61%", "step 610/1,000", "ETA 0:00:17", "0.46351", "0.7886", "45,312 samples/s", "95.00% now",
                  "90.00% over the run", "1 fetched, 1 created, 5 written back", "forward", "14.20 ms",
                  "844,064 of 1,688,128", "300.0 MiB of 4.0 GiB", "600.0 MiB of 16.0 GiB"):  # fmt: skip
        assert words in screen, words
    assert re.search("process +900.0 MiB", screen)


def test_the_screen_survives_a_terminal_without_unicode_or_colour():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    rich.console.Console(file=stream, width=80, no_color=True, force_terminal=True).print(VIEW)
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert "####" in text
    assert "\x1b[3" not in text  # no colour


def test_a_wide_screen_leaves_room_for_what_the_terminal_echoes():
    lines = draw(replace(VIEW, snapshot=replace(SNAPSHOT, mapped_bytes=192 << 20)), 132, 40)
    assert any(line.startswith("process    900.0 MiB, 192.0 MiB mapped  ") for line in lines)
    assert len(lines[-1]) < 132 - 20


@pytest.mark.parametrize("width", [20, 45, 79, 115, 116, 300])
def test_any_width_draws(width):
    assert all(len(line) <= width for line in draw(VIEW, width, 24))


def test_before_the_first_snapshot_and_without_evaluation():
    assert "preparing" in "\n".join(draw(LiveView(HEADER, None), 80, 24))
    fresh = Snapshot(**{**vars(SNAPSHOT), "evaluation": None, "num_steps": 0, "step": 0, "recent_steps": 0})
    assert "no evaluation yet" in "\n".join(draw(LiveView(HEADER, fresh), 80, 24))


def line_of(label: str, view: LiveView) -> str:
    """What stands behind a label."""
    (line,) = (line for line in draw(view, 80, 24) if line.startswith(f"{label:<11}"))
    return line[11:].rstrip()


def test_the_auc_says_what_there_is_to_expect():
    never, fresh = replace(HEADER, evaluates=False), replace(SNAPSHOT, evaluation=None)
    assert line_of("AUC", LiveView(HEADER, fresh)) == "no evaluation yet"
    assert line_of("AUC", LiveView(never, fresh)) == "-"
    odd = replace(fresh, evaluation=Evaluated(step=600, accuracy=0.5))
    assert line_of("AUC", LiveView(HEADER, odd)) == "- held-out labels are not 0 and 1, both"
    assert line_of("AUC", LiveView(HEADER, SNAPSHOT)) == "0.7886 held out"
    best, last = Evaluated(step=500, auc=0.8), Evaluated(step=600, auc=0.7886, logloss=0.4567)
    later = replace(SNAPSHOT, evaluation=last, best=best)
    assert line_of("AUC", LiveView(HEADER, later)) == "0.7886 held out, logloss 0.4567, best 0.8000 at step 500"


def test_before_the_first_snapshot_the_screen_says_what_happens():
    def last(**changes: object) -> str:
        return draw(replace(LiveView(HEADER, None), **changes), 80, 24)[-1].strip()

    assert last() == "preparing the first batches"
    assert last(step=7) == "step 7"
    assert last(step=7, doing="evaluating") == "evaluating"
    assert last(header=replace(HEADER, trains=False)) == "no step to train"


def test_temporary_slots_are_named():
    assert line_of("slots", LiveView(HEADER, SNAPSHOT)).endswith(" 844,064 of 1,688,128")
    small = replace(SNAPSHOT, cache_slots=1, temporary_slots=69, resident_slots=70)
    assert line_of("slots", LiveView(HEADER, small)).endswith("━ 70 of 1 and 69 temporary")
    half = replace(SNAPSHOT, cache_slots=1, temporary_slots=69, resident_slots=35)
    assert line_of("slots", LiveView(HEADER, half)).count("━") == 10


def test_the_live_console_redraws_four_times_a_second_and_leaves_the_last_screen():
    now = [0.0]
    stream = io.StringIO()
    console = LiveConsole(rich.console.Console(file=stream, width=80, force_terminal=True), clock=lambda: now[0])
    console.start(HEADER)
    sizes = []
    for _ in range(6):
        now[0] += 0.1
        console.update(SNAPSHOT)
        sizes.append(len(stream.getvalue()))
    assert [b > a for a, b in itertools.pairwise(sizes)] == [False, False, True, False, False]
    now[0] += 1
    console.advance(777)
    assert "step 777/1,000" in stream.getvalue()
    console.finish("1,000 steps")
    console.close()
    assert stream.getvalue().endswith("1,000 steps\n")
    assert "\x1b[?25h" in stream.getvalue()  # the cursor is back


def test_plain_lines_and_silence(capsys):
    stream = io.StringIO()
    console = open_console("auto", stream)
    assert isinstance(console, PlainConsole)
    console.start(HEADER)
    console.update(SNAPSHOT)
    console.finish("done")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[3] == (
        "step 610/1000  loss 0.46351  auc 0.7886  45,312 samples/s  hit 95.00%  wait 0.24 ms  eta 0:00:17"
    )
    silent = open_console("off")
    assert type(silent) is Console
    silent.start(HEADER)
    silent.update(SNAPSHOT)
    silent.finish("done")
    silent.close()
    assert capsys.readouterr().out == ""


def test_counters_add_and_subtract():
    assert CacheCounters(1100, 995, 440, 336, 62, 42, 80, 80, 5376, 10240) == (TOTAL + RECENT)
    assert TOTAL + RECENT - RECENT == TOTAL
    assert TOTAL.hit_ratio == 0.9
    assert TOTAL.unique_hit_ratio == 0.75
    assert CacheCounters().hit_ratio == CacheCounters().unique_hit_ratio == 0.0


def test_a_line_of_metrics():
    row = json.loads(json.dumps(metrics_row(SNAPSHOT), allow_nan=False))
    assert row["step"] == 610
    assert row["hit_ratio"] == 0.95
    assert row["hit_ratio_total"] == 0.9
    assert row["fetched_bytes"] == 2 * 128
    assert row["written_back_bytes"] == 10 * 128
    assert row["wait_ms"] == 0.24
    assert {f"{phase}_ms" for phase in PHASES} <= row.keys()


def test_host_memory_is_that_of_this_process():
    anonymous, mapped = host_memory()
    with mmap.mmap(-1, 50 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ballast:
        ballast[::4096] = b"x" * len(ballast[::4096])
        assert host_memory()[0] - anonymous > 40 << 20
    assert anonymous > 10 << 20
    assert mapped >= 0


def test_a_tiny_screen_says_what_the_training_thread_does():
    def slowest(depth: int) -> str:
        lines = draw(LiveView(HEADER, replace(SNAPSHOT, prefetch_depth=depth)), 120, 20)
        return next(line for line in lines if line.startswith("step  "))

    # Without a prefetch thread preparing is a part of a step.
    assert all(phase in slowest(0) and phase not in slowest(2) for phase in ("plan", "evict", "admit"))
    shares = [int(word.rstrip("%,")) for word in slowest(0).split() if "%" in word]
    assert 97 <= sum(shares) <= 103
