"""``python -m cachedlrm.check STORE``: reads all of a store and says what is in it, and what is not as it was written.

STORE is the folder of a store or a run's directory. Nothing is changed, and a trainer may go on meanwhile; its file
grows by what it writes until the check ends. Exit status: 0 all is well, 1 something is wrong, 2 there is no store.
"""

import sys

from cachedlrm.base.program import end_program, run_program, say, start_program

if __name__ == "__main__":
    start_program()

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO, cast

from cyclopts import Parameter

from cachedlrm.base.errors import UserError
from cachedlrm.base.output import SafeStream
from cachedlrm.base.text import as_argument
from cachedlrm.check.findings import Findings, describe
from cachedlrm.check.inspection import inspect_store
from cachedlrm.options.parsing import parse
from cachedlrm.options.run_files import STORE_FOLDER
from cachedlrm.options.types import GivenPath
from cachedlrm.store.environment import DATA_FILE

_HELP = """Read all of a store and say what is in it, and what is not as it was written.

Example: python -m cachedlrm.check runs/A

Exit status: 0 all is well, 1 something is wrong, 2 there is no store.
"""
_WRONG = 1


def find_store(path: Path) -> Path:
    """The folder of the store at ``path``, which is that, or a run's directory.

    Raises:
        UserError: there is none.
    """
    folders = [path / STORE_FOLDER, path]
    if (path / "config.toml").is_file():
        folders.append(_store_path(path))
    for folder in reversed(folders):
        if (folder / DATA_FILE).is_file():
            return folder
    raise UserError(
        f"{folders[-1]} holds no store ({DATA_FILE} is missing); name the folder of a store, or a run that keeps one"
    )


def _store_path(run_dir: Path) -> Path:
    """Where the ``config.toml`` of a run says that its store is."""
    config = run_dir / "config.toml"
    try:
        path = tomllib.loads(config.read_text(encoding="utf-8")).get("store", {}).get("store-path")
        return run_dir / STORE_FOLDER if path is None else Path(as_argument(path))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{config} is garbled; name the folder of the store instead of the run's directory") from error


def main(arguments: Sequence[str]) -> int:
    """Runs the command; its exit status."""
    found: list[Findings] = []
    status = run_program(lambda _: found.append(_check(arguments)), interrupted="interrupted; nothing was changed")
    return status or (_WRONG if any(findings.num_problems for findings in found) else 0)


def _check(arguments: Sequence[str]) -> Findings:
    path = find_store(parse(arguments, "python -m cachedlrm.check", _HELP, _command))
    findings = inspect_store(path)
    print(describe(path, findings), file=cast("TextIO", SafeStream(sys.stdout)), flush=True)
    say(f"{findings.num_problems:,} problems" if findings.num_problems else "no problem found", sys.stdout)
    return findings


def _command(
    store: Annotated[GivenPath, Parameter(help="Folder of a store, or directory of a run that keeps one.")], /
) -> Path:
    return store


if __name__ == "__main__":
    end_program(main(sys.argv[1:]))
