"""What a checkpoint keeps of a run's figures, and what is made of it."""

import pytest

from cachedlrm.run.progress import Progress
from cachedlrm.train import main
from support.runs import one_line, train


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": -1}, "Expected `int` >= 0 - at `$.steps`"),
        ({"seconds": "1"}, "Expected `float`, got `str` - at `$.seconds`"),
        ({"counters": {"lookups": None}}, "at `$.counters.lookups`"),
        ({"table_counts": [[1, 2, 3, 4]]}, "table_counts are not those of 4 tables"),
    ],
)
def test_figures_that_do_not_read_are_one_line(tmp_path, capsys, monkeypatch, change, words):
    state = Progress.state
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "state", lambda self: state(self) | change)
        assert train(tmp_path / "run", "--steps=2", "--checkpoint-every=2") == 0
    message = one_line(capsys, main([f"--resume={tmp_path / 'run'}", "--steps=3", "--ui=off"]))
    assert "the checkpoint's progress does not read" in message
    assert words in message
    assert message.endswith("; start the run again\n")
