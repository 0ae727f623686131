"""What was predicted of a run beside what it did."""

from cachedlrm.report.axes import BYTES, NUMBER, RATIO
from cachedlrm.report.typed_report import Report

HEADER = ("", "predicted", "measured", "difference")


def foreseen(report: Report) -> tuple[list[tuple[str, str, str, str]], str]:
    """The rows of a table under `HEADER`, and a note below it, of a run that has a prediction."""
    prediction, steps = report.prediction, max(1, report.steps)
    assert prediction is not None
    rows = []
    for name, predicted, measured, unit in (
        ("hit ratio", prediction.hit_ratio, report.hit_ratio, RATIO),
        ("rows created a step", prediction.first_touch_rows_per_step, report.first_touch_rows / steps, NUMBER),
        ("rows fetched a step", prediction.fetched_rows_per_step, report.fetched_rows / steps, NUMBER),
        ("bytes moved a step", prediction.moved_bytes_per_step, report.moved_bytes_per_step, BYTES),
        ("samples a second, at most", prediction.samples_per_s_at_most, report.samples_per_s, NUMBER),
    ):
        if predicted is None or measured is None:
            difference = "-"
        elif unit is RATIO:
            difference = f"{(measured - predicted) * 100:+.2f} points"
        elif name.endswith("at most"):
            difference = f"{measured / predicted:.1%} of it" if predicted else "-"
        else:
            difference = f"{measured / predicted - 1:+.1%}" if predicted else "-"
        said = ["-" if value is None else unit.say(value) for value in (predicted, measured)]
        rows.append((name, said[0], said[1], difference))
    note = (
        f"Predicted from the ids of {prediction.sampled_batches:,} of {prediction.batches:,} batches; the rate is what "
        "the described hardware bounds, whatever trains on it."
    )
    return rows, note
