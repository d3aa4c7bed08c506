"""Figures of rows that are drawn several times or not at all: what `steps.metrics` says, for many draws at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from models.errors import DataError
from steps.figures import AREAS, ranked
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
    if name in AREAS:
        classes = [1] if answered.shape[1] == 2 else range(answered.shape[1])
        ranks = [ranked(answered[:, code], truth == code) for code in classes]
        return lambda counts: _defined_mean([each.areas(counts)[name != "roc_auc"] for each in ranks])
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


def _mean_where(values: Array, there: Array) -> Array:
    return (values * there).sum(axis=1) / np.maximum(there.sum(axis=1), 1)


def _defined_mean(values: Sequence[Array]) -> Array:
    """The mean over those of several figures that a resample allows."""
    table = np.stack(values, axis=1)
    there = np.isfinite(table)
    means = _mean_where(np.where(there, table, 0.0), there)
    return np.where(there.any(axis=1), means, np.nan)
