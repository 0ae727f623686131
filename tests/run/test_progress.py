"""What a checkpoint keeps of a run's figures, and what is made of it."""

import json

import msgspec
import pytest

from cachedlrm.run.progress import Progress, Tally
from cachedlrm.train import main
from support.runs import one_line, train

BEFORE = """
{
"steps": 8,
"samples": 800,
"counters": {"lookups": 3200, "hit_lookups": 2424, "working_set_rows": 1138, "resident_rows": 642,
"first_touch_rows": 465, "fetched_rows": 31, "evicted_rows": 196, "written_back_rows": 196, "fetched_bytes": 1984,
"written_back_bytes": 12544, "moved_rows_min": 465},
"counters_at_snapshot": {"lookups": 3200, "hit_lookups": 2424, "working_set_rows": 1138, "resident_rows": 642,
"first_touch_rows": 465, "fetched_rows": 31, "evicted_rows": 196, "written_back_rows": 196, "fetched_bytes": 1984,
"written_back_bytes": 12544, "moved_rows_min": 465},
"table_counts": [[800, 517, 484, 220], [800, 686, 198, 30], [800, 521, 416, 210], [800, 700, 40, 5]],
"losses": [0.5759440660476685, 0.552848219871521, 0.5962161421775818, 0.561856210231781, 0.6244361996650696,
0.5850047469139099, 0.5910214781761169, 0.6385114192962646],
"loss_sum": 4.725838482379913,
"last_loss": 0.6385114192962646,
"evaluated": true,
"evaluated_at": 8,
"auc": 0.700025464731347,
"accuracy": 0.748,
"phase_totals": {"plan": 2.208385000585622, "wait": 11.62132399940674, "evict": 0.4926510000586859, "admit":
1.0528909997447045, "forward": 21.914164000008896, "backward": 4.164102999766328, "dense_step": 0.6701269999211945,
"row_step": 1.3185600002998399},
"seconds": 0.07024749499987593,
"seconds_at_snapshot": 0.07003981599996223,
"samples_at_snapshot": 800,
"warm": [100, 0.003058063000025868],
"pending_losses": []
}
"""
"""As the version before this class wrote it."""


def test_a_tally_of_the_version_before_is_read():
    saved = json.loads(BEFORE)
    tally = msgspec.convert(saved, Tally)
    assert (tally.steps, tally.counters.first_touch_rows, tally.table_counts[2]) == (8, 465, [800, 521, 416, 210])
    assert tally.warm == (100, 0.003058063000025868)
    del saved["evaluated"]  # evaluated_at says it
    assert msgspec.to_builtins(tally) | {"warm": list(tally.warm)} == saved


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
