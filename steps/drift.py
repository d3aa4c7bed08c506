"""How far the distribution of a column has moved from a reference."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.monitoring import ORDERED, Distance

Method = Distance
MIN_ROWS = 500
FEW_VALUES = 20
MOST_CATEGORIES = 200
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tally:
    """How often the values of two samples fall in each of k cells.

    Attributes:
        reference: Shape (k,): counts of the reference.
        window: Shape (k,): counts of the other sample.
        at: Shape (k,): where the cells lie, rising, in standard deviations of the reference; None for cells
            without order.
    """

    reference: _Array
    window: _Array
    at: _Array | None = None


def drift_score(method: Method, reference: "pd.Series[Any]", current: "pd.Series[Any]") -> float:
    """Distance of two samples of a typed column, missing values left out; 0 where they agree, larger with drift.

    See `distance` for the methods and `tally` for the cells. A sampling note: with fewer than 500 rows on a side an
    undrifted column often reaches 0.1.
    """
    counts = tally(method, reference, current)
    if not counts.reference.sum() or not counts.window.sum():
        return 0.0 if counts.reference.sum() == counts.window.sum() else 1.0
    return observed(method, counts)


def observed(method: Method, counts: Tally) -> float:
    """The distance of two samples, neither of them empty."""
    shares = counts.reference / counts.reference.sum(), counts.window / counts.window.sum()
    return float(distance(method, *shares, counts.at))


def distance(method: Method, p: _Array, q: _Array, at: _Array | None = None) -> _Array:
    """Distances of distributions over the same k cells.

    - `jensenshannon`: Jensen-Shannon distance (natural logarithm; Endres & Schindelin 2003), 0 to 0.83.
    - `psi`: population stability index; shares below 1e-4 count as that.
    - `chisquare`: Cramér's V of the two, weighted alike, 0 to 1.
    - `ks`: largest gap between the two distribution functions, 0 to 1.
    - `wasserstein`: earth mover's distance, in the units of `at`.

    Cells without order have no `ks` and `wasserstein`: Jensen-Shannon is used.

    Args:
        method: Which.
        p: Shape (..., k): shares of the reference.
        q: Shape (..., k): shares of the window.
        at: Shape (k,): where the cells lie, rising; None for cells without order.

    Returns:
        Shape (...).
    """
    from scipy.special import rel_entr

    if at is not None and method in ORDERED:
        gaps = np.abs(np.cumsum(p - q, axis=-1))
        return gaps.max(axis=-1) if method == "ks" else (gaps[..., :-1] * np.diff(at)).sum(axis=-1)
    if method == "psi":
        p, q = np.maximum(p, 1e-4), np.maximum(q, 1e-4)
        return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))
    middle = (p + q) / 2
    if method == "chisquare":
        return np.sqrt(((p - q) ** 2 / np.where(middle > 0, middle, 1)).sum(axis=-1)) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2
    return np.sqrt(np.maximum(divergence, 0))


def tally(method: Method, reference: "pd.Series[Any]", window: "pd.Series[Any]") -> Tally:
    """Count two samples of a typed column in the same cells; missing and infinite values are left out.

    Cells come from the reference alone, so that one far value in a window cannot hide what the others do: its 200 most
    frequent categories, its values where it has 20 at most, else as many of its quantiles as Sturges' rule has bins for
    the smaller sample (500 rows: 10; 20,000: 16; few enough that noise alone stays below an effect of 0.1 from 500
    rows on). What is in none of them shares one cell. `ks` and `wasserstein` take every value of both.
    """
    old, new = reference.dropna(), window.dropna()
    if old.dtype == np.dtype(object) or new.dtype == np.dtype(object):
        return _named(pd.Index(old.value_counts().index[:MOST_CATEGORIES]), old, new)
    a, b = _numbers(old), _numbers(new)
    if not len(a) or not len(b):
        return Tally(np.array([len(a)]), np.array([len(b)]))
    if method in ORDERED:
        values, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
        at = (values - values[0]) / max(float(a.std()), 1e-9)
        k = len(values)
        return Tally(np.bincount(codes[: len(a)], minlength=k), np.bincount(codes[len(a) :], minlength=k), at)
    distinct = np.unique(a)
    if len(distinct) <= FEW_VALUES:
        return _named(pd.Index(distinct), pd.Series(a), pd.Series(b))
    bins = int(np.ceil(np.log2(min(len(a), len(b))))) + 1
    edges = np.unique(np.quantile(a, np.linspace(0, 1, bins + 1)[1:-1]))
    old_counts, new_counts = (
        np.bincount(np.searchsorted(edges, side, side="right"), minlength=len(edges) + 1) for side in (a, b)
    )
    return Tally(old_counts, new_counts)


def _named(cells: "pd.Index[Any]", old: "pd.Series[Any]", new: "pd.Series[Any]") -> Tally:
    known = len(cells)
    codes = (cells.get_indexer(side) for side in (pd.Index(old), pd.Index(new)))
    a, b = (np.bincount(np.where(side < 0, known, side), minlength=known + 1) for side in codes)
    return Tally(a, b)


def _numbers(values: "pd.Series[Any]") -> _Array:
    if values.dtype.kind == "M":
        return values.to_numpy("datetime64[s]").astype(np.float64)
    numbers = values.to_numpy(np.float64)
    return numbers[np.isfinite(numbers)]
