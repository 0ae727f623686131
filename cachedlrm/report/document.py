"""HTML pages of one file: Jinja2 templates beside this module, and elements for what is drawn.

Values are always escaped, so that nothing a user wrote (a path may hold ``<script>``) can become markup. The pages load
nothing and run nothing.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def element(tag: str, *children: Element | str, **attributes: str | float) -> Element:
    """An element of HTML or SVG.

    Args:
        tag: its name; none that HTML leaves without an end, such as br.
        children: elements and texts, in order.
        attributes: by name, with ``_`` for ``-``; a final one tells it from Python's own words (``class_``).
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


def _finalize(value: object) -> object:
    """A value as templates show it."""
    if isinstance(value, Element):
        return Markup(tostring(value, encoding="unicode", short_empty_elements=False))  # its text is escaped
    return value if isinstance(value, Markup) else _clean(str(value))


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=_finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, **values: object) -> str:
    """A page.

    Args:
        template: its file name.
        values: by the names that it knows them by.
    """
    return _TEMPLATES.get_template(template).render(values)
