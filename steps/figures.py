"""Figures of many resamples at once: made of how often each row comes, what `steps.metrics` makes of rows."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from steps.bootstrap import Cells, Grouping, cells
from steps.metrics import ECE_BINS, calibration_gaps, row_losses

Array = np.ndarray[Any, Any]

AREAS = ("roc_auc", "pr_auc", "pr_auc_macro")
BY_CLASS = ("precision", "recall", "f1", "roc_auc", "pr_auc")


@dataclass(frozen=True)
class Classified:
    """A classifier's answers, in cells of rows that are alike.

    Attributes:
        cells: Which rows are counted together; their truth, prediction and calibration bin are the same.
        truth: Shape (c,): codes 0..k-1, k for a class that the model does not know.
        predicted: Shape (c,): codes 0..k-1.
        scores: Shape (c, k): mean probabilities.
        bins: Shape (c,): calibration bins.
        losses: Shape (c, 3): mean log loss, squared error and calibration gap.
        told: Shape (c,) of bool: whether the model does not abstain; None where it never does.
    """

    cells: Cells
    truth: Array
    predicted: Array
    scores: Array
    bins: Array
    losses: Array
    told: Array | None

    def figures(self, counts: Array) -> dict[str, Array]:
        """Every figure of a classifier, of the whole and, as `<figure>:<code>`, of each class.

        Args:
            counts: Shape (r, c): how often each cell's rows come.

        Returns:
            Figure to shape (r,), NaN where the counts do not allow it.
        """
        return self.sum_figures(counts) | self.area_figures(counts)

    def sum_figures(self, counts: Array) -> dict[str, Array]:
        """Those that are made of sums over rows; as `figures`."""
        rows, classes = counts.sum(axis=1), self.scores.shape[1]
        summed = counts @ self._sums
        actual, said, hits = np.split(summed[:, : 3 * (classes + 1)], 3, axis=1)
        rest = summed[:, 3 * (classes + 1) :]
        recall, f1 = _share(hits, actual), _share(2 * hits, actual + said)
        figures = {
            "accuracy": hits.sum(axis=1) / rows,
            "balanced_accuracy": _mean(recall),
            "f1_macro": _mean(f1),
            "f1_weighted": (np.nan_to_num(f1) * actual).sum(axis=1) / rows,
            "log_loss": rest[:, 0] / rows,
            "brier": rest[:, 1] / rows,
            "ece": np.abs(rest[:, 2 : 2 + ECE_BINS]).sum(axis=1) / rows,
        }
        if self.told is not None:
            figures |= {"answered": rest[:, -2] / rows, "accuracy_answered": _share(rest[:, -1], rest[:, -2])}
        # What was never said is said with precision 0, as scikit-learn has it.
        by_class = (np.nan_to_num(_share(hits, said)), recall, np.where(actual > 0, f1, np.nan))
        for name, values in zip(BY_CLASS, by_class, strict=False):
            figures |= {f"{name}:{code}": values[:, code] for code in range(classes)}
        return figures

    def area_figures(self, counts: Array) -> dict[str, Array]:
        """Areas under curves, which need the rows in the order of their scores; as `figures`."""
        classes = self.scores.shape[1]
        roc, precision = np.array([ranks.areas(counts) for ranks in self._ranks]).transpose(1, 2, 0)
        if classes == 2:
            figures = {"roc_auc": roc[:, 1], "pr_auc": precision[:, 1]}
        else:
            figures = {"roc_auc": _mean(roc), "pr_auc_macro": _mean(precision)}
        for name, values in (("roc_auc", roc), ("pr_auc", precision)):
            figures |= {f"{name}:{code}": values[:, code] for code in range(classes)}
        return figures

    @cached_property
    def _sums(self) -> Array:
        """Shape (c, m): what is added up: rows of a class, said to be, and both; losses; gaps by bin; abstentions."""
        known = np.arange(self.scores.shape[1] + 1)
        right, said = self.truth == self.predicted, self.predicted[:, None] == known
        columns = [self.truth[:, None] == known, said, said & right[:, None], self.losses[:, :2]]
        columns += [self.losses[:, 2:] * (self.bins[:, None] == np.arange(ECE_BINS))]
        if self.told is not None:
            columns += [self.told[:, None], (self.told & right)[:, None]]
        return np.hstack(columns).astype(np.float64)

    @cached_property
    def _ranks(self) -> list["Ranks"]:
        """By class: its cells among all in the order of its score."""
        return [ranked(column, self.truth == code) for code, column in enumerate(self.scores.T)]


@dataclass(frozen=True)
class Ranks:
    """Where the cells of one class are in the order of their score: of many classes a small part of all cells.

    Attributes:
        order: Shape (c,): all cells, the lowest score first.
        positive: Shape (p,): places in that order of the cells of the class.
        first: Shape (p,): place at which each one's run of equal scores begins.
        end: Shape (p,): place after that run.
        first_hit: Shape (p,): how many of `positive` lie before `first`.
        end_hit: Shape (p,): how many before `end`.
    """

    order: Array
    positive: Array
    first: Array
    end: Array
    first_hit: Array
    end_hit: Array

    def areas(self, counts: Array) -> tuple[Array, Array]:
        """Areas under the curves of the class against the rest.

        Args:
            counts: Shape (r, c): how often each cell's rows come.

        Returns:
            Twice shape (r,), NaN where the counts do not allow it. ROC-AUC: the share of pairs in the right order, ties
            half (Hanley & McNeil 1982). PR-AUC: the average precision, the sum over thresholds of the precision there
            times the recall gained, as scikit-learn has it.
        """
        drawn = np.take(counts, self.order, axis=1)
        own = np.take(drawn, self.positive, axis=1)
        below, hits = _before(drawn), _before(own)
        rows, positives = below[:, -1], hits[:, -1]
        missed = np.take(hits, self.first_hit, axis=1)
        others = np.take(below, self.first, axis=1) - missed
        until = np.take(below, self.end, axis=1) - np.take(hits, self.end_hit, axis=1)
        # Of two rows with one score, either may come first: they count a half.
        area = _share(np.sum(own * (others + until), axis=1) / 2, positives * (rows - positives))
        found = positives[:, None] - missed
        at_least = found + (rows - positives)[:, None] - others
        return area, _share(np.sum(own * found / np.maximum(at_least, 1), axis=1), positives)


@dataclass(frozen=True)
class Estimated:
    """A regression's answers, in cells of rows that are alike.

    Attributes:
        cells: Which rows are counted together.
        sums: Shape (c, 4): mean absolute error, squared error, truth less its mean, and the square of that.
    """

    cells: Cells
    sums: Array

    def figures(self, counts: Array) -> dict[str, Array]:
        """`mae`, `rmse` and `r2`, each of shape (r,), of counts of shape (r, c); NaN where the truth is constant."""
        rows = counts.sum(axis=1)
        absolute, squared, centred, spread = (counts @ self.sums).T
        around = spread - centred**2 / rows
        constant = around <= 1e-12 * np.maximum(spread, np.finfo(np.float64).tiny)
        r2 = 1 - squared / np.where(constant, np.nan, around)
        return {"mae": absolute / rows, "rmse": np.sqrt(squared / rows), "r2": r2}


def classified(
    truth: Array, predicted: Array, probabilities: Array, told: Array | None = None, group: Grouping = cells
) -> Classified:
    """Prepare a classifier's answers.

    Args:
        truth: Shape (n,): codes 0..k-1; -1 for a class that the model does not know.
        predicted: Shape (n,): codes.
        probabilities: Shape (n, k), rows that sum to 1.
        told: Shape (n,) of bool: rows for which the model does not abstain; None where it never does.
        group: Which rows are counted together.
    """
    classes = probabilities.shape[1]
    bins, gaps = calibration_gaps(truth, probabilities)
    strata = ((truth + 1) * classes + predicted) * ECE_BINS + bins
    if told is not None:
        strata = 2 * strata + told
    grouped = group(strata, probabilities[:, 1:] if classes == 2 else probabilities)
    first = grouped.first
    return Classified(
        grouped,
        truth=np.where(truth < 0, classes, truth)[first],
        predicted=predicted[first],
        scores=grouped.mean(probabilities),
        bins=bins[first],
        losses=grouped.mean(np.stack((*row_losses(truth, probabilities), gaps), axis=1)),
        told=None if told is None else told[first],
    )


def ranked(scores: Array, of_class: Array) -> Ranks:
    """Rank cells by the score of a class.

    Args:
        scores: Shape (c,): its mean probability in each cell.
        of_class: Shape (c,) of bool: cells whose rows are of it.
    """
    order = np.argsort(scores, kind="stable")
    begins = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    positive = np.flatnonzero(of_class[order])
    run = np.searchsorted(begins, positive, side="right") - 1
    first, end = begins[run], np.append(begins[1:], len(order))[run]
    return Ranks(order, positive, first, end, np.searchsorted(positive, first), np.searchsorted(positive, end))


def estimated(truth: Array, predicted: Array, group: Grouping = cells) -> Estimated:
    """Prepare a regression's answers: truth and prediction of shape (n,); `group` as in `classified`."""
    errors, centred = predicted - truth, truth - truth.mean()
    strata = np.zeros(len(truth), dtype=np.int64)
    grouped = group(strata, np.stack((errors, centred), axis=1))
    return Estimated(grouped, grouped.mean(np.stack((np.abs(errors), errors**2, centred, centred**2), axis=1)))


def _before(counts: Array) -> Array:
    """Of counts, shape (r, c), how many come before each place and before the end: shape (r, c + 1)."""
    before = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=before[:, 1:])
    return before


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: Array) -> Array:
    """Mean over the classes that there are, of shape (r, k); NaN where there is none."""
    known = np.isfinite(values)
    return _share(np.where(known, values, 0.0).sum(axis=1), known.sum(axis=1))
