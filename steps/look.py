"""Looking at a stranger's column: what it holds, as far as its values and its name tell."""

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from bentos.frame import to_frame
from models.config import Column

ColumnType = Literal["number", "integer", "category", "boolean", "text", "datetime"]
MOST_CATEGORIES = 50
JUNK_WORDS = 5
PROSE_WORDS = 4
DATE_FORMATS = (
    "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M",
    "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%Y/%m/%d %H:%M:%S", "%d %b %Y",
    "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%d-%b-%Y", "%d-%b-%y", "%m/%d/%y", "%d/%m/%y",
)  # fmt: skip
_PERSONAL_NAME = re.compile(
    r"e_?mail|phone|mobile|telefon|ssn|social_security|passport|iban|credit_card|card_number|license_(no|number|plate)"
    r"|(^|_)(first|last|full|middle|sur|sir|fore|given|family|maiden|user|customer|patient|client|person|employee)_?names?$"
    r"|^names?$|(^|_)(street|address|ip_address|birth_?date|date_of_birth|dob)(_|$)"
)
_PERSONAL_VALUE = (
    ("e-mail addresses", re.compile(r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}")),
    ("social security numbers", re.compile(r"\d{3}-\d{2}-\d{4}")),
    ("phone numbers", re.compile(r"(?=.*[-+() ])\+?\(?\d{1,4}\)?([-. ]?\(?\d{2,4}\)?){2,4}")),
    ("bank accounts", re.compile(r"[A-Z]{2}\d{2}[A-Z0-9 ]{11,32}")),
)
_SENSITIVE_NAME = re.compile(
    r"(^|_)(sex|gender|race|ethnic\w*|religion|nationality|citizenship|disab\w+|marital\w*|pregnan\w+|orientation|age)(_|$)"
)
_ID_NAME = re.compile(
    r"(^|_)(id|ids|uuid|guid|key|index|idx|row|rownum|nr|number|no|serial|code|hash)$|^(id|uuid)(_|$)|^unnamed|^$"
)


@dataclass(frozen=True)
class Look:
    """What a column seems to be.

    Attributes:
        name: Its name.
        type: Its type.
        values: Typed values, missing where they cannot be read.
        share: Share of missing values.
        distinct: Number of different values.
        format: How dates are written, unless in ISO 8601.
        words: Words that seem to mean missing besides the usual ones.
        personal: Why it seems to identify a person, or nothing.
        sensitive: Whether its name is one that fairness is measured for.
        is_id: Whether it seems to name rows or things instead of describing them.
        notes: For the person who confirms.
    """

    name: str
    type: ColumnType
    values: "pd.Series[Any]"
    share: float
    distinct: int
    format: str | None = None
    words: tuple[str, ...] = ()
    personal: str = ""
    sensitive: bool = False
    is_id: bool = False
    notes: tuple[str, ...] = field(default=())


def look_at(raw: "pd.Series[Any]") -> Look:
    """Guess what a raw column holds (CSV text, or typed values from Parquet)."""
    name = str(raw.name)
    kind, form, words, notes = _kind(raw)
    column = Column(type=kind, format=form, missing_values=words)
    values = to_frame(raw.to_frame(name), {name: column}).frame[name]
    distinct = int(values.nunique())
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).lower().strip("_")
    present = values.dropna()
    is_id = _is_id(plain, kind, present, distinct)
    personal = _personal(plain, kind, present, distinct)
    return Look(
        name=name,
        type=kind,
        values=values,
        share=float(values.isna().mean()),
        distinct=distinct,
        format=form,
        words=words,
        personal=personal,
        sensitive=bool(_SENSITIVE_NAME.search(plain)),
        is_id=is_id and not personal,
        notes=notes,
    )


def bounds(look: Look) -> tuple[float, float]:
    """A range around the values of a numeric column, half their spread wider on each side, in round numbers.

    A column that has no negative values gets none.
    """
    low, high = float(look.values.min()), float(look.values.max())
    margin = (high - low) / 2 or max(abs(high), 1.0) / 2
    step = 10.0 ** math.floor(math.log10(margin)) if margin > 0 else 1.0
    below = math.floor((low - margin) / step) * step
    above = math.ceil((high + margin) / step) * step
    below = 0.0 if low >= 0 > below else below
    return _round(below), _round(above)


def date_parts(look: Look) -> list[str]:
    """Parts of a date that differ between rows and can tell something."""
    times = look.values.dropna().dt
    candidates = ("year", "month", "weekday", "hour")
    return [part for part in candidates if getattr(times, part).nunique() > 1]


