"""``python -m cachedlrm.prepare criteo|avazu|parquet|csv PATH... --out DIR``: raw click logs to training files."""

import sys

from cachedlrm.base.program import end_program, run_program, start_program

if __name__ == "__main__":
    start_program()

from collections.abc import Sequence

from cachedlrm.base.errors import check_package
from cachedlrm.prepare.options import parse_command_line
from cachedlrm.prepare.progress import Display

_INTERRUPTED = "interrupted; the same command resumes"


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    return run_program(lambda _: _prepare(arguments), interrupted=_INTERRUPTED)


def _prepare(arguments: Sequence[str]) -> None:
    command = parse_command_line(arguments)
    check_package("preparing data", "pyarrow", "prepare")
    import torch  # noqa: PLC0415 - slow, and no mistake on the command line should wait for it

    from cachedlrm.prepare.formats import make_format  # noqa: PLC0415 - needs an optional package
    from cachedlrm.prepare.pipeline import prepare  # noqa: PLC0415

    torch.set_num_threads(1)  # blocks are parsed side by side
    prepare(make_format(command), command.paths, command.options, Display(command.options.ui, sys.stdout))


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
