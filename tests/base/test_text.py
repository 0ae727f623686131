"""Foreign text stays in its line, and paths survive a file in UTF-8."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachedlrm.base.text import aligned, as_argument, as_utf8, printable, shown


def test_what_does_not_print_is_replaced_or_escaped():
    assert printable("a\nb\x1b[2J\udcff") == "a?b?[2J?"
    assert shown("a\nb\x1b[2J\udcff\u2028") == r"a\nb\x1b[2J\udcff\u2028"
    assert printable("ü, 表") == shown("ü, 表") == "ü, 表"


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_any_text_becomes_one_line(text):
    for line in (printable(text), shown(text)):
        assert line.isprintable()
    assert len(printable(text)) == len(text)


def test_arguments_are_utf8_or_refused():
    assert as_utf8("dätä") == "dätä"
    assert as_argument("dätä") == "dätä"
    with pytest.raises(UnicodeError):
        as_utf8(os.fsdecode(b"\xff"))


def test_the_columns_of_a_table_stand_below_each_other():
    assert aligned([("name", "rows", "what"), ("a", "12,345", "first"), ("tables", "1", "")]).splitlines() == [
        "name      rows  what",
        "a       12,345  first",
        "tables       1  ",
    ]
