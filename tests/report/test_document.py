"""Whatever a value holds, it is text on a page and no markup."""

import tomllib

import pytest
from jinja2 import UndefinedError

from cachedlrm.report.document import element, render
from support.documents import ROOT
from support.reports import checked

HOSTILE = "<b onclick='x'>\"&amp;\x1b\udcff"


def page(**changes: object) -> str:
    nothing = {"called": [], "options": [], "figures": [], "machines": [], "charts": [], "commands": []}
    return render("comparison.html.jinja", **({"title": "t", "about": "a"} | nothing | changes))


def test_texts_and_attributes_are_escaped():
    drawn = element("div", HOSTILE, element("span", HOSTILE), "after", title=HOSTILE, data_x=1 / 3, class_="c")
    text = page(title=HOSTILE, about=7, charts=[drawn], commands=[(HOSTILE, HOSTILE)])
    content = checked(text)
    assert "<b onclick" not in text
    shown = "<b onclick='x'>\"&amp;��"
    (div,) = content.findall(".//div[@class='c']")
    assert (div.text, div[0].text, div[0].tail) == (shown, shown, "after")
    assert (div.get("title"), div.get("data-x")) == (shown, "0.333333")
    assert content.find("header/h1").text == shown
    assert content.find("header/p").text == "7"
    assert [content.findall("section")[-1].find(name).text for name in ("p", "pre")] == [shown, shown]


def test_an_empty_element_has_an_end():
    assert "<span></span>" in page(charts=[element("div", element("span"))])


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        render("comparison.html.jinja")


def test_every_template_is_installed():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    room = ROOT / "cachedlrm" / "report"
    installed = {path for pattern in patterns["cachedlrm.report"] for path in room.glob(pattern)}
    assert installed == {path for path in room.iterdir() if path.is_file() and path.suffix != ".py"}
