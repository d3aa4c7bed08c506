"""Pictures of an evaluation, as PNG files; no display and no global state of matplotlib is used."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray[Any, Any]

SHOWN = 20
_ANNOTATED = 12


def confusion_plot(path: Path, labels: Sequence[str], truth: Array, predicted: Array) -> None:
    """Draw how many rows of each class were taken for each class.

    Args:
        path: File to write.
        labels: Classes.
        truth: Shape (n,): true labels.
        predicted: Shape (n,): predicted labels.
    """
    counts = np.array([[np.sum((truth == row) & (predicted == column)) for column in labels] for row in labels])
    figure, axes = _canvas("Confusion matrix, test rows", "predicted", "true")
    axes.imshow(counts, cmap="Blues")
    axes.set_xticks(range(len(labels)), [label[:20] for label in labels], rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), [label[:20] for label in labels])
    if len(labels) <= _ANNOTATED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    _save(figure, path)


def roc_plot(path: Path, labels: Sequence[str], truth: Array, probabilities: Array) -> bool:
    """Draw the ROC curve: of the second class of two, else of each class against the rest.

    Returns:
        Whether there was a curve to draw: a class that no row or every row has gives none.
    """
    from sklearn.metrics import auc, roc_curve

    figure, axes = _canvas("ROC, test rows", "false positive rate", "true positive rate")
    shown = [1] if len(labels) == 2 else range(min(len(labels), SHOWN))
    drawn = False
    for code in shown:
        positive = truth == labels[code]
        if positive.any() and not positive.all():
            false_rate, true_rate, _ = roc_curve(positive, probabilities[:, code])
            axes.plot(false_rate, true_rate, label=f"{labels[code][:20]} ({auc(false_rate, true_rate):.3f})")
            drawn = True
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    if drawn:
        axes.legend(loc="lower right")
        _save(figure, path)
    return drawn


def residual_plot(path: Path, truth: Array, predicted: Array) -> None:
    """Draw predicted against true values of a regression."""
    figure, axes = _canvas("Predicted and true values, test rows", "true", "predicted")
    axes.scatter(truth, predicted, s=8, alpha=0.5)
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    axes.plot(ends, ends, color="grey", linestyle=":")
    _save(figure, path)


def importance_plot(path: Path, importance: Mapping[str, float], metric: str) -> None:
    """Draw the largest importances, see `permutation_importance`."""
    top = sorted(importance.items(), key=lambda item: -abs(item[1]))[:SHOWN][::-1]
    figure, axes = _canvas("Permutation importance, test rows", f"what shuffling the column costs in {metric}", "")
    axes.barh([name[:40] for name, _ in top], [value for _, value in top])
    _save(figure, path)


def _canvas(title: str, across: str, up: str) -> "tuple[Figure, Axes]":
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=100)
