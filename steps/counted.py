"""Figures of rows that are drawn several times or not at all: what `steps.metrics` says, for many draws at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.errors import DataError
from steps.metrics import ECE_BINS, calibration_gaps, row_losses

Array = np.ndarray[Any, Any]
Score = Callable[[Array], Array]
"""Counts, shape (times, cells), to the figure of each time, shape (times,); NaN where it is not defined."""

BY_LABEL = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted")


def score_labels(name: str, truth: Array, predicted: Array, classes: int) -> Score:
    """A figure of `BY_LABEL`.

    Args:
        name: Which.
        truth: Shape (cells,): codes 0..k-1; -1 for a class that no model knows.
        predicted: Shape (cells,): codes.
        classes: k.
    """
    known = np.arange(-1, classes)
    actual, said = (np.asarray(codes[:, None] == known, dtype=np.float64) for codes in (truth, predicted))

    def score(counts: Array) -> Array:
        hits, of_class, as_class = counts @ (actual * said), counts @ actual, counts @ said
        if name == "accuracy":
            return hits.sum(axis=1) / of_class.sum(axis=1)
        if name == "balanced_accuracy":
            return _mean_where(hits / np.maximum(of_class, 1), of_class > 0)
        f1 = 2 * hits / np.maximum(of_class + as_class, 1)
        if name == "f1_macro":
            return _mean_where(f1, of_class + as_class > 0)
        return (f1 * of_class).sum(axis=1) / of_class.sum(axis=1)

    return score


def score_rows(name: str, truth: Array, answered: Array) -> Score:
    """Any other figure.

    Args:
        name: Which.
        truth: Shape (cells,): codes, or numbers for regression.
        answered: Shape (cells, k) probabilities, or shape (cells,) numbers for regression.

    Raises:
        DataError: It cannot be computed from counts.
    """
    if name == "pr_auc":
        return _average_precision(truth == 1, answered[:, 1])
    if name == "roc_auc":
        classes = [1] if answered.shape[1] == 2 else range(answered.shape[1])
        areas = [_area(truth == code, answered[:, code]) for code in classes]
        return lambda counts: _defined_mean([area(counts) for area in areas])
    if name == "pr_auc_macro":
        precisions = [_average_precision(truth == code, column) for code, column in enumerate(answered.T)]
        return lambda counts: _defined_mean([precision(counts) for precision in precisions])
    if name == "ece":
        return _calibration(truth, answered)
    if name in ("rmse", "r2"):
        return _of_squares(name, truth, answered)
    losses = _losses(name, truth, answered)
    return lambda counts: counts @ losses / counts.sum(axis=1)


def _losses(name: str, truth: Array, answered: Array) -> Array:
    if name == "mae":
        return np.abs(answered - truth)
    if name in ("log_loss", "brier"):
        return row_losses(truth, answered)[name == "brier"]
    raise DataError(f"metric '{name}' has no paired bootstrap")


def _calibration(truth: Array, answered: Array) -> Score:
    bins, gaps = calibration_gaps(truth, answered)
    by_bin = gaps[:, None] * (bins[:, None] == np.arange(ECE_BINS))
    return lambda counts: np.abs(counts @ by_bin).sum(axis=1) / counts.sum(axis=1)


def _of_squares(name: str, truth: Array, answered: Array) -> Score:
    squares, centred = (answered - truth) ** 2, truth - truth.mean()

    def score(counts: Array) -> Array:
        rows = counts.sum(axis=1)
        error = counts @ squares / rows
        if name == "rmse":
            return np.sqrt(error)
        spread = counts @ centred**2 / rows - (counts @ centred / rows) ** 2
        return 1 - np.divide(error, spread, out=np.full(len(rows), np.nan), where=spread > 0)

    return score


def _ranked(positive: Array, scores: Array) -> Callable[[Array], tuple[Array, Array]]:
    """How many positive and negative rows are drawn of each distinct score, from the highest on."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    is_positive = positive[order]

    def split(counts: Array) -> tuple[Array, Array]:
        drawn = counts[:, order]
        wanted = np.add.reduceat(drawn * is_positive, starts, axis=1)
        return wanted, np.add.reduceat(drawn, starts, axis=1) - wanted

    return split


def _area(positive: Array, scores: Array) -> Score:
    """Area under the ROC curve: share of pairs in the right order, ties half (Hanley & McNeil 1982)."""
    split = _ranked(positive, scores)

    def score(counts: Array) -> Array:
        wanted, other = split(counts)
        below = other.sum(axis=1)[:, None] - other.cumsum(axis=1)
        pairs = wanted.sum(axis=1) * other.sum(axis=1)
        right = (wanted * (below + other / 2)).sum(axis=1)
        return np.divide(right, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return score


def _average_precision(positive: Array, scores: Array) -> Score:
    """Sum over thresholds of the precision there times the recall gained, as scikit-learn has it."""
    split = _ranked(positive, scores)

    def score(counts: Array) -> Array:
        wanted, other = split(counts)
        caught = wanted.cumsum(axis=1)
        precision = caught / np.maximum(caught + other.cumsum(axis=1), 1)
        total = wanted.sum(axis=1)
        found = (wanted * precision).sum(axis=1)
        return np.divide(found, total, out=np.full(len(counts), np.nan), where=total > 0)

    return score


def _mean_where(values: Array, there: Array) -> Array:
    return (values * there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)


def _defined_mean(values: Sequence[Array]) -> Array:
    """The mean over those of several figures that a resample allows."""
    table = np.stack(values, axis=1)
    there = np.isfinite(table)
    means = _mean_where(np.where(there, table, 0.0), there)
    return np.where(there.any(axis=1), means, np.nan)
