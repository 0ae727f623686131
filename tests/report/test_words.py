"""A run in words."""

from dataclasses import replace

from cachedlrm.options.config import Options
from cachedlrm.plan.prediction import PredictedRun
from cachedlrm.report.record import InferenceReport
from cachedlrm.report.words import figures, foreseen, key_figures, most_missed, one_line, served_table, summary
from support.reports import NO_STEP, TABLES, report, run_of, served_model

SERVED = InferenceReport(
    77, 8, 4, served_model(0.8, None, 0.5, 1000.0, 4096, 512), served_model(0.75, 0.7, None, 2000.0, 1024, 128)
)


def test_the_last_line_on_the_terminal():
    assert one_line(report(moved_rows_min=80)) == (
        "10 steps, 500 samples/s, mean loss 0.50000, AUC 0.7500, 90.00% hits, 1.250 of the rows that MIN moves"
    )
    assert one_line(report(loss_mean=None, auc=None)) == "10 steps, 500 samples/s, 90.00% hits"
    assert one_line(report(**NO_STEP)) == "no step was trained; the model was built and initialised"
    assert one_line(report(inference=SERVED)) == (
        "77 held-out samples, 2,000 samples/s, accuracy 75.000%, AUC 0.7000, loss -"
    )


def test_a_paragraph():
    words = summary(run_of(report()))
    assert "trained on 1,000 samples in 10 steps at 500 samples/s. On held-out samples: AUC 0.7500. Its" in words
    assert "13.8 KiB of rows moved between device and store, 1.4 KiB a step, and training waited 0.50 ms" in words


def test_much_waiting_is_said():
    options = replace(Options(), cache=replace(Options().cache, prefetch_depth=0))
    slow = report(phase_ms=report().phase_ms | {"wait": 20.0})
    waiting = {name: (figure, words) for name, figure, words in key_figures(run_of(slow, options=options))}
    assert waiting["Waiting for rows"] == (
        "12.1%", "of training's time: rows come late; --prefetch-depth or a larger cache"
    )  # fmt: skip
    fast = dict(row[:2] for row in key_figures(run_of(report(auc=None))))
    assert (fast["Mean loss"], fast["Waiting for rows"]) == ("0.50000", "0.2%")


def test_figures_have_the_same_names_for_every_run():
    trained, nothing, served = (
        figures(run_of(made)) for made in (report(), report(**NO_STEP), report(**NO_STEP, inference=SERVED))
    )
    assert list(trained) == list(nothing) == list(served)
    assert trained["rows brought in a step"] == "10.0"
    assert trained["rows kept on the device"] == nothing["rows kept on the device"] == "50 (5.00%)"
    assert nothing["samples a second"] == nothing["hit ratio over lookups"] == "-"
    assert served["rows kept on the device"] == "-"
    assert served["held-out samples a second"] == "2,000"


def test_what_was_predicted_stands_beside_what_happened():
    prediction = PredictedRun(0.895, 0.0, 6.0, 1408.0, 1000.0, 2, 10)
    rows, note = foreseen(report(prediction=prediction))
    assert rows[0] == ("hit ratio", "89.50%", "90.00%", "+0.50 points")
    assert rows[2] == ("rows fetched a step", "0", "4", "-")
    assert rows[4] == ("samples a second, at most", "1,000", "500", "50.0% of it")
    assert note.startswith("Predicted from the ids of 2 of 10 batches;")
    unknown = replace(prediction, samples_per_s_at_most=None)
    assert foreseen(report(prediction=unknown))[0][4] == ("samples a second, at most", "-", "500", "-")


def test_of_equal_tables_the_earlier_comes_first():
    equal = [replace(TABLES[0], name=name) for name in "ab"]
    assert [table.name for table in most_missed([*equal, TABLES[1]])] == ["emb_l.1.weight_q", "a", "b"]


def test_a_served_model_before_and_after_quantisation():
    assert served_table(SERVED)[:4] == [
        ("77 samples", "before quantisation", "after"),
        ("accuracy", "80.000%", "75.000%"),
        ("AUC", "-", "0.70000"),
        ("loss", "0.50000", "-"),
    ]
    assert served_table(replace(SERVED, after=None))[0] == ("77 samples", "")
