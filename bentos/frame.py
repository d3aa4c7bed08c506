"""From whatever a source or a request holds to the typed frame that every later step and the fitted pipeline take."""

import datetime as dt
import decimal
import hashlib
import hmac
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from models.config import Column
from models.section import Scalar

TRUE = frozenset({"true", "yes", "t", "y", "1"})
FALSE = frozenset({"false", "no", "f", "n", "0"})
_NUMBERS = (int, float, decimal.Decimal, np.number)
_BOOLEANS = (bool, np.bool_)
_DATES = (dt.date, np.datetime64)


@dataclass(frozen=True)
class Problem:
    """Values of one column that are not what its type says.

    Attributes:
        column: Name of the column.
        reason: What they are not; never a value.
        rows: Positions (from 0) of all of them, rising.
    """

    column: str
    reason: str
    rows: tuple[int, ...] = field(repr=False)

    @property
    def count(self) -> int:
        """How many values."""
        return len(self.rows)

    @property
    def first(self) -> int:
        """Position (from 0) of the first of them."""
        return self.rows[0]


@dataclass(frozen=True)
class Typed:
    """A typed frame and what could not be typed (those cells are missing in it)."""

    frame: pd.DataFrame
    problems: tuple[Problem, ...]


def to_frame(raw: pd.DataFrame, columns: Mapping[str, Column]) -> Typed:
    """Give every declared column its type; the same from CSV text, Parquet values and JSON values.

    number, integer, boolean become float64 (boolean 0 and 1); category, text and personal columns object of str;
    datetime becomes datetime64[ns], UTC without zone; missing is NaN or NaT. Columns that are not declared are left
    out; a declared one that is absent comes back all missing, with a problem. A typed frame comes back as it is.

    Args:
        raw: One row per record, any dtypes; None, NaN, NaT and NA are missing.
        columns: The YAML's columns.
    """
    typed: dict[str, pd.Series[Any]] = {}
    problems: list[Problem] = []
    for name, column in columns.items():
        if name in raw.columns:
            values, bad, reason = _typed(raw[name], column)
        else:
            values, bad, reason = _blank(len(raw), column), np.ones(len(raw), bool), "the column is absent"
        if bad is not None and bad.any():
            problems.append(Problem(name, reason, tuple(np.flatnonzero(bad).tolist())))
        typed[name] = pd.Series(values, index=raw.index, name=name)
    return Typed(pd.DataFrame(typed, index=raw.index), tuple(problems))


def categories(column: Column) -> tuple[str, ...]:
    """The declared categories in canonical form, in the YAML's order; empty where none are declared."""
    canonical = _canonical(column)
    return tuple(text for value in column.categories or () if (text := canonical(value)) is not None)


def spelling(column: Column) -> Literal["boolean", "number", "text"]:
    """What a category column's values are printed as: where all declared categories are of one kind, as such."""
    declared = column.categories or ()
    if declared and all(isinstance(c, bool) for c in declared):
        return "boolean"
    if declared and all(isinstance(c, int | float) and not isinstance(c, bool) for c in declared):
        return "number"
    return "text"


def markers(column: Column) -> frozenset[float]:
    """The numbers that mean missing in a column of numbers."""
    return frozenset(number for value in column.missing_values if (number := _number(value)) is not None)


def canonical_text(value: Any) -> str:
    """Print a scalar so that 1, 1.0 and Decimal(1) agree: integral numbers without a point, booleans in lower case."""
    if isinstance(value, _BOOLEANS):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, _NUMBERS):
        number = float(value)
        return str(int(number)) if number.is_integer() else repr(number)
    return str(value).strip()


def pseudonym(value: str, key: bytes) -> str:
    """Stand-in for a personal value: HMAC-SHA256 under `key`, never readable as a number or a date."""
    return "p." + hmac.new(key, value.encode(), hashlib.sha256).hexdigest()


_Array = np.ndarray[Any, Any]
_Result = tuple[_Array, _Array, str]


