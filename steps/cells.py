"""Cells: rows counted by sensitive values, truth and prediction, which is all that rates per group depend on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from steps.groups import OTHERS, Groups

Array = np.ndarray[Any, Any]

MOST_GROUPS = 30
MOST_JUDGED = 100
RATES = ("selection_rate", "tpr", "fpr", "precision")
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Cells:
    """Occupied cells.

    Attributes:
        columns: Sensitive columns.
        names: Their groups.
        groups: Shape (m, columns): group of each cell.
        truth: Shape (m,): code of the true class, -1 for one that the model does not know.
        predicted: Shape (m,): code of the predicted class.
        counts: Shape (m,): rows, at least 1.
    """

    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    groups: Array
    truth: Array
    predicted: Array
    counts: Array

    @property
    def rows(self) -> int:
        """Rows in all cells."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Crossing:
    """Groups by one column or several.

    Attributes:
        columns: Which.
        names: Of each group, one name a column; the larger groups only, as `beyond` says.
        codes: Shape (m,): the group that each cell is in, -1 for those beyond.
        rows: Shape (groups,): their rows.
        beyond: How many smaller groups are left out.
        unjudged: How many of these have rows enough to be judged.
    """

    columns: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    codes: Array
    rows: Array
    beyond: int
    unjudged: int

    def judged(self, min_rows: int) -> Array:
        """Shape (groups,) of bool: those with enough rows, and of one value a column."""
        return np.array([OTHERS not in name for name in self.names]) & (self.rows >= min_rows)


def count_cells(groups: dict[str, Groups], truth: Array, predicted: Array) -> Cells:
    """Count rows by group in every column, true class and predicted class.

    Args:
        groups: Groups by sensitive column, at least one.
        truth: Shape (n,): codes.
        predicted: Shape (n,): codes.
    """
    keys = [*(group.codes for group in groups.values()), truth, predicted]
    frame = pd.DataFrame(dict(enumerate(keys)))
    counted = frame.groupby(list(frame), sort=True).size()
    cells = counted.index.to_frame(index=False).to_numpy(np.int64)
    names = tuple(group.names for group in groups.values())
    return Cells(tuple(groups), names, cells[:, :-2], cells[:, -2], cells[:, -1], counted.to_numpy(np.int64))


def cross(cells: Cells, columns: Sequence[str], min_rows: int) -> Crossing:
    """Group the cells by `columns`, in the order of their names' codes.

    Of the groups those with the most rows are kept: 30, and of those with at least `min_rows` up to 100.
    """
    places = [cells.columns.index(column) for column in columns]
    found, codes = np.unique(cells.groups[:, places], axis=0, return_inverse=True)
    rows = np.bincount(codes.ravel(), weights=cells.counts).astype(np.int64)
    large = int((rows >= min_rows).sum())
    kept = np.sort(np.argsort(-rows, kind="stable")[: max(MOST_GROUPS, min(large, MOST_JUDGED))])
    new = np.full(len(found), -1)
    new[kept] = np.arange(len(kept))
    names = [tuple(cells.names[place][code] for place, code in zip(places, found[k], strict=True)) for k in kept]
    beyond = len(found) - len(kept)
    return Crossing(tuple(columns), tuple(names), new[codes.ravel()], rows[kept], beyond, max(0, large - len(kept)))


def tally_matrix(cells: Cells, crossing: Crossing, positive: int) -> Any:
    """What turns counts of cells into those of groups, for one class against the rest.

    Returns:
        Sparse, shape (m, 4 * groups): rows; those of the class; those taken for it; those of both.
    """
    from scipy.sparse import csc_matrix, hstack

    inside = np.flatnonzero(crossing.codes >= 0)
    shape = (len(cells.counts), len(crossing.names))
    true, said = cells.truth == positive, cells.predicted == positive
    parts = []
    for wanted in (np.ones_like(true), true, said, true & said):
        chosen = inside[wanted[inside]]
        ones = np.ones(len(chosen), dtype=np.int64)
        parts.append(csc_matrix((ones, (chosen, crossing.codes[chosen])), shape=shape))
    return hstack(parts, format="csc")


def resample(cells: Cells, matrix: Any, resamples: int, seed: int) -> Array:
    """Bootstrap the rows: their counts per cell are multinomial, so that no row is drawn by itself.

    That is the same distribution as drawing n of n rows with replacement and counting (Efron & Tibshirani 1993, ch. 6),
    at a cost that depends on the number of cells and not of rows.

    Args:
        cells: The rows.
        matrix: Shape (m, t): see `tally_matrix`.
        resamples: How many.
        seed: Of numpy's PCG64.

    Returns:
        Shape (resamples, t): the tallies of every resample.
    """
    return np.concatenate([np.asarray(drawn @ matrix) for drawn in _drawn(cells, resamples, seed)])


def fractions(tally: Array) -> tuple[Array, Array]:
    """Numerators and denominators of `RATES`.

    Args:
        tally: Shape (..., 4, groups): rows, positives, selected, hits.

    Returns:
        Twice shape (..., 4, groups): selection rate selected / rows, TPR hits / positives, FPR false alarms /
        negatives, precision hits / selected.
    """
    rows, positives, selected, hits = np.moveaxis(tally, -2, 0)
    above = np.stack((selected, hits, selected - hits, hits), axis=-2)
    return above, np.stack((rows, positives, rows - positives, selected), axis=-2)


def _drawn(cells: Cells, resamples: int, seed: int) -> Iterator[Array]:
    rng = np.random.default_rng(seed)
    shares = cells.counts / cells.counts.sum()
    chunk = max(1, _CHUNK // len(shares))
    for start in range(0, resamples, chunk):
        yield rng.multinomial(cells.rows, shares, size=min(chunk, resamples - start))
