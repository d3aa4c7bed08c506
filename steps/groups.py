"""Groups: rows by what they hold in the sensitive columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from bentos.features import bin_labels, derive, expressions
from bentos.frame import categories
from models.config import ModelConfig
from models.errors import bounded

Array = np.ndarray[Any, Any]

MISSING = "(missing)"
OTHERS = "(others)"
MOST_VALUES = 100
_NAME_LIMIT = 60


@dataclass(frozen=True)
class Groups:
    """Rows by one column.

    Attributes:
        names: The groups, `(missing)` and `(others)` last where there are such rows.
        codes: Shape (n,): which of them a row is in.
    """

    names: tuple[str, ...]
    codes: Array


def crossings(columns: Sequence[str], most: int) -> tuple[tuple[str, ...], ...]:
    """Every column by itself, then every two of them, up to every `most`."""
    return tuple(chosen for size in range(1, most + 1) for chosen in combinations(columns, size))


def group_rows(config: ModelConfig, frame: pd.DataFrame, column: str) -> Groups:
    """Group rows by one raw or derived column.

    Categories, booleans and texts are grouped by value, numbers and dates by the quarters of these rows (by value where
    there are at most four). A missing value is a group of its own. Beyond the 100 most frequent, values are one group.

    Args:
        config: The model.
        frame: Typed rows; derived columns are computed as the fitted pipeline does.
        column: Name of the column.
    """
    values = frame[column] if column in config.columns else derive(frame, {column: expressions(config)[column]})[column]
    kind = config.columns[column].type if column in config.columns else config.derived[column].type
    if kind in ("number", "integer", "datetime") and values.nunique() > 4:
        names, codes = _quarters(values)
    else:
        codes, found = pd.factorize(_in_order(config, column, values), sort=True)
        names = [_named(value, kind == "boolean") for value in found]
        if len(names) > MOST_VALUES:
            names, codes = _most_frequent(names, codes)
    if (codes < 0).any():
        codes, names = np.where(codes < 0, len(names), codes), [*names, MISSING]
    return Groups(tuple(names), np.asarray(codes, dtype=np.int64))


def _in_order(config: ModelConfig, column: str, values: "pd.Series[Any]") -> Any:
    """Values as they come, or as categories in the order that the YAML declares, others behind them."""
    if column in config.derived:
        expression = config.derived[column]
        declared = list(expression.labels or bin_labels(expression.edges)) if expression.bin else []
    else:
        declared = list(categories(config.columns[column]))
    if not declared:
        return values
    others = sorted(set(values.dropna()) - set(declared))
    return pd.Categorical(values, categories=[*declared, *others], ordered=True)


def _quarters(values: "pd.Series[Any]") -> tuple[list[str], Array]:
    """Between the quartiles: at most the first, above it up to the second, …; equal quartiles make fewer groups."""
    edges = np.unique(values.dropna().quantile([0.25, 0.5, 0.75]).to_numpy())
    texts = [_named(edge) for edge in edges]
    names = [f"at most {texts[0]}", *(f"above {text}" for text in texts)]
    names[1:-1] = [f"{name} to {text}" for name, text in zip(names[1:-1], texts[1:], strict=True)]
    codes = np.searchsorted(edges, values.to_numpy(), side="left")
    return names, np.where(values.isna(), -1, codes)


def _most_frequent(names: Sequence[str], codes: Array) -> tuple[list[str], Array]:
    counts = np.bincount(codes[codes >= 0], minlength=len(names))
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
    # One place more than there are names: a code of -1 finds it and stays.
    new = np.full(len(names) + 1, len(kept))
    new[kept], new[-1] = np.arange(len(kept)), -1
    return [*(names[code] for code in kept), OTHERS], new[codes]


def _named(value: Any, boolean: bool = False) -> str:
    if boolean:
        return "true" if value else "false"
    if isinstance(value, np.datetime64 | pd.Timestamp):
        return str(pd.Timestamp(value).date())
    return f"{value:g}" if isinstance(value, float) else bounded(str(value), _NAME_LIMIT)
