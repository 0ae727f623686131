"""Killed at random instants, resumed, the same bits. ``make torture`` does it 200 times."""

import subprocess
import sys

import pytest

from support.documents import TESTS


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="the trainer is forked")
def test_kill_9_at_random_instants():
    script = TESTS / "support" / "kill.py"
    done = subprocess.run([sys.executable, script, "12", "4"], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 passed, 0 failed" in done.stdout
