"""``python -m cachedlrm.report RUN_DIR... [--html FILE]``: runs side by side. Nothing in their directories changes."""

import sys

from cachedlrm.base.program import end_program, run_program, say, start_program

if __name__ == "__main__":
    start_program()

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO, cast

import cyclopts
from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.files import whole_file, writable_file
from cachedlrm.base.output import Output
from cachedlrm.options.parsing import make_app, mistake, read_arguments
from cachedlrm.options.run_files import LOCK_FILE, RUN_FILES
from cachedlrm.report.comparison import comparison_page, comparison_text
from cachedlrm.report.html import run_page
from cachedlrm.report.runs import load_run

_HELP = """Compare runs: the options in which they differ, and their figures, side by side.

Example: python -m cachedlrm.report runs/A runs/B --html comparison.html
"""


@dataclass(frozen=True)
class _Request:
    """What the command line asks for."""

    run_dirs: tuple[Path, ...]
    html: Path | None


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(lambda _: _report(arguments), interrupted="interrupted; nothing was written")


def _report(arguments: Sequence[str]) -> None:
    request = _parse(arguments)
    target = None
    if request.html is not None:
        target = writable_file(request.html, "--html", request.run_dirs, (*RUN_FILES, LOCK_FILE))
    runs = [load_run(path) for path in request.run_dirs]
    output = Output(sys.stdout)
    width = shutil.get_terminal_size().columns if output.isatty() else None
    print(comparison_text(runs, width), file=cast("TextIO", output), flush=True)
    if target is not None:
        page = run_page(runs[0]) if len(runs) == 1 else comparison_page(runs)
        with whole_file(target) as file:
            file.write(page.encode("utf-8"))
        say(f"page: {request.html}", sys.stdout)


def _parse(arguments: Sequence[str]) -> _Request:
    """The command line.

    Raises:
        UserError: an option or value is wrong; names it.
        SystemExit: after ``--help`` or ``--version``.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument or argument == "--html=":  # a variable that is not set
            raise UserError(f"{'--html' if '--html' in (before, argument[:-1]) else 'RUN_DIR'} is empty; give a path")
    app = make_app("python -m cachedlrm.report", _HELP)

    @app.default
    def collect(
        *run_dir: Annotated[Path, Parameter(help="Directories of runs that ended.")],
        html: Annotated[
            Path | None,
            Parameter(help="Write a page of one file with the curves of all runs; of one run, its report."),
        ] = None,
    ) -> _Request:
        return _Request(run_dir, html)

    try:
        request = read_arguments(app, arguments, _Request)
    except cyclopts.CycloptsError as error:
        raise mistake(str(error)) from error
    if not request.run_dirs:
        raise UserError("no run is named; python -m cachedlrm.report RUN_DIR... takes the directories of runs")
    return request


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
