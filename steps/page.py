"""A document as one HTML page that needs nothing but itself: style inside, pictures as data, no script."""

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from steps.document import Document

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def to_html(document: Document) -> str:
    """Render a document; whatever it says is escaped."""
    return _template().render(document=document) + "\n"


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["data_uri"] = _data_uri
    made.tests["kind"] = lambda block, name: type(block).__name__ == name
    return made.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
