"""Rows that do not fit: a stop that counts them, or a place apart where they are kept with their reasons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bentos.frame import Problem
from models.config import ModelConfig
from models.errors import DataError

TEXT = 200


@dataclass(frozen=True)
class Rejected:
    """Rows that were set aside.

    Attributes:
        frame: One line a row: `quarantine_row` (from 1, header not counted), `quarantine_column` and
            `quarantine_reason` (several joined by `; `), then the declared columns and the target as the text
            that the source held, cut to 200 characters; of personal columns the pseudonym.
        positions: Their positions (from 0) in the source, rising.
        notice: How many and why, in one line; empty where there are none.
    """

    frame: pd.DataFrame
    positions: tuple[int, ...] = ()
    notice: str = ""


def stop_on(problems: Sequence[Problem], config: ModelConfig, rows: int) -> None:
    """Stop because of rows that do not fit.

    Raises:
        DataError: Says which columns, how many values, where the first is, and what to do; never a value.
    """
    target = config.target.column
    for p in merged(problems):
        if p.column == target and p.reason == "no value":
            raise DataError(
                f"target '{target}': {p.count} of {rows} rows have no value; remove these rows, a model cannot learn "
                "from them, or set `on_bad_row: quarantine` to go on without them"
            )
        if p.column == target and p.reason.startswith("not in "):
            raise DataError(
                f"target '{target}': {p.count} of {rows} values are {p.reason}; correct the data or the YAML, or set "
                "`on_bad_row: quarantine` to go on without these rows"
            )
    lines = [
        f"column '{p.column}': {p.count} of {rows} values: {p.reason} (first in row {p.first + 1}, header not counted)"
        for p in merged(problems)[:5]
    ]
    more = f"; and {len(merged(problems)) - 5} more columns" if len(merged(problems)) > 5 else ""
    raise DataError(
        f"values do not have the declared type: {'; '.join(lines)}{more}. Correct the data, list the words that mean "
        f"missing under `missing_values`, change the type in the YAML of '{config.name}', or set "
        "`on_bad_row: quarantine` to go on without these rows"
    )


def merged(problems: Sequence[Problem]) -> list[Problem]:
    """Problems of several chunks as one for each column and reason, in order of appearance."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for p in problems:
        found[p.column, p.reason] = found.get((p.column, p.reason), ()) + p.rows
    return [Problem(column, reason, rows) for (column, reason), rows in found.items()]


def rejected_rows(
    config: ModelConfig, raw: pd.DataFrame, typed: pd.DataFrame, problems: Sequence[Problem], start: int
) -> pd.DataFrame:
    """What is kept of a chunk's rows that do not fit, as `Rejected.frame` describes it.

    Args:
        config: The model.
        raw: The chunk as the source gave it.
        typed: The same rows typed, personal columns already replaced.
        problems: What does not fit, by positions in the chunk.
        start: Position of the chunk's first row in the source.
    """
    faults: dict[int, list[Problem]] = {}
    for problem in problems:
        for row in problem.rows:
            faults.setdefault(row, []).append(problem)
    rows = sorted(faults)
    kept: dict[str, Any] = {
        "quarantine_row": np.array([start + row + 1 for row in rows], dtype=np.int64),
        "quarantine_column": _objects(["; ".join(p.column for p in faults[row]) for row in rows]),
        "quarantine_reason": _objects(["; ".join(p.reason for p in faults[row]) for row in rows]),
    }
    for name in (*config.columns, config.target.column):
        personal = name in config.columns and config.columns[name].personal
        cells = (typed if personal else raw)[name].to_numpy()
        kept[name] = _objects([_text(cells[row]) for row in rows])
    return pd.DataFrame(kept)


def reject(config: ModelConfig, problems: Sequence[Problem], bad: Sequence[pd.DataFrame], rows: int) -> Rejected:
    """Set aside the rows that do not fit, unless they are too many.

    Args:
        config: The model.
        problems: What does not fit, by positions in the source.
        bad: `rejected_rows` of each chunk.
        rows: Number of rows of the source.

    Raises:
        DataError: They are a larger share than `max_bad_rows`, or no other row is left; reasons by count.
    """
    frame = pd.concat(bad, ignore_index=True) if len(bad) > 1 else bad[0]
    if not problems:
        return Rejected(frame)
    most = sorted(merged(problems), key=lambda p: -p.count)
    reasons = ", ".join(f"'{p.column}' {p.count:,} times {p.reason}" for p in most[:5])
    reasons += f" and {len(most) - 5} more reasons" if len(most) > 5 else ""
    count, share = len(frame), len(frame) / rows
    if share > config.max_bad_rows or count == rows:
        raise DataError(
            f"{count:,} of {rows:,} rows ({share:.1%}) would be quarantined, max_bad_rows allows "
            f"{config.max_bad_rows:.1%}: {reasons}. Correct the data or the YAML's types"
            + ("; no row would be left" if count == rows else ", or raise max_bad_rows")
        )
    positions = tuple((frame["quarantine_row"] - 1).tolist())
    return Rejected(frame, positions, f"quarantined {count:,} of {rows:,} rows: {reasons}")


def _objects(values: Sequence[Any]) -> "np.ndarray[Any, Any]":
    return np.fromiter(values, dtype=object, count=len(values))


def _text(cell: Any) -> Any:
    if pd.api.types.is_scalar(cell) and pd.isna(cell):
        return np.nan
    text = str(cell)
    return text if len(text) <= TEXT else f"{text[: TEXT - 1]}…"
