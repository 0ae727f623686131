"""HTML documents of one file: elements whose text is always escaped, and the frame with its style.

Elements are those of `xml.etree`, so that nothing a user wrote (a path may hold ``<script>``) can become markup. The
documents load nothing and run nothing, and their policy says so to the browser.
"""

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element, tostring

from cachedlrm.report.style import STYLE

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def element(tag: str, *children: Element | str, **attributes: str | float) -> Element:
    """An element of HTML or SVG.

    Args:
        tag: its name; none that HTML leaves without an end, such as br.
        children: elements and texts, in order.
        attributes: by name, ``_`` for ``-``; one behind it sets off Python's own words (``class_``).
    """
    made = Element(tag)
    for name, value in attributes.items():
        text = _clean(value) if isinstance(value, str) else f"{value:.6g}"
        made.set(name.rstrip("_").replace("_", "-"), text)
    for child in children:
        if not isinstance(child, str):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _clean(child)
        else:
            made.text = (made.text or "") + _clean(child)
    return made


def _clean(text: str) -> str:
    """The text without what no document may hold: control characters and halves of surrogate pairs."""
    return _NOT_XML.sub("\ufffd", text)


def table(header: Sequence[str], rows: Sequence[Sequence[Element | str]], look: str = "") -> Element:
    """A table whose first column names its rows; it scrolls by itself where the page is narrow.

    Args:
        header: titles of the columns; all empty: no header.
        rows: as long as the header.
        look: further classes of `STYLE`.
    """
    head = element("thead", element("tr", *(element("th", title, scope="col") for title in header)))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    parts = [head] if any(header) else []
    return element(
        "div", element("table", *parts, element("tbody", *body)), class_=f"scroll {look}".rstrip(), tabindex=0
    )


def section(title: str, *children: Element | str) -> Element:
    """A part of a page."""
    return element("section", element("h2", title), *children)


def document(title: str, subtitle: str, sections: Sequence[Element]) -> str:
    """A whole page.

    Args:
        title: of the page and of the browser's window.
        subtitle: a line below.
        sections: in order.
    """
    header = element("header", element("h1", title), element("p", subtitle))
    body = "\n".join(_markup(part) for part in (header, *sections))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"{_markup(element('title', title))}\n<style>\n{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markup(part: Element) -> str:
    return tostring(part, encoding="unicode", short_empty_elements=False)
