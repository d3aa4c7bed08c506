"""A document of a few kinds of blocks, and how figures are written in it; `markdown` and `page` render it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.errors import bounded

Tone = Literal["good", "bad", "warn", "plain"]

MOST_ROWS = 50
MOST_COLUMNS = 10
MOST_TEXT = 400
NARROW = 36
_DEPTH = 3
_ADDRESS = re.compile(r"https?://[A-Za-z0-9\-._~:/?#@!$&'*+,;=%\[\]]+")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What it says.
        tone: Whether it is a mark of something good or bad; None for plain text.
        bar: Signed length of a small bar from the middle, -1 to 1.
        fill: Length of a small bar from the left, 0 to 1.
        span: Low, middle and high end of an interval and the zero line, each as a share 0 to 1 of the column's width.
        strong: Whether it stands out.
    """

    text: str
    tone: Tone | None = None
    bar: float | None = None
    fill: float | None = None
    span: tuple[float, float, float, float] | None = None
    strong: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Names and what they are."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells; `wide` names columns that hold sentences."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    wide: tuple[str, ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether its columns fit beside each other on a phone."""
        lines = [self.columns, *([cell.text for cell in row] for row in self.rows)]
        return sum(max(len(line[place]) for line in lines) for place in range(len(self.columns))) <= NARROW


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side."""

    items: tuple[Picture, ...]


@dataclass(frozen=True)
class Link:
    """Something that lies elsewhere.

    Attributes:
        title: What it is.
        place: Where, as a person reads it.
        url: Its address, http or https; None where it has none.
    """

    title: str
    place: str
    url: str | None = None

    def __post_init__(self) -> None:
        """Refuse what a browser would run or what would end a Markdown link.

        Raises:
            ValueError: The address is none of http or https, or holds what an address may not.
        """
        if self.url is not None and not _ADDRESS.fullmatch(self.url):
            raise ValueError("a link's address is http or https, with everything else quoted")


@dataclass(frozen=True)
class Links:
    """Links, one below the other."""

    items: tuple[Link, ...]


Block = Text | Bullets | Pairs | Table | Pictures | Links


@dataclass(frozen=True)
class Part:
    """A titled part of a section."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Section:
    """A section: what came out in one sentence, and its parts."""

    title: str
    headline: str
    tone: Tone
    said: str
    facts: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Document:
    """One page."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]


def number(value: object) -> str:
    """A figure as a person reads it; a dash where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float) or not math.isfinite(value):
        return "–"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def interval(ends: object) -> tuple[float, float] | None:
    """The finite `low` and `high` of an interval as JSON holds it; None where there are none."""
    if not isinstance(ends, Mapping):
        return None
    low, high = ends.get("low"), ends.get("high")
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return None
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def with_interval(value: object, ends: object) -> str:
    """A figure, and its interval where there is one."""
    known = interval(ends)
    return number(value) if known is None else f"{number(value)} ({number(known[0])} to {number(known[1])})"


def told(value: object) -> str:
    """Any JSON value in few words; `value`, `low` and `high` as one figure."""
    if isinstance(value, str):
        return bounded(value, MOST_TEXT)
    if isinstance(value, Mapping):
        if _is_figure(value):
            return with_interval(value["value"], value) if "value" in value else " to ".join(map(number, _ends(value)))
        return bounded(", ".join(f"{_words(str(name))} {told(item)}" for name, item in value.items()), MOST_TEXT)
    if isinstance(value, list | tuple):
        return bounded(", ".join(told(item) for item in value), MOST_TEXT)
    return number(value)


def records(value: object, depth: int = 0) -> tuple[Block, ...]:
    """Blocks for JSON figures of any form: a table for records, pairs for single figures, one after the other else."""
    if value in (None, "", [], (), {}) or depth > _DEPTH:
        return ()
    if _are_records(value):
        return _table(value)  # type: ignore[arg-type]
    if isinstance(value, list | tuple) and all(isinstance(row, Mapping) for row in value):
        return tuple(block for row in value[:MOST_ROWS] for block in records(row, depth + 1))
    if not isinstance(value, Mapping) or _is_figure(value):
        return (Text(told(value)),)
    if _are_records(list(value.values())):
        return _table([{"": name, **row} for name, row in value.items()])
    single = {name: item for name, item in value.items() if _is_single(item)}
    blocks: tuple[Block, ...] = (_pairs(single),) if single else ()
    for name, item in value.items():
        if not _is_single(item) and (inner := records(item, depth + 1)):
            blocks += (Text(f"{_words(str(name))}:"), *inner)
    return blocks


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[Block, ...]:
    spread = [_spread(row) for row in rows[:MOST_ROWS]]
    columns = list(dict.fromkeys(name for row in spread for name in row))[:MOST_COLUMNS]
    cells = tuple(tuple(_cell(row.get(name)) for name in columns) for row in spread)
    wide = tuple(_words(name) for name in columns if any(len(told(row.get(name))) > 40 for row in spread))
    table = Table(tuple(_words(name) for name in columns), cells, wide)
    if len(rows) <= MOST_ROWS:
        return (table,)
    return (table, Text(f"and {len(rows) - MOST_ROWS:,} more"))


def _spread(row: Mapping[str, Any]) -> dict[str, Any]:
    """A record with one entry a column: figures inside it have columns of their own, ends stand with their figure."""
    flat: dict[str, Any] = {}
    for name, item in row.items():
        if name in ("low", "high"):
            continue
        if name == "intervals" and "figures" in row:
            flat |= {each: {"value": flat[each], **ends} for each, ends in item.items() if each in flat}
        elif _holds_figures(item):
            flat |= item
        else:
            flat[name] = item
    if interval(row) is None:
        return flat
    if "value" in flat:
        return flat | {"value": {key: row[key] for key in ("value", "low", "high")}}
    return flat | {"interval": {key: row[key] for key in ("low", "high")}}


def _cell(value: object) -> Cell:
    if value in ("passed", "failed", "skipped"):
        return Cell(str(value), {"passed": "good", "failed": "bad"}.get(str(value), "plain"))  # type: ignore[arg-type]
    return Cell(told(value))


def _pairs(items: Mapping[str, Any]) -> Pairs:
    known = [(name, item) for name, item in _spread(items).items() if item not in (None, [], ())]
    return Pairs(tuple((_words(str(name)), told(item)) for name, item in known[:MOST_ROWS]))


def _are_records(value: object) -> bool:
    """Whether every item is a record that one row of a table can tell."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(
        isinstance(row, Mapping)
        and not _is_figure(row)
        and all(_is_single(item) or _holds_figures(item) or _holds_words(item) for item in row.values())
        for row in value
    )


def _is_figure(value: object) -> bool:
    """Whether a mapping is one figure with its interval, or an interval alone."""
    return isinstance(value, Mapping) and set(value) <= {"value", "low", "high"} and interval(value) is not None


def _holds_figures(value: object) -> bool:
    """Whether a mapping holds figures by name, with or without intervals."""
    if not isinstance(value, Mapping) or _is_figure(value) or not value:
        return False
    return all(_is_figure(item) or isinstance(item, int | float) for item in value.values())


def _holds_words(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_single(item) for item in value.values())


def _is_single(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(item is None or isinstance(item, str | int | float) for item in value)
    return value is None or isinstance(value, str | int | float) or _is_figure(value)


def _ends(value: object) -> tuple[float, ...]:
    return interval(value) or ()


def _words(name: str) -> str:
    return bounded(name.replace("_", " "), 80)
