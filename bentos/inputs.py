"""Rows of JSON to a typed frame and back, and what the model's own bounds say about them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from bentos.frame import Typed, categories, to_frame
from models.config import Column

Inputs = Mapping[str, Column]


@dataclass(frozen=True)
class Finding:
    """One cell that the model's YAML has something against.

    Attributes:
        row: Position of the row, from 0.
        column: Name of the column.
        reason: What is wrong; never the value.
        rejected: Whether the row must be refused, or is answered with a flag.
    """

    row: int
    column: str
    reason: str
    rejected: bool


def typed_rows(rows: Sequence[Sequence[Any]], inputs: Inputs) -> Typed:
    """The typed frame of rows whose values are in the order of `inputs`; None is missing."""
    table = np.empty((len(rows), len(inputs)), dtype=object)
    for position, row in enumerate(rows):
        table[position] = row
    raw = {name: table[:, position] for position, name in enumerate(inputs)}
    return to_frame(pd.DataFrame(raw, index=pd.RangeIndex(len(rows))), inputs)


def plain_rows(frame: pd.DataFrame, inputs: Inputs) -> list[dict[str, Any]]:
    """Typed rows as JSON-ready data: whole numbers as such, true and false, ISO dates, None for missing.

    `typed_rows` gives the same frame back.
    """
    named = plain_columns(frame, inputs)
    return [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]


def plain_columns(frame: pd.DataFrame, inputs: Inputs) -> dict[str, list[Any]]:
    """`plain_rows`, by column."""
    return {name: _plain_column(frame[name], column) for name, column in inputs.items()}


def _plain_column(values: "pd.Series[Any]", column: Column) -> list[Any]:
    """Each distinct value is looked at once."""
    codes, distinct = pd.factorize(values)
    cells = distinct.tolist()
    if column.type in ("number", "integer"):
        plain: list[Any] = [int(v) if v.is_integer() and abs(v) < 2**53 else v for v in cells]
    else:
        plain = [plain_cell(value, column) for value in cells]
    table = np.empty(len(plain) + 1, dtype=object)
    table[:-1] = plain
    return cast(list[Any], table[codes].tolist())  # a missing one has the code -1, and the table's last place


def examine(frame: pd.DataFrame, inputs: Inputs) -> list[Finding]:
    """Cells of a typed frame that are missing where none may be, outside their range, or of an unseen category."""
    return [finding for name, column in inputs.items() for finding in _examine(name, frame[name], column)]


def _examine(name: str, values: "pd.Series[Any]", column: Column) -> Iterator[Finding]:
    missing = values.isna().to_numpy()
    if column.missing == 0:
        yield from (Finding(row, name, "missing, and a value is needed", True) for row in _where(missing))
    if column.range is not None:
        low, high = column.range
        outside = ~missing & ~values.between(low, high).to_numpy()
        reason = f"outside the range {low:g} to {high:g}"
        yield from (Finding(row, name, reason, column.on_range == "reject") for row in _where(outside))
    if column.categories is not None:
        unseen = ~missing & ~values.isin(categories(column)).to_numpy()
        reason = "not one of the model's categories"
        yield from (Finding(row, name, reason, column.on_unseen == "reject") for row in _where(unseen))


def _where(mask: "np.ndarray[Any, Any]") -> list[int]:
    return [int(row) for row in np.flatnonzero(mask)]


def plain_cell(value: Any, column: Column) -> Any:
    """One cell of a typed frame as JSON-ready data."""
    if pd.isna(value):
        return None
    if column.type == "boolean":
        return bool(value)
    if column.type == "datetime":
        return value.strftime(column.format) if column.format else f"{value.isoformat()}Z"
    if column.type == "category":
        return _declared_form(value, column)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _declared_form(text: str, column: Column) -> Any:
    """A canonical category as the YAML writes it: 1 and not "1" where it lists numbers."""
    for declared, canonical in zip(column.categories or (), categories(column), strict=False):
        if canonical == text:
            return declared
    return text
