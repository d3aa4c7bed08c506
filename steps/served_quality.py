"""Data quality of a window of answered rows: completeness, compliance, ranges, outliers, freshness, volume, score."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from bentos.frame import categories
from models.config import Column, ModelConfig
from steps.hashes import content_hashes
from steps.quality import WEIGHTS, Check
from steps.suite import CROSSING, FENCE, REPEATED, Wanted, as_view, run_suite, wanted
from steps.window import Window

NONE: Mapping[str, Any] = {}
_DIGITS = 6


class ColumnQuality(BaseModel):
    """Shares of one column, 0 to 1; of its present values where not said otherwise.

    Attributes:
        column: Its name.
        completeness: Share of the rows that have a value, of those of versions that read the column (1 without any);
            0 of a column that vanished.
        in_range: Share inside the declared range or categories; None where none are declared.
        outliers: Share beyond 3 interquartile ranges from the training rows' quartiles; None where they have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    completeness: float
    in_range: float | None = None
    outliers: float | None = None


class ServedQuality(BaseModel):
    """Data quality of a window.

    Attributes:
        rows: Rows in the window, those that it was widened by among them.
        volume: Rows of the span that was asked for.
        usual_volume: Median of earlier spans; None without any.
        volume_ratio: `volume` by that; None without any, or where it is 0.
        hours_since_last: From the newest answer to the window's end; None without answers.
        completeness: Share of all cells that have a value, but for those of versions that do not read the column.
        compliance: Share of all cells that are of their column's type, and of a column that is there.
        columns: One each.
        score: Training's quality score applied to these rows, 0 to 100; None without rows.
        failed: Names of the checks that did not pass, as `validation.severity` calls them; the first 20.
        notes: What a reader has to know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    volume: int
    usual_volume: float | None = None
    volume_ratio: float | None = None
    hours_since_last: float | None = None
    completeness: float
    compliance: float
    columns: tuple[ColumnQuality, ...]
    score: float | None = None
    failed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def served_quality(
    config: ModelConfig, window: Window, summary: Mapping[str, Any], volumes: Sequence[int] = ()
) -> ServedQuality:
    """Look at the rows of a window.

    Args:
        config: The model.
        window: Its answers.
        summary: Exact figures of the training rows, as `Release.reference_summary` gives them.
        volumes: Rows of earlier windows of the same length.

    Raises:
        WorkError: Great Expectations itself failed.
    """
    inputs = {name: config.columns[name] for name in config.input_names()}
    there = [name for name in inputs if name in window.inputs.columns]
    unread = sum(int(mask.sum()) for mask in window.unread.values())
    cells = max(window.rows * len(inputs) - unread, 1)
    present = int(window.inputs[there].notna().to_numpy().sum())
    checks = served_checks(config, window.inputs, window.unread) if window.rows else ()
    usual = float(np.median(volumes)) if volumes else None
    volume = window.rows - window.widened
    return ServedQuality(
        rows=window.rows,
        volume=volume,
        usual_volume=usual,
        volume_ratio=round(volume / usual, _DIGITS) if usual else None,
        hours_since_last=_hours(window.at[-1], window.until) if window.rows else None,
        completeness=round(present / cells, _DIGITS),
        compliance=round(max(window.rows * len(there) - unread - window.untyped, 0) / cells, _DIGITS),
        columns=tuple(_column(name, column, window, summary) for name, column in inputs.items()),
        score=_score(checks) if checks else None,
        failed=tuple(check.key for check in checks if not check.passed)[:20],
        notes=window.notes(),
    )


def served_checks(config: ModelConfig, frame: pd.DataFrame, unread: Mapping[str, Any] = NONE) -> tuple[Check, ...]:
    """Training's checks that rows without a target allow: on their number, columns, values and repetitions.

    Args:
        config: The model.
        frame: Typed rows.
        unread: By column, shape (n,) of bool: rows that say nothing of it. It is checked on those that lack no column.

    Raises:
        WorkError: Great Expectations itself failed.
    """
    inputs = {name: config.columns[name] for name in config.input_names()}
    served = config.model_copy(update={"columns": inputs})
    view = as_view(frame)
    repeated = pd.Series(content_hashes(view, list(view.columns))).duplicated().to_numpy(np.float64)
    view = pd.DataFrame({**view, REPEATED: repeated, CROSSING: np.zeros(len(frame))})
    suite = [
        check for check in wanted(served, frame) if check.kind != "leakage" and check.column != config.target.column
    ]
    suite = [_without_target(check, inputs) for check in suite]
    checks = run_suite(served, [check for check in suite if check.column not in unread], view)
    if unread and not (lacking := np.logical_or.reduce(list(unread.values()))).all():
        checks += run_suite(served, [check for check in suite if check.column in unread], view[~lacking])
    return tuple(checks)


def _without_target(check: Wanted, inputs: Mapping[str, Column]) -> Wanted:
    if check.kind != "schema":
        return check
    arguments = {"column_set": list(inputs), "exact_match": False}
    return replace(check, expected=f"the {len(inputs)} columns that the model reads", arguments=arguments)


def _score(checks: Sequence[Check]) -> float:
    """As `steps.quality.report_of`, which stops at critical failures: served rows have been answered already."""
    total = sum(WEIGHTS[check.severity] for check in checks)
    return round(100 * sum(WEIGHTS[check.severity] for check in checks if check.passed) / total, 2)


def _column(name: str, column: Column, window: Window, summary: Mapping[str, Any]) -> ColumnQuality:
    if name not in window.inputs.columns:
        return ColumnQuality(column=name, completeness=0.0)
    rows = window.inputs[name]
    if name in window.unread:
        rows = rows[~window.unread[name]]
    values = rows.dropna()
    within: float | None = None
    if column.range is not None:
        within = _share(values.between(*column.range).to_numpy())
    elif column.categories is not None:
        within = _share(values.isin(categories(column)).to_numpy())
    return ColumnQuality(
        column=name,
        completeness=round(len(values) / len(rows), _DIGITS) if len(rows) else 1.0,
        in_range=within,
        outliers=_outliers(values, summary.get("columns", {}).get(name, {}).get("quantiles", {})),
    )


def _share(mask: Any) -> float | None:
    return round(float(mask.mean()), _DIGITS) if len(mask) else None


def _outliers(values: "pd.Series[Any]", quantiles: Mapping[str, Any]) -> float | None:
    """Tukey's outer fences of the training rows; none where their middle half is one value."""
    low, high = quantiles.get("0.25"), quantiles.get("0.75")
    if values.dtype.kind != "f" or not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    if not high > low:
        return None
    reach = FENCE * (high - low)
    return _share(~values.between(low - reach, high + reach).to_numpy())


def _hours(newest: Any, until: datetime) -> float:
    age = until - newest.astype("datetime64[ms]").item().replace(tzinfo=UTC)
    return float(round(age.total_seconds() / 3600, 3))
