"""What a run does about its evaluations is asked for by options of their own."""

from cachedlrm.options.command_line import parse_command_line
from cachedlrm.options.evaluation import EvaluationOptions


def test_nothing_is_done_unless_it_is_asked_for():
    assert parse_command_line([]).evaluation == EvaluationOptions()
    asked = ["--monitor=logloss", "--stop-after=3", "--stop-at-auc=0.8", "--keep-best", "--gauc-table=user"]
    assert parse_command_line(asked).evaluation == EvaluationOptions("logloss", 3, 0.8, True, "user")
