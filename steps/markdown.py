"""A document as Markdown that GitHub shows as it is meant: names of people's columns are text there, never markup."""

import re
from collections.abc import Sequence

from steps.document import Block, Bullets, Cell, Document, Link, Links, Pairs, Part, Pictures, Section, Table, Text

_MARKS = {"good": "✅ ", "bad": "❌ ", "warn": "⚠️ ", "plain": ""}
_SPECIAL = re.compile(r"([\\`*\[\]|~$]|(?<!\w)_|_(?!\w))")  # inside a word, as in roc_auc, a _ is one


def to_markdown(document: Document) -> str:
    """Render a document."""
    parts = [f"# {plain(document.title)}", plain(document.subtitle)]
    for section in document.sections:
        parts += _section(section)
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: str) -> str:
    """A text without any meaning in Markdown or HTML, in one line; `@name` calls nobody."""
    text = _SPECIAL.sub(r"\\\1", " ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("@", "@<!-- -->").replace("://", ":<!-- -->//")


def _section(section: Section) -> list[str]:
    mark = _MARKS[section.tone]
    lines = [f"## {plain(section.title)}", f"{mark}**{plain(section.headline)}** {plain(section.said)}".strip()]
    lines.append(_pairs(section.facts))
    for part in section.parts:
        lines += _part(part)
    return lines


def _part(part: Part) -> list[str]:
    blocks = [rendered for block in part.blocks if (rendered := _block(block))]
    return [f"### {plain(part.title)}", *blocks] if blocks else []


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return plain(text)
        case Bullets(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Pairs(items):
            return _pairs(items)
        case Links(items):
            return "\n".join(f"- {_link(item)}" for item in items)
        case Table(columns, rows):
            return _table(columns, rows)
        case Pictures(items):
            return f"{len(items)} pictures lie in the folder `evaluation` of the MLflow run." if items else ""


def _pairs(items: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in items)


def _link(link: Link) -> str:
    named = f"[{plain(link.title)}](<{link.url}>)" if link.url else plain(link.title)
    return f"{named} {plain(link.place)}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = ["| " + " | ".join(plain(name) for name in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    text = plain(cell.text)
    if cell.strong and text:
        text = f"**{text}**"
    return f"{_MARKS[cell.tone]}{text}" if cell.tone else text