def _typed(series: "pd.Series[Any]", column: Column) -> _Result:
    if column.personal:
        return *_texts(series, _identity, column.missing_values), "no plain value"
    if column.type == "category":
        return *_texts(series, _canonical(column), column.missing_values), "no plain value"
    if column.type == "text":
        return *_texts(series, _plain_text, column.missing_values), "no text"
    if column.type == "datetime":
        reason = f"no date of the form {column.format}" if column.format else "no date in ISO 8601 form"
        return *_datetimes(series, column), reason
    if column.type == "boolean":
        texts, bad = _texts(series, _truth, column.missing_values)
        return pd.Series(texts).map({"true": 1.0, "false": 0.0}).to_numpy(np.float64), bad, "neither true nor false"
    values, bad = _numbers(series, column.missing_values)
    if column.type == "number":
        return values, bad, "infinite" if _all_infinite(series[bad]) else "no number"
    fraction = values != np.floor(values)
    fraction &= ~np.isnan(values)
    return np.where(fraction, np.nan, values), bad | fraction, "no whole number"


def _blank(rows: int, column: Column) -> _Array:
    if column.type == "datetime" and not column.personal:
        return np.full(rows, np.datetime64("NaT"), dtype="datetime64[ns]")
    is_object = column.personal or column.type in ("category", "text")
    return np.full(rows, np.nan, dtype=object if is_object else np.float64)


def _cells(series: "pd.Series[Any]") -> tuple[_Array, _Array]:
    """The values, plain numbers as they are and all else as objects, and which are missing."""
    plain = isinstance(series.dtype, np.dtype) and series.dtype.kind in "iufb"
    cells = series.to_numpy() if plain else series.to_numpy(dtype=object)
    return cells, np.asarray(pd.isna(cells), dtype=bool)


def _each(cells: _Array, convert: Callable[[Any], Any]) -> _Array:
    """Convert present cells; each distinct one once, where they are of one hashable type.

    Cells of several types are taken one by one: True, 1 and 1.0 are equal to a hash table and differ as text.
    """
    kinds = set(map(type, cells)) if cells.dtype == object else {int}
    if len(kinds) == 1 and kinds.pop().__hash__ is not None:
        codes, distinct = pd.factorize(cells)
        return _objects(map(convert, distinct), len(distinct))[codes]
    return _objects(map(convert, cells), len(cells))


def _objects(values: Iterable[Any], count: int) -> _Array:
    return np.fromiter(values, dtype=object, count=count)


def _texts(
    series: "pd.Series[Any]", convert: Callable[[Any], str | None], markers: Iterable[Scalar]
) -> tuple[_Array, _Array]:
    """Text of every cell: NaN where blank or marked as missing; and which ones `convert` refused with None."""
    marked = {canonical_text(m) for m in markers} | {""}

    def text(cell: Any) -> Any:
        converted = convert(cell)
        return np.nan if canonical_text(cell) in marked or converted in marked else converted

    cells, missing = _cells(series)
    values = np.full(len(cells), np.nan, dtype=object)
    values[~missing] = _each(cells[~missing], text)
    refused = np.asarray([value is None for value in values], dtype=bool)
    values[refused] = np.nan
    return values, refused


def _canonical(column: Column) -> Callable[[Any], str | None]:
    """How a category column prints its values: by the kind of the declared categories."""
    if (spelled := spelling(column)) == "boolean":
        return lambda cell: _truth(cell) or _scalar_text(cell)
    if spelled == "number":
        return lambda cell: _scalar_text(cell if (number := _number(cell)) is None else number)
    return _scalar_text


def _scalar_text(cell: Any) -> str | None:
    plain = isinstance(cell, (str, *_NUMBERS, *_BOOLEANS, *_DATES))
    return canonical_text(cell) if plain else None


def _identity(cell: Any) -> str | None:
    """An identifier as text: 17, "17" and "17.0" (a column of whole numbers that once had gaps) are one person."""
    text = _scalar_text(cell)
    return text if text is None else re.sub(r"(?<=\d)\.0+$", "", text)


