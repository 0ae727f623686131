"""report.json: what is written is read back, whoever wrote it."""

import json
import math

import pytest
from msgspec import structs

from cachedlrm.plan.prediction import PredictedCache, PredictedRun
from cachedlrm.report.record import InferenceReport, TableReport, read_report, report_json, report_values
from cachedlrm.report.scores import SCORES, CalibrationBin, Evaluated
from support.documents import TESTS
from support.reports import COUNTERS, TABLES, report, served_model

# As the README lists them; a key that leaves breaks somebody's script.
CONTRACT_KEYS = {
    "steps", "samples", "samples_per_s", "loss_last", "loss_mean", "auc", "table_rows", "cache_slots", "record_bytes",
    "lookups", "hit_ratio", "working_set_rows", "unique_hit_ratio", "first_touch_rows", "fetched_rows", "evicted_rows",
    "written_back_rows", "moved_rows_min", "device_peak_bytes", "device_bytes_breakdown", "host_peak_bytes",
    "mapped_peak_bytes", "phase_ms", "tables", "logloss", "normalized_entropy", "calibration", "average_precision",
}  # fmt: skip
FULL = report(
    miss_ratio_curve=(PredictedCache(10, 0.5, 4096.0),),
    prediction=PredictedRun(0.9, 5.0, 6.0, 1408.0, None, 2, 10),
    inference=InferenceReport(77, 8, 4, served_model(0.8, None, 0.5, 1000.0, 4096, 512), None),
    losses=(0.5, 0.25),
    moved_rows_min=80,
    accuracy=0.5,
    row_dtype="bf16",
    learning_rate=0.01,
    dense_learning_rate=0.001,
    vocabulary="3f2a91c0d4e5b678",
    evaluations=(Evaluated(step=5, auc=0.5), Evaluated(step=10, auc=0.75, logloss=0.5, gauc=0.5)),
    evaluated_step=10,
    best_step=10,
    calibration_bins=(CalibrationBin(0.25, 0.5, 100),),
    logloss=0.5,
    gauc=0.5,
)
OLDER = (
    *SCORES, "loss_recent", "loss_of_mean", "evaluated_step", "best_step", "stopped", "evaluations", "vocabulary",
    "calibration_bins", "learning_rate", "dense_learning_rate",
    "host_limit_bytes", "prediction", "miss_ratio_curve", "tables", "losses", "inference",
    "row_dtype",
)  # fmt: skip
"""Keys that reports of earlier versions may lack."""


def test_the_report_has_the_keys_of_the_contract():
    written = json.loads(report_json(report()))
    assert written.keys() >= CONTRACT_KEYS
    assert written["moved_rows_min"] is written["prediction"] is written["accuracy"] is None
    assert "losses" not in written
    assert "inference" not in written
    assert json.loads(report_json(FULL))["losses"] == [0.5, 0.25]
    assert written["tables"][1] == {
        "name": "emb_l.1.weight_q", "rows": 290, "lookups": 400, "hit_ratio": 0.8125, "working_set_rows": 150,
        "touched_rows": 38, "user_name": None,
    }  # fmt: skip


@pytest.mark.parametrize("made", [report(), FULL], ids=["plain", "full"])
def test_a_report_comes_back_with_its_types(made):
    assert read_report(report_json(made)) == made
    assert json.loads(report_json(made)) == json.loads(json.dumps(report_values(made)))
    assert made.counters == structs.replace(COUNTERS, moved_rows_min=made.moved_rows_min or 0)


def test_missed_lookups_are_whole():
    assert [table.missed_lookups for table in TABLES] == [20, 75, 5]
    assert TableReport("emb_l.0", 3, 0, None, 0, 0).missed_lookups == 0
    table = TableReport("emb_l.0", 3, 10**12, (10**12 - 7) / 10**12, 0, 0)
    assert table.missed_lookups == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_report_is_json_whatever_was_measured(bad):
    worst = report(loss_last=bad, loss_mean=bad, auc=bad, samples_per_s=bad, losses=(0.5, bad))
    written = json.loads(report_json(worst))
    assert written["loss_last"] is written["auc"] is None
    assert written["losses"] == [0.5, None]
    assert read_report(report_json(worst)).loss_mean is None


def test_a_report_of_the_version_before_is_read():
    text = (TESTS / "report" / "report_before.json").read_text()
    made = read_report(text)
    assert (made.steps, made.moved_rows_min, made.tables[1].name) == (20, 761, "emb_l.1")
    assert json.loads(report_json(made)) == json.loads(text)


FOREIGN = (None, -1, 1 << 70, "x", True, [1], {"a": "b"}, [{"name": "x"}], 1.5)


@pytest.mark.parametrize("key", report_values(FULL))
def test_foreign_values_are_refused_by_name(key):
    values, refusals = report_values(FULL), []
    for value in FOREIGN:
        try:
            read_report(json.dumps({**values, key: value, "unknown": value}))
        except ValueError as error:
            refusals.append(str(error))
    assert refusals
    assert all(f"`$.{key}" in refusal or "missing required field" in refusal for refusal in refusals), refusals
    rest = json.dumps({name: value for name, value in values.items() if name != key})
    if key in OLDER:
        read_report(rest)
    else:
        with pytest.raises(ValueError, match=f"missing required field `{key}`"):
            read_report(rest)


@pytest.mark.parametrize(("key", "value"), [("hit_ratio", True), ("steps", 1.0), ("steps", False), ("loss_mean", "1")])
def test_a_value_of_another_type_is_refused(key, value):
    with pytest.raises(ValueError, match=rf"`\$\.{key}`"):
        read_report(json.dumps({**report_values(report()), key: value}))


def test_a_table_has_the_users_name_where_there_is_one():
    names = ["emb_l.0", "emb_l.1.weight_q", "emb_l.2.embs"]
    assert [TableReport(name, 3, 0, None, 0, 0).title for name in names] == names
    titles = [TableReport(name, 3, 0, None, 0, 0, "user\n id").title for name in names]
    assert titles == ["user? id", "user? id.weight_q", "user? id.embs"]
