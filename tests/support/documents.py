"""The code blocks of README.md, CONTRIBUTING.md and docs/."""

import re
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        document: path from the root.
        line: of its first line of text, from 1.
        language: after the fence; empty for console commands and drawings.
        text: between the fences.
    """

    document: str
    line: int
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(document.relative_to(ROOT).as_posix(), text[: match.start(2)].count("\n") + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def all_blocks(language: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in blocks(document) if block.language == language]
