"""Runs as their directories hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cachedlrm.base.errors import UserError
from cachedlrm.options.profiles import load_resolved
from cachedlrm.options.resolved import Resolved
from cachedlrm.report.metrics import MetricsRow, parse_metrics_row
from cachedlrm.report.record import Report, read_report


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
    options: Resolved
    config: str


def load_run(directory: Path) -> Run:
    """A run from its directory; changes nothing there.

    Raises:
        UserError: it is no run that ended, it went on since, or one of its files is damaged; names the file.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder; name the directory of a run")
    path = directory / "report.json"
    try:
        report = read_report(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not the report of a run: {error}; name another run, or repeat this one") from error
    config = _read_text(directory / "config.toml")
    path = directory / "metrics.jsonl"
    rows = _read_metrics(path) if report.steps else []  # without steps there is no such file
    if rows and (rows[-1]["step"] or 0) > report.steps:
        raise UserError(
            f"{directory} went on beyond its report: {path} is at step {rows[-1]['step']}, report.json at step "
            f"{report.steps}; let it end, or finish it with python -m cachedlrm.train --resume {directory}"
        )
    return Run(str(directory), report, rows, load_resolved(directory / "config.toml"), config)


def _read_metrics(path: Path) -> list[MetricsRow]:
    """The lines of ``metrics.jsonl``."""
    rows: list[MetricsRow] = []
    for number, line in enumerate(_read_text(path).rstrip("\n").split("\n"), 1):
        try:
            row = parse_metrics_row(line.encode())
            step, before = row["step"] or 0, (rows[-1]["step"] or 0) if rows else 0
            if not step > before:
                raise ValueError(f"its step {step} does not follow step {before}")
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}; correct the line or remove it") from error
        rows.append(row)
    return rows


def _read_text(path: Path) -> str:
    """A text file.

    Raises:
        UserError: it is missing, cannot be read, or is no text.
    """
    if not path.is_file():  # reading a pipe would not end
        raise UserError(
            f"{path} is {'no file' if path.exists() else 'missing'}; name the directory of a run that ended"
        )
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the run's directory") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; name another run, or repeat this one") from error
