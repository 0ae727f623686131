"""Draws the pictures of README.md from one short run: ``make pictures``.

- live.svg: the live screen at the middle of the run. The SVG loads nothing: its text is set in the reader's own
  monospaced font.
- report.png: the top of the run's report.html, photographed by a Chromium without a window.

Losses, hits and rows are the same at each call; times are those of the machine.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import chdir
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import rich.console

from cachedlrm import train
from cachedlrm.report.console import Console
from cachedlrm.report.live_view import History, LiveView, RunHeader
from cachedlrm.report.metrics import Snapshot

FOLDER = Path(__file__).resolve().parent
OPTIONS = ["--gpu-cache-ratio", "0.01", "--report-min", "--steps", "400", "--print-freq", "10"]
SCREEN = (92, 31)  # columns and lines
PAGE = (1180, 1516)  # pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Camera(Console):
    """A run's console that keeps the screen of the middle of the run."""

    def __init__(self) -> None:
        self._losses, self._hit_ratios = History(), History()
        self.view: LiveView | None = None

    def start(self, header: RunHeader) -> None:
        self._header = header

    def update(self, snapshot: Snapshot) -> None:
        if snapshot.step > snapshot.num_steps // 2:
            return
        self._losses.add(snapshot.loss)
        self._hit_ratios.add(snapshot.recent.hit_ratio)
        self.view = LiveView(self._header, snapshot, self._losses.values(), self._hit_ratios.values())


def draw_screen(view: LiveView, path: Path) -> None:
    columns, lines = SCREEN
    terminal = rich.console.Console(
        file=StringIO(), record=True, force_terminal=True, color_system="truecolor", width=columns, height=lines
    )
    terminal.print(view)
    svg = terminal.export_svg(title=" ".join(["train", *OPTIONS]), unique_id="live")
    path.write_text(re.sub(r"@font-face {.*?}\s*", "", svg, flags=re.DOTALL))  # rich's, loaded from a server


def photograph(page: Path, path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"{path} was not drawn: there is none of {', '.join(BROWSERS)}; install one (apt-get install chromium)")
        return
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
            f"--window-size={PAGE[0]},{PAGE[1]}", f"--screenshot={path}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def main() -> int:
    camera = Camera()
    with tempfile.TemporaryDirectory() as directory, chdir(directory):
        with patch.object(train, "open_console", lambda ui: camera):
            status = train.main([*OPTIONS, "--run-dir", "runs/first"])
        if status or camera.view is None:
            return status or 1
        draw_screen(camera.view, FOLDER / "live.svg")
        photograph(Path("runs/first/report.html").resolve(), FOLDER / "report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