def is_prose(look: Look) -> bool:
    """Whether a text column holds sentences or logs, whose words can tell something, and not names or codes."""
    return float(look.values.dropna().head(1000).str.count(r"\S+").mean()) >= PROSE_WORDS


def _round(number: float) -> float:
    return float(f"{number:.12g}")


_Kind = tuple[ColumnType, str | None, tuple[str, ...], tuple[str, ...]]


def _kind(raw: "pd.Series[Any]") -> _Kind:
    if raw.dtype == np.bool_:
        return "boolean", None, (), ()
    if raw.dtype.kind == "M":
        return "datetime", None, (), ()
    present = raw.dropna()
    cells = present.map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    cells = cells[cells != ""]
    if cells.empty:
        return "text", None, (), ()
    counts = cells.astype(str).str.lower().value_counts()
    if set(counts.index) in _PAIRS:
        return "boolean", None, (), ()
    number, words = _as_number(cells)
    if (
        number is not None
        and not words
        and set(to_frame(cells.to_frame("x"), _NUMBER).frame["x"].unique()) == {0.0, 1.0}
    ):
        return "boolean", None, (), ()
    if number is not None:
        notes = (f"these words are taken for missing: {', '.join(words)}",) if words else ()
        return number, None, words, notes
    return _dates(cells) or _words(cells)


_PAIRS = [{"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"}]
_NUMBER = {"x": Column(type="number")}


def _as_number(cells: "pd.Series[Any]") -> tuple[Literal["number", "integer"] | None, tuple[str, ...]]:
    """number or integer where (nearly) all cells are numbers; the few other words then mean missing."""
    texts = cells.astype(str)
    if texts.str.match(r"^0\d+$").any():  # a code with leading zeros, not a quantity
        return None, ()
    typed = to_frame(cells.to_frame("x"), _NUMBER)
    values = typed.frame["x"]
    others = texts[values.isna()]
    distinct = others.unique()
    if len(others) > 0.2 * len(cells) or len(distinct) > JUNK_WORDS or len(cells) - len(others) < 2:
        return None, ()
    if any(re.search(r"\d", word) for word in distinct):  # "12kg", "1,200", "<5" say something
        return None, ()
    whole = bool((values.dropna() % 1 == 0).all())
    return ("integer" if whole else "number"), tuple(sorted(str(word)[:40] for word in distinct))


def _dates(cells: "pd.Series[Any]") -> _Kind | None:
    if not all(isinstance(cell, str) for cell in cells.head(1000)):
        column = Column(type="datetime")
        if not to_frame(cells.to_frame("x"), {"x": column}).problems:
            return "datetime", None, (), ()
        return None
    fits = [form for form in (None, *DATE_FORMATS) if _reads(cells.head(200), form) and _reads(cells, form)]
    if not fits:
        return None
    notes = (f"could also be written {fits[1]}; confirm",) if len(fits) > 1 and fits[0] is not None else ()
    return "datetime", fits[0], (), notes


def _reads(cells: "pd.Series[Any]", form: str | None) -> bool:
    return not to_frame(cells.to_frame("x"), {"x": Column(type="datetime", format=form)}).problems


def _words(cells: "pd.Series[Any]") -> _Kind:
    distinct = cells.nunique()
    few = distinct <= MOST_CATEGORIES and distinct <= max(2, 0.5 * len(cells))
    return ("category" if few else "text"), None, (), ()


def _is_id(plain: str, kind: str, present: "pd.Series[Any]", distinct: int) -> bool:
    if kind not in ("integer", "text", "category") or len(present) < 10:
        return False
    unique = distinct / len(present)
    named = bool(_ID_NAME.search(plain))
    if kind == "integer":
        span = float(present.max() - present.min()) + 1
        counted = distinct == len(present) == span
        return counted or (named and distinct > 20 and unique > 0.02)
    if kind == "text":
        spaced = present.head(1000).astype(str).str.contains(r"\s").mean()
        return named or (unique > 0.9 and spaced < 0.2)
    return False


def _personal(plain: str, kind: str, present: "pd.Series[Any]", distinct: int) -> str:
    if kind in ("text", "category"):
        texts = present.head(2000).astype(str).str.strip()
        for what, pattern in _PERSONAL_VALUE:
            if len(texts) and texts.str.fullmatch(pattern.pattern).mean() > 0.8:
                return f"values look like {what}"
    if _PERSONAL_NAME.search(plain) and kind != "boolean" and (kind != "category" or distinct > 20):
        return "its name says so"
    return ""