def _plain_text(cell: Any) -> str | None:
    return cell if type(cell) is str else _scalar_text(cell)


def _truth(cell: Any) -> str | None:
    number = _number(cell)
    word = canonical_text(cell if number is None else number).lower()
    return "true" if word in TRUE else "false" if word in FALSE else None


def _number(cell: Any) -> float | None:
    """The finite number that a cell holds or spells, else None; a boolean is no number."""
    if isinstance(cell, _BOOLEANS) or not isinstance(cell, (str, *_NUMBERS)):
        return None
    if isinstance(cell, str) and "_" in cell:
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _all_infinite(cells: "pd.Series[Any]") -> bool:
    try:
        return bool(len(cells)) and all(math.isinf(float(cell)) for cell in cells)
    except (ValueError, TypeError, OverflowError):
        return False


def _numbers(series: "pd.Series[Any]", markers: Iterable[Scalar]) -> tuple[_Array, _Array]:
    marked = {canonical_text(m) for m in markers} | {""}

    def number(cell: Any) -> float:
        found = _number(cell)
        return (
            math.inf if found is None and canonical_text(cell) not in marked else math.nan if found is None else found
        )

    cells, missing = _cells(series)
    values = np.full(len(cells), np.nan)
    present = cells[~missing]
    quick = _quick_numbers(present)
    values[~missing] = _each(present, number).astype(np.float64) if quick is None else quick
    bad = np.isinf(values)
    values[bad] = np.nan
    for marker in markers:
        if (found := _number(marker)) is not None:
            values[values == found] = np.nan
    return values + 0.0, bad  # minus zero becomes zero


def _quick_numbers(cells: _Array) -> _Array | None:
    """All cells as numbers in one go, or None where some need a closer look.

    Python's own float() reads text: exact, where pandas' parsers may be off by one in the last place.
    """
    if cells.dtype != object:
        return None if cells.dtype == np.bool_ else cells.astype(np.float64)
    if len(cells) > 50_000 and len(pd.unique(cells[:10_000])) < 1_000:
        return None  # few different values: converting each once is faster
    kinds = set(map(type, cells))
    if not kinds <= {str, int, float} or (kinds == {str} and "_" in "\0".join(cells)):
        return None
    if str in kinds and len(kinds) > 1:
        return None
    try:
        values = cells.astype(np.float64)
    except (ValueError, OverflowError):
        return None
    return values if np.isfinite(values).all() else None


def _datetimes(series: "pd.Series[Any]", column: Column) -> tuple[_Array, _Array]:
    if isinstance(series.dtype, pd.DatetimeTZDtype) or series.dtype.kind == "M":
        values = _utc(series)
        return values, np.isnat(values) & series.notna().to_numpy()
    marked = {canonical_text(m) for m in column.missing_values} | {""}

    def text(cell: Any) -> str | None:
        """The cell where it can be a date; None else. pandas would also take "now" and "12"."""
        return cell.strip() if type(cell) is str and (column.format or cell.strip()[:4].isdigit()) else None

    cells, missing = _cells(series)
    missing = missing | _objects((type(c) is str and c.strip() in marked for c in cells), len(cells)).astype(bool)
    spelled = pd.Series(_objects(map(text, cells), len(cells)), dtype=object)
    held = pd.Series(_objects((c if isinstance(c, _DATES) else None for c in cells), len(cells)), dtype=object)
    spelled = pd.to_datetime(spelled.mask(missing), utc=True, format=column.format or "ISO8601", errors="coerce")
    held = pd.to_datetime(held.mask(missing), utc=True, errors="coerce")
    values = _utc(spelled.where(spelled.notna(), held))
    return values, np.isnat(values) & ~missing


def _utc(times: "pd.Series[Any]") -> _Array:
    if times.dt.tz is not None:
        times = times.dt.tz_convert("UTC").dt.tz_localize(None)
    outside = (times < pd.Timestamp.min.ceil("s")) | (times > pd.Timestamp.max.floor("s"))  # what nanoseconds reach
    return times.mask(outside).astype("datetime64[ns]").to_numpy()
