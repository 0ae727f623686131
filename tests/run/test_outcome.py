"""The record of a run is of the state that it leaves."""

from cachedlrm.report.scores import SCORES
from support.runs import report, train


def test_the_record_has_the_scores_of_the_last_evaluation(tmp_path):
    assert train(tmp_path / "run", "--steps=6", "--test-freq=3", "--gauc-table=1") == 0
    made = report(tmp_path / "run")
    assert [one["step"] for one in made["evaluations"]] == [3, 6]
    assert {name: made[name] for name in SCORES} == {name: made["evaluations"][1][name] for name in SCORES}
    assert None not in {made[name] for name in SCORES}
    assert made["evaluated_step"] == 6
    assert made["loss_of_mean"] > 0.4
    assert made["stopped"] is None


def test_a_run_without_evaluations_has_no_scores(tmp_path):
    assert train(tmp_path / "run", "--steps=3", "--test-freq=-1") == 0
    made = report(tmp_path / "run")
    assert made["evaluations"] == made["calibration_bins"] == []
    assert "gauc" not in made
    assert {made[name] for name in SCORES if name != "gauc"} == {None}
