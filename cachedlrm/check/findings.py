"""The findings of a check of a store, and their text."""

from dataclasses import dataclass, field
from pathlib import Path

from cachedlrm.base.text import aligned, printable
from cachedlrm.store.checkpoint_value import Checkpoint
from cachedlrm.store.records import DTYPES_BEFORE

_MOST_PROBLEMS = 20


@dataclass
class GroupCounts:
    """The contents of a group's segments.

    Attributes:
        num_rows: of its tables.
        record_bytes: of one record.
        segments: of the checkpoint.
        records: in them.
        live: of these, the newest of their rows.
        later_segments: not committed by a checkpoint.
        later_records: in them.
    """

    num_rows: int
    record_bytes: int
    segments: int = 0
    records: int = 0
    live: int = 0
    later_segments: int = 0
    later_records: int = 0


@dataclass
class Findings:
    """The contents of a store, and its faults.

    Attributes:
        identity: what it says it is of; None: nothing was ever committed to it, or it is damaged.
        checkpoint: the last one; None: there is none, or it is damaged.
        groups: of tables.
        num_pages: of the file.
        free_pages: of these, without content.
        page_bytes: of one.
        problems: the first of them, one line each.
        num_problems: of all.
    """

    identity: dict[str, str] | None = None
    checkpoint: Checkpoint | None = None
    groups: list[GroupCounts] = field(default_factory=list)
    num_pages: int = 0
    free_pages: int = 0
    page_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    def wrong(self, problem: str) -> None:
        """Notes a problem."""
        self.num_problems += 1
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)


def describe(path: Path, findings: Findings) -> str:
    """The findings as text."""
    checkpoint = findings.checkpoint
    lines = [("store", str(path))]
    if findings.identity is not None:
        lines.append(("format", f"{findings.identity.get('format')}, {findings.identity.get('byte-order')}-endian"))
        kept = {**DTYPES_BEFORE, **findings.identity}
        lines.append(("rows", f"{kept['row-dtype']}, their optimizer state {kept['row-state-dtype']}"))
    if checkpoint is not None:
        tensors = len(checkpoint.dense) + sum(map(len, checkpoint.dense_state.values()))
        lines.append(("checkpoint", f"after batch {checkpoint.batches:,}, with {tensors} dense tensors"))
    elif not findings.num_problems:
        lines.append(("checkpoint", "none yet: --resume would begin anew"))
    if findings.num_pages:
        size = findings.num_pages * findings.page_bytes
        free = findings.free_pages * findings.page_bytes
        lines.append(("file", f"{size:,} bytes, {free:,} of them free to be used again"))
    text = aligned(lines)
    if findings.groups:
        header = ("group", "rows", "record bytes", "segments", "records", "live", "dead", "bytes of live records")
        rows = [
            (
                str(number),
                *(f"{count:,}" for count in (g.num_rows, g.record_bytes, g.segments, g.records)),
                *(f"{count:,}" for count in (g.live, g.records - g.live, g.live * g.record_bytes)),
            )
            for number, g in enumerate(findings.groups)
        ]
        text += f"\n\n{aligned([header, *rows])}\n"
    for number, group in enumerate(findings.groups):
        if group.later_segments:
            text += (
                f"\ngroup {number}: {group.later_segments:,} more segments with {group.later_records:,} records are "
                "not committed by a checkpoint; --resume would drop them"
            )
    for problem in findings.problems:
        text += f"\nwrong: {printable(problem)}"
    if findings.num_problems > len(findings.problems):
        text += f"\nand {findings.num_problems - len(findings.problems):,} more"
    return text
