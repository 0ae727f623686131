"""What a checkpoint keeps of a run's figures."""

import json

import msgspec

from cachedlrm.report.scores import Evaluated
from cachedlrm.run.tally import Tally, read_tally

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
    tally = read_tally(saved, num_tables=4)
    assert (tally.steps, tally.counters.first_touch_rows, tally.table_counts[2]) == (8, 465, [800, 521, 416, 210])
    assert tally.warm == (800, saved["seconds"])  # the rate is that of the process that goes on
    assert tally.evaluations == [Evaluated(step=8, auc=0.700025464731347, accuracy=0.748)]
    assert (tally.steps_at_snapshot, tally.label_sum) == (8, None)
    for name in ("evaluated", "evaluated_at", "auc", "accuracy", "warm"):
        del saved[name]
    assert msgspec.to_builtins(tally).items() >= saved.items()


def test_a_tally_comes_back():
    tally = read_tally({}, num_tables=4)
    tally.evaluations = [Evaluated(step=3, auc=0.5), Evaluated(step=5, logloss=0.25, gauc=0.75)]
    saved = json.loads(json.dumps(msgspec.to_builtins(tally)))
    assert read_tally(saved, num_tables=4) == tally
    assert Tally.__dataclass_fields__.keys() == saved.keys()
