"""Runs as they lie in their directories."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cachedlrm.command_line import load_options
from cachedlrm.config import Options
from cachedlrm.errors import UserError
from cachedlrm.metrics import MetricsRow, parse_metrics_row
from cachedlrm.report.typed_report import Report, parse_report


@dataclass(frozen=True)
class Run:
    """A run that ended.

    Attributes:
        name: of its directory.
        report: what it measured.
        rows: its lines of metrics, steps increasing.
        options: resolved.
        config: its ``config.toml``.
    """

    name: str
    report: Report
    rows: Sequence[MetricsRow]
    options: Options
    config: str


def load_run(directory: Path) -> Run:
    """A run from its directory; changes nothing there.

    Raises:
        UserError: it is no run that ended, or a file of it is damaged; names the file.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder; name the directory of a run")
    path = directory / "report.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; name the directory of a run that ended")
    try:
        report = parse_report(json.loads(_read_text(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the report of a run: {error}; name another run, or repeat this one") from error
    config = directory / "config.toml"
    options = load_options(config)
    return Run(str(directory), report, _read_metrics(directory / "metrics.jsonl"), options, _read_text(config))


def _read_metrics(path: Path) -> list[MetricsRow]:
    """The lines of ``metrics.jsonl``; a run of no steps has no such file."""
    rows: list[MetricsRow] = []
    if not path.exists():
        return rows
    for number, line in enumerate(_read_text(path).rstrip("\n").split("\n"), 1):
        try:
            row = parse_metrics_row(line.encode())
            step, before = row["step"], rows[-1]["step"] if rows else 0
            if not (step or 0) > (before or 0):
                raise ValueError(f"its step {step} does not follow step {before}")
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}; correct the line or remove it") from error
        rows.append(row)
    return rows


def _read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the run's directory") from error
    except ValueError as error:
        raise UserError(f"{path} is not text in UTF-8; name another run, or repeat this one") from error
