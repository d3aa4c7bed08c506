"""Bootstrap intervals (Efron 1979): rows are drawn anew with replacement, as counts, and figures made of counts.

What is drawn is how often each row, or each cell of rows that are alike, comes. Two models on the same rows, or several
groups, are compared within the same counts: give `resample` a function that makes all the figures at once.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

Array = np.ndarray[Any, Any]
Figures = Callable[[Array], Mapping[str, Array]]
Grouping = Callable[[Array, Array], "Cells"]

PLAIN_ROWS = 50_000
CELLS = 16_384
CHUNK = 2_000_000  # counts held at once: 16 MB


class Interval(BaseModel):
    """Both ends of a percentile interval, in the units of its figure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float


@dataclass(frozen=True)
class Cells:
    """Rows that are alike, counted together.

    Attributes:
        of_row: Shape (n,): the cell of each row.
        sizes: Shape (c,): rows of each cell.
    """

    of_row: Array
    sizes: Array

    @property
    def first(self) -> Array:
        """Shape (c,): the first row of each cell."""
        first = np.empty(len(self.sizes), dtype=np.int64)
        first[self.of_row[::-1]] = np.arange(len(self.of_row))[::-1]
        return first

    def mean(self, values: Array) -> Array:
        """Mean of rows' values, (n,) or (n, m), in each cell: (c,) or (c, m)."""
        if len(self.sizes) == len(self.of_row):
            return np.asarray(values, dtype=np.float64)
        columns = values.reshape(len(values), -1).T
        sums = [np.bincount(self.of_row, weights=column, minlength=len(self.sizes)) for column in columns]
        return (np.array(sums) / self.sizes).T.reshape(len(self.sizes), *values.shape[1:])


def cells(strata: Array, values: Array, most: int = CELLS, plain: int = PLAIN_ROWS) -> Cells:
    """Each row by itself up to `plain` rows; above, rows of one stratum and of near values together.

    A cell holds about n / `most` rows of one stratum: quantile bins of one value, or halves of halves at the median of
    one value after the other. Equal rows stay together, however many they are.

    Args:
        strata: Shape (n,) of integers: rows that differ here are never in one cell, such as truth and group.
        values: Shape (n, m): what figures depend on, such as probabilities.
        most: How many cells there are, about.
        plain: How many rows are left as they are.
    """
    rows = len(strata)
    if rows <= plain:
        return each_row(strata, values)
    limit = rows / most
    group = np.unique(strata, return_inverse=True)[1]
    if values.shape[1] == 1:
        group = _binned(group, values[:, 0], limit)
        return Cells(group, np.bincount(group))
    unchanged = 0
    for column in itertools.cycle(values.T):
        sizes = np.bincount(group)
        if sizes.max() <= limit or unchanged == values.shape[1]:
            break
        halved = _halved(group, sizes > limit, column)
        unchanged = unchanged + 1 if halved.max() == group.max() else 0
        group = halved
    return Cells(group, np.bincount(group))


def each_row(strata: Array, values: Array) -> Cells:  # noqa: ARG001
    """Each row by itself, however many there are; as `cells`."""
    rows = len(strata)
    return Cells(np.arange(rows), np.ones(rows, dtype=np.int64))


def _binned(group: Array, values: Array, limit: float) -> Array:
    """Runs of about `limit` rows in the order of group and value; a run begins with a new value."""
    order = np.lexsort((values, group))
    places = np.arange(len(order))
    fresh = np.diff(group[order], prepend=-1) > 0
    start = np.maximum.accumulate(np.where(fresh, places, 0))
    fresh |= np.diff(values[order], prepend=-np.inf) > 0
    first = np.maximum.accumulate(np.where(fresh, places, 0))
    runs = ((first - start) // limit).astype(np.int64)
    begins = (np.diff(runs, prepend=-1) != 0) | (start == places)
    binned = np.empty(len(order), dtype=np.int64)
    binned[order] = np.cumsum(begins) - 1
    return binned


def _halved(group: Array, large: Array, values: Array) -> Array:
    """Large groups cut in two near their median; rows of equal value stay together."""
    rows = np.flatnonzero(large[group])
    order = rows[np.lexsort((values[rows], group[rows]))]
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    smallest, middle = values[order[starts]], values[order[starts + sizes // 2]]
    upper = values[order] >= np.repeat(middle, sizes)
    # Where half of the rows have the smallest value, those are the lower part.
    upper &= values[order] > np.repeat(smallest, sizes)
    cut = 2 * group
    cut[order] += upper
    return np.unique(cut, return_inverse=True)[1]


def draw(sizes: Array | int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each row or cell comes in each resample.

    Args:
        sizes: Rows of each cell, or a number of rows, each by itself.
        resamples: How many there are in all.
        seed: The same seed gives the same counts.

    Yields:
        Shape (r, c), float64: the next r resamples; each sums to the number of rows.
    """
    random = np.random.default_rng(seed)
    counted = np.ones(sizes, dtype=np.int64) if isinstance(sizes, int) else sizes
    width, rows = len(counted), int(counted.sum())
    step = max(1, CHUNK // width)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        if rows == width:
            drawn = random.integers(0, rows, (count, rows)) + width * np.arange(count)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=count * width).reshape(count, width)
        else:
            counts = random.multinomial(rows, counted / rows, size=count)
        yield counts.astype(np.float64)


def resample(figures: Figures, sizes: Array | int, resamples: int, seed: int) -> dict[str, Array]:
    """Figures of every resample.

    Args:
        figures: Counts of shape (r, c) to figures of shape (r,) by name, NaN where the counts do not allow one.
        sizes: Rows of each cell, or a number of rows, each by itself.
        resamples: How many.
        seed: Of the counts.

    Returns:
        Figure to its values, shape (resamples,).
    """
    parts = [figures(counts) for counts in draw(sizes, resamples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values: Array, confidence: float, moved: float = 0.0) -> Interval | None:
    """The percentile interval of a figure.

    Args:
        values: Shape (resamples,): the figure in each resample, NaN where that does not allow it.
        confidence: Share that the interval holds.
        moved: What to add: the exact figure less that of the cells.

    Returns:
        None where fewer than half of the resamples allow the figure.
    """
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values) or not len(known):
        return None
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(low=float(low + moved), high=float(high + moved))
