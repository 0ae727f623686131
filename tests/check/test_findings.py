"""What a check prints of what it found."""

from pathlib import Path

import numpy as np

from cachedlrm.check.findings import Findings, GroupCounts, describe
from cachedlrm.store.checkpoint_value import Checkpoint

STORE = Path("run/store")


def test_a_healthy_store_in_full():
    weight = np.zeros(2, np.float32)
    findings = Findings(
        {"format": "2", "byte-order": "little", "row-dtype": "bf16"},
        Checkpoint(1234, ((7, 0),), {"a": weight, "b": weight}, {"a": {"sum": weight}}),
        [GroupCounts(1000, 64, 3, 1500, 900, 2, 40), GroupCounts(5, 32)],
        num_pages=10,
        free_pages=3,
        page_bytes=4096,
    )
    lines = [" ".join(line.split()) for line in describe(STORE, findings).splitlines()]
    assert lines == [
        "store run/store",
        "format 2, little-endian",
        "rows bf16, their optimizer state fp32",
        "checkpoint after batch 1,234, with 3 dense tensors",
        "file 40,960 bytes, 12,288 of them free to be used again",
        "",
        "group rows record bytes segments records live dead bytes of live records",
        "0 1,000 64 3 1,500 900 600 57,600",
        "1 5 32 0 0 0 0 0",
        "",
        "group 0: 2 more segments with 40 records are not committed by a checkpoint; --resume would drop them",
    ]


def test_a_store_that_was_never_committed():
    text = describe(STORE, Findings())
    assert "none yet: --resume would begin anew" in text
    assert len(text.splitlines()) == 2


def test_all_problems_are_counted_and_the_first_printed():
    findings = Findings()
    for number in range(25):
        findings.wrong(f"problem\n{number}")
    assert findings.num_problems == 25
    lines = describe(STORE, findings).splitlines()
    assert [line for line in lines if line.startswith("wrong: ")] == [f"wrong: problem?{n}" for n in range(20)]
    assert lines[-1] == "and 5 more"
    assert not any("--resume" in line for line in lines), "no promise of a damaged store"
