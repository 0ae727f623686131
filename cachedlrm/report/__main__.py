"""``python -m cachedlrm.report RUN_DIR... [--html FILE]``: runs side by side. Nothing in their directories changes."""

import sys

from cachedlrm.base.program import end_program, run_program, say, start_program

if __name__ == "__main__":
    start_program()

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO, cast

from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import whole_file, writable_file
from cachedlrm.base.output import SafeStream
from cachedlrm.options.parsing import parse
from cachedlrm.options.run_files import LOCK_FILE, RUN_FILES
from cachedlrm.options.types import GivenPath
from cachedlrm.report.comparison import comparison_page, comparison_text
from cachedlrm.report.html import run_page
from cachedlrm.report.runs import load_run

_HELP = """Compare runs: the options in which they differ, and their figures, side by side.

Example: python -m cachedlrm.report runs/A runs/B --html comparison.html
"""


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(lambda _: _report(arguments), interrupted="interrupted; nothing was written")


def _report(arguments: Sequence[str]) -> None:
    run_dirs, html = parse(arguments, "python -m cachedlrm.report", _HELP, _command)
    if not run_dirs:
        raise UserError("no run is named; python -m cachedlrm.report RUN_DIR... takes the directories of runs")
    target = None if html is None else writable_file(html, "--html", run_dirs, (*RUN_FILES, LOCK_FILE))
    runs = [load_run(path) for path in run_dirs]
    output = SafeStream(sys.stdout)
    width = shutil.get_terminal_size().columns if output.isatty() else None
    print(comparison_text(runs, width), file=cast("TextIO", output), flush=True)
    if target is not None:
        page = run_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
        with whole_file(target) as file:
            file.write(page.encode("utf-8"))
        say(f"page: {html}", sys.stdout)


def _command(
    *run_dir: Annotated[GivenPath, Parameter(help="Directories of runs that ended.")],
    html: Annotated[
        GivenPath | None,
        Parameter(help="File for a page with the curves of all runs, or with the whole report of one."),
    ] = None,
) -> tuple[tuple[Path, ...], Path | None]:
    return run_dir, html


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
