"""Cells of JSON straight to the matrix that the estimator sees, where nothing is unusual about them."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bentos.features import DerivedColumns, Expression, bin_labels
from bentos.frame import categories, markers, to_frame
from bentos.inputs import examine, plain_cell
from bentos.schema import Schema
from models.config import Column

Array = np.ndarray[Any, Any]
Read = float | tuple[float, ...] | None
"""A number (NaN where missing), the features of a category, or None where the cell needs a closer look."""

LARGEST = 3.4028234e38  # of a float32, which trees compute with
_NAN = math.nan


class Unusual(Exception):
    """A cell needs a closer look, or a pipeline is of a kind that is not known here."""


@dataclass(frozen=True)
class _Number:
    """Cells of a number or integer column.

    Attributes:
        low: Smallest value.
        high: Largest value.
        markers: Values that mean missing.
        whole: Whether fractions are unusual.
        missing: What a missing cell is read as: NaN, or None where there must be a value.
    """

    low: float
    high: float
    markers: frozenset[float]
    whole: bool
    missing: float | None

    def cell(self, cell: Any) -> Read:
        """One cell."""
        if cell is None:
            return self.missing
        if type(cell) is not float and type(cell) is not int:
            return None
        if not -LARGEST <= cell <= LARGEST:
            return None
        value = cell + 0.0  # minus zero becomes zero
        if value in self.markers:
            return self.missing
        if not self.low <= value <= self.high or (self.whole and value % 1):
            return None
        return value

    def plain(self, cell: Any) -> float | None:
        """One cell as answers tell it."""
        value = self.cell(cell)
        if not isinstance(value, float) or value != value:
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    def column(self, cells: Sequence[Any]) -> Array:
        """All cells of the column, shape (n,)."""
        if not {float, int, type(None)}.issuperset(map(type, cells)):
            raise Unusual
        values = np.array(cells, dtype=np.float64) + 0.0
        for marker in self.markers:
            values[values == marker] = np.nan
        present = values[~np.isnan(values)]
        if self.missing is None and len(present) < len(values):
            raise Unusual
        if present.size and not (self.low <= present.min() and present.max() <= self.high):
            raise Unusual
        if self.whole and (present % 1).any():
            raise Unusual
        return values


@dataclass(frozen=True)
class _Value:
    """A value of JSON that nothing is unusual about.

    Attributes:
        cell: The value.
        typed: What it is in a typed frame; NaN where missing.
        plain: What answers tell it as.
        read: What the estimator gets for it.
    """

    cell: Any
    typed: Any
    plain: Any = None
    read: Read = None


@dataclass(frozen=True)
class _Known:
    """Cells of a column whose values are few: categories and truth.

    Attributes:
        codes: Place in `reads` of every value that is not unusual.
        truths: The same of true and false, which a dictionary does not tell from 1 and 0.
        reads: What a value is read as.
        table: `reads` as an array, shape (values,) or (values, features).
        plains: What answers tell a value as.
    """

    codes: Mapping[Any, int]
    truths: Mapping[Any, int]
    reads: Sequence[Read]
    table: Array
    plains: Sequence[Any]

    @classmethod
    def of(cls, known: Sequence["_Value"]) -> Self:
        """Make the table of values and what they are read as."""
        codes = {value.cell: code for code, value in enumerate(known) if not isinstance(value.cell, bool)}
        truths = {value.cell: code for code, value in enumerate(known) if isinstance(value.cell, bool)}
        reads = [value.read for value in known]
        return cls(codes, truths, reads, np.array(reads, dtype=np.float64), [value.plain for value in known])

    def plain(self, cell: Any) -> Any:
        """One cell as answers tell it."""
        return self.plains[self._code(cell)]

    def cell(self, cell: Any) -> Read:
        """One cell."""
        code = (self.truths if cell is True or cell is False else self.codes).get(cell)
        return None if code is None else self.reads[code]

    def column(self, cells: Sequence[Any]) -> Array:
        """All cells of the column, shape (n,) or (n, features)."""
        code = self._code if bool in set(map(type, cells)) else self.codes.__getitem__
        try:
            codes = np.fromiter(map(code, cells), dtype=np.intp, count=len(cells))
        except KeyError:
            raise Unusual from None
        return self.table.take(codes, axis=0)

    def _code(self, cell: Any) -> int:
        return (self.truths if cell is True or cell is False else self.codes)[cell]


@dataclass(frozen=True)
class _Derived:
    """A derived column.

    Attributes:
        name: Of the column.
        expression: See `bentos.features.derive`.
        reads: Places of the columns that it is computed from.
        table: Of a bin: features of each interval and, last, of a missing value; else empty.
    """

    name: str
    expression: Expression
    reads: tuple[int, ...]
    table: Sequence[Any]

    def cell(self, values: Sequence[Any]) -> Read:
        """From the cells of one row."""
        first = values[self.reads[0]]
        if self.table:
            place = len(self.table) - 1 if first != first else bisect_right(self.expression["edges"], first)
            return self.table[place]
        if "log" in self.expression:
            return float(np.log1p(first)) if first > -1 else _NAN
        second = values[self.reads[1]]
        told = first - second
        if "ratio" in self.expression:
            told = first / second if second != 0 else _NAN
        return None if abs(told) > LARGEST else told

    def column(self, columns: Sequence[Array]) -> Array:
        """From whole columns."""
        first = columns[self.reads[0]]
        if self.table:
            places = np.searchsorted(np.array(self.expression["edges"]), first, side="right")
            return np.array(self.table)[np.where(np.isnan(first), len(self.table) - 1, places)]
        with np.errstate(all="ignore"):
            if "log" in self.expression:
                return np.where(first > -1, np.log1p(first), np.nan)
            second = columns[self.reads[1]]
            told = first - second
            if "ratio" in self.expression:
                told = np.where(second != 0, first / second, np.nan)
        if (np.abs(told) > LARGEST).any():
            raise Unusual
        return told


@dataclass(frozen=True)
class Cells:
    """How rows of JSON become the estimator's matrix; made once from a fitted pipeline.

    What each value becomes was found by asking the pipeline's own parts, so that the tables hold what they make.

    Attributes:
        inputs: By input, in the schema's order.
        derived: By derived column.
        numbers: Places (inputs, then derived columns) of the features that are numbers.
        fills: Shape (numbers,): what a missing one becomes.
        flagged: Of `numbers`, those that a further feature says to be missing.
        categories: Places of the features that are categories.
        centre: Shape (numbers + flagged,): what is subtracted; None where nothing is scaled.
        scale: Of the same shape: what is then divided by.
    """

    inputs: tuple[_Number | _Known, ...]
    derived: tuple[_Derived, ...]
    numbers: tuple[int, ...]
    fills: tuple[float, ...]
    flagged: tuple[int, ...]
    categories: tuple[int, ...]
    centre: Array | None
    scale: Array | None

    @classmethod
    def of(cls, pipeline: Pipeline, schema: Schema) -> Self:
        """Look through a fitted pipeline.

        Raises:
            Unusual: It holds a text, a date, or a step that is not known here.
        """
        features, preparation = pipeline.steps[0][1], pipeline.steps[1][1]
        if len(pipeline.steps) != 3 or not isinstance(features, DerivedColumns):
            raise Unusual
        if any(column.type in ("text", "datetime") for column in schema.inputs.values()):
            raise Unusual
        parts = [(part, chosen) for _, part, chosen in preparation.transformers_ if part != "drop"]
        kinds = [[type(step) for _, step in part.steps] if isinstance(part, Pipeline) else [] for part, _ in parts]
        number = kinds[:1] in ([[SimpleImputer]], [[SimpleImputer, StandardScaler]])
        if kinds[number:] not in ([], [[SimpleImputer, OneHotEncoder]]):
            raise Unusual
        made = {name: e for name, e in features.expressions.items() if name in features.features}
        places = {name: place for place, name in enumerate([*schema.inputs, *made])}
        tables = _tables(*parts[-1], schema, made) if kinds[number:] else {}
        fills, flagged, centre, scale = _numbers(*parts[0]) if number else ((), (), None, None)
        return cls(
            inputs=tuple(_input(name, column, tables.get(name)) for name, column in schema.inputs.items()),
            derived=tuple(
                _Derived(name, e, tuple(places[n] for n in _names(e)), [value.read for value in tables.get(name, [])])
                for name, e in made.items()
            ),
            numbers=tuple(places[name] for name in parts[0][1]) if number else (),
            fills=fills,
            flagged=flagged,
            categories=tuple(places[name] for name in parts[-1][1]) if kinds[number:] else (),
            centre=centre,
            scale=scale,
        )

    def row(self, cells: Sequence[Any]) -> Array | None:
        """One row, shape (1, features); None where a cell needs a closer look."""
        read: list[Any] = []
        for column, cell in zip(self.inputs, cells, strict=True):
            if (value := column.cell(cell)) is None:
                return None
            read.append(value)
        for derived in self.derived:
            if (value := derived.cell(read)) is None:
                return None
            read.append(value)
        numbers = [read[place] for place in self.numbers]
        made = [fill if value != value else value for value, fill in zip(numbers, self.fills, strict=True)]
        made += [1.0 if numbers[place] != numbers[place] else 0.0 for place in self.flagged]
        if self.centre is not None and self.scale is not None:
            moved = zip(made, self.centre.tolist(), self.scale.tolist(), strict=True)
            made = [(value - centre) / scale for value, centre, scale in moved]
            if max(map(abs, made)) > LARGEST:
                return None
        for place in self.categories:
            made += read[place]
        return np.array([made])

    def plain(self, cells: Sequence[Any]) -> list[Any]:
        """The cells of one row as answers tell them, where `row` or `rows` found nothing unusual."""
        return [column.plain(cell) for column, cell in zip(self.inputs, cells, strict=True)]

    def rows(self, rows: Sequence[Sequence[Any]]) -> Array | None:
        """Many rows, shape (n, features); None where any cell needs a closer look."""
        cells = list(chain.from_iterable(rows))
        width = len(self.inputs)
        if len(cells) != width * len(rows):
            return None
        return self.columns([cells[place::width] for place in range(width)])

    def columns(self, columns: Sequence[Sequence[Any]]) -> Array | None:
        """`rows` of cells that come column by column, in the order of the inputs."""
        try:
            read = [known.column(cells) for known, cells in zip(self.inputs, columns, strict=True)]
            for derived in self.derived:
                read.append(derived.column(read))
        except (Unusual, OverflowError):
            return None
        blocks = []
        if self.numbers:
            numbers = np.column_stack([read[place] for place in self.numbers])
            missing = np.isnan(numbers)
            numbers = np.column_stack([np.where(missing, self.fills, numbers), missing[:, list(self.flagged)]])
            if self.centre is not None and self.scale is not None:
                numbers = (numbers - self.centre) / self.scale
                if not (np.abs(numbers) <= LARGEST).all():
                    return None
            blocks.append(numbers)
        return np.column_stack([*blocks, *(read[place] for place in self.categories)])


def _names(expression: Expression) -> Sequence[str]:
    return expression.get("ratio") or expression.get("difference") or (expression.get("log") or expression["bin"],)


def _input(name: str, column: Column, known: Sequence[_Value] | None) -> _Number | _Known:
    if known is not None:
        return _Known.of(known)
    if column.type == "boolean":
        return _Known.of([replace(v, read=v.typed) for v in _values(name, column, [True, False, None])])
    low, high = column.range or (-LARGEST, LARGEST)
    return _Number(
        max(low, -LARGEST),
        min(high, LARGEST),
        markers(column),
        column.type == "integer",
        _NAN if column.missing > 0 else None,
    )


def _values(name: str, column: Column, candidates: Sequence[Any]) -> list[_Value]:
    """Those of some values of JSON that nothing is unusual about, without what the estimator gets for them."""
    raw = pd.DataFrame({name: pd.Series(list(candidates), dtype=object)})
    typed = to_frame(raw, {name: column})
    refused = {row for problem in typed.problems for row in problem.rows}
    refused |= {finding.row for finding in examine(typed.frame, {name: column})}
    return [
        _Value(cell, value, plain_cell(value, column))
        for row, (cell, value) in enumerate(zip(candidates, typed.frame[name], strict=True))
        if row not in refused
    ]


def _tables(
    part: Pipeline, chosen: Sequence[str], schema: Schema, made: Mapping[str, Expression]
) -> dict[str, list[_Value]]:
    """By category feature: the values that may come, and the estimator's features that each becomes."""
    encoder = part.steps[-1][1]
    known: dict[str, list[_Value]] = {}
    for name, fitted in zip(chosen, encoder.categories_, strict=True):
        if name in made:
            labels = made[name].get("labels") or bin_labels(made[name]["edges"])
            known[name] = [_Value(label, label) for label in (*labels, np.nan)]
        else:
            column = schema.inputs[name]
            known[name] = _values(name, column, _candidates(categories(column) or fitted))
    frame = pd.DataFrame({name: pd.Series([v.typed for v in values], dtype=object) for name, values in known.items()})
    encoded = np.split(part.transform(frame), np.cumsum(widths(encoder))[:-1], axis=1)
    return {
        name: [replace(v, read=tuple(line)) for v, line in zip(known[name], lines.tolist(), strict=False)]
        for name, lines in zip(chosen, encoded, strict=True)
    }


