"""``python -m cachedlrm.check STORE``: reads all of a store and says what is in it, and what is not as it was written.

STORE is the folder of a store or a run's directory. Nothing is changed, and a trainer may go on meanwhile; its file
grows by what it writes until the check ends. Exit status: 0 all is well, 1 something is wrong, 2 there is no store.
"""

import sys

from cachedlrm.base.program import end_program, run_program, say, start_program

if __name__ == "__main__":
    start_program()

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from cachedlrm.base.errors import UserError
from cachedlrm.base.output import Output
from cachedlrm.check.findings import Findings, describe
from cachedlrm.check.inspection import inspect_store
from cachedlrm.options.command_line import load_options
from cachedlrm.options.run_files import STORE_FOLDER
from cachedlrm.run.checkpoint import store_folder
from cachedlrm.store.database import DATA_FILE

_USAGE = "usage: python -m cachedlrm.check STORE"
_WRONG = 1


def find_store(path: Path) -> Path:
    """The folder of the store at ``path``, which is that, or a run's directory.

    Raises:
        UserError: there is none.
    """
    config = path / "config.toml"
    folders = [path / STORE_FOLDER, path]
    if config.is_file():
        folders.append(store_folder(load_options(config), path))
    for folder in reversed(folders):
        if (folder / DATA_FILE).is_file():
            return folder
    raise UserError(
        f"{folders[-1]} holds no store ({DATA_FILE} is missing); name the folder of a store, or a run that keeps one"
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    found: list[Findings] = []
    status = run_program(lambda _: found.extend(_check(arguments)), interrupted="interrupted; nothing was changed")
    return status or (_WRONG if any(findings.num_problems for findings in found) else 0)


def _check(arguments: Sequence[str]) -> list[Findings]:
    flags = [argument for argument in arguments if argument.startswith("-")]
    output = cast("TextIO", Output(sys.stdout))
    if "-h" in flags or "--help" in flags:
        print(f"{_USAGE}\n\n{__doc__}", file=output, flush=True)
        return []
    if flags:
        raise UserError(f"unknown option {flags[0]}; {_USAGE}")
    if len(arguments) != 1:
        raise UserError(f"{len(arguments)} paths given where one is needed; {_USAGE}")
    if not arguments[0]:  # usually a shell variable that is not set
        raise UserError(f"STORE is empty; {_USAGE}")
    path = find_store(Path(arguments[0]))
    findings = inspect_store(path)
    print(describe(path, findings), file=output, flush=True)
    say(f"{findings.num_problems:,} problems" if findings.num_problems else "no problem found", sys.stdout)
    return [findings]


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