def _candidates(texts: Sequence[str]) -> list[Any]:
    """Values of JSON that may mean one of these categories, and the missing one."""
    found: list[Any] = [None, True, False, *texts]
    for text in texts:
        try:
            number = float(text)
        except ValueError:
            continue
        if math.isfinite(number):
            found.append(number)
    return found


def widths(encoder: OneHotEncoder) -> list[int]:
    """Of each category column, how many features it becomes: rare categories share one."""
    known = [len(fitted) for fitted in encoder.categories_]
    if (rare := getattr(encoder, "infrequent_categories_", None)) is None:
        return known
    return [count if few is None else count - len(few) + 1 for count, few in zip(known, rare, strict=True)]


def _numbers(
    part: Pipeline, chosen: Sequence[str]
) -> tuple[tuple[float, ...], tuple[int, ...], Array | None, Array | None]:
    """Fills, flagged places, centre and scale of the number features."""
    imputer = part.steps[0][1]
    filled = imputer.transform(pd.DataFrame([[np.nan] * len(chosen)], columns=list(chosen)))[0]
    flagged = tuple(imputer.indicator_.features_.tolist()) if imputer.add_indicator else ()
    if len(filled) != len(chosen) + len(flagged):
        raise Unusual
    scaler = part.steps[-1][1]
    centre, scale = (scaler.mean_, scaler.scale_) if isinstance(scaler, StandardScaler) else (None, None)
    return tuple(filled[: len(chosen)].tolist()), flagged, centre, scale
