"""Pictures of an evaluation, as PNG files; no display and no global state of matplotlib is used."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import bounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from steps.measure import CalibrationBin
    from steps.slices import Slice

Array = np.ndarray[Any, Any]

SHOWN = 20
SLICES = 40
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


def pr_plot(path: Path, labels: Sequence[str], truth: Array, probabilities: Array) -> bool:
    """Draw precision over recall: of the second class of two, else of each class against the rest.

    Returns:
        Whether there was a curve to draw: a class that no row has gives none.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    figure, axes = _canvas("Precision and recall, test rows", "recall", "precision")
    drawn = False
    for code in [1] if len(labels) == 2 else range(min(len(labels), SHOWN)):
        positive = truth == labels[code]
        if positive.any():
            precision, recall, _ = precision_recall_curve(positive, probabilities[:, code])
            area = average_precision_score(positive, probabilities[:, code])
            axes.step(recall, precision, where="post", label=f"{labels[code][:20]} ({area:.3f})")
            drawn = True
    axes.set_ylim(-0.02, 1.05)
    if drawn:
        axes.legend(loc="lower left")
        _save(figure, path)
    return drawn


def calibration_plot(path: Path, bins: "Sequence[CalibrationBin]", title: str) -> None:
    """Draw what happened over what was said, bin by bin, and how many rows each bin has.

    Args:
        path: File to write.
        bins: See `steps.measure.calibration`.
        title: Which probability is meant.
    """
    figure, axes = _canvas(f"Calibration, test rows: {title}", "mean probability", "share where it came true")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot([one.said for one in bins], [one.happened for one in bins], marker="o")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    counts = axes.twinx()
    counts.bar(
        [one.low for one in bins],
        [one.rows for one in bins],
        [one.high - one.low for one in bins],
        align="edge",
        color="tab:orange",
        alpha=0.25,
    )
    counts.set_ylim(0, 3 * max(one.rows for one in bins))
    counts.set_ylabel("rows (bars)")
    _save(figure, path)


def slices_plot(path: Path, slices: "Sequence[Slice]", metric: str, whole: float) -> None:
    """Draw how far the model's metric on slices lies from that of all test rows (the line), with intervals."""
    shown = slices[:SLICES][::-1]
    figure, axes = _canvas("Slices of the test rows, with intervals", metric, "", (6.4, 1.6 + 0.32 * len(shown)))
    names = [f"{one.where[:60]} ({one.rows:,})" for one in shown]
    spread = np.array([[one.value - one.interval.low, one.interval.high - one.value] for one in shown]).T
    colours = ["tab:orange" if one.found else "tab:blue" for one in shown]
    axes.barh(names, [one.value - whole for one in shown], left=whole, color=colours, alpha=0.6)
    axes.errorbar(
        [one.value for one in shown], names, xerr=np.maximum(spread, 0), fmt="none", ecolor="black", capsize=3
    )
    axes.axvline(whole, color="grey", linestyle=":")
    ends = [whole, *(end for one in shown for end in (one.interval.low, one.interval.high))]
    room = 0.15 * (max(ends) - min(ends)) or 0.1
    axes.set_xlim(min(ends) - room, max(ends) + room)
    _save(figure, path)


def residual_spread_plot(path: Path, truth: Array, predicted: Array) -> None:
    """Draw a regression's residuals (predicted less true) over what was predicted, and how they are distributed."""
    residuals = predicted - truth
    figure, axes = _canvas("Residuals, test rows", "predicted", "predicted less true", (10.2, 5.2), 2)
    axes.scatter(predicted, residuals, s=8, alpha=0.5)
    axes.axhline(0, color="grey", linestyle=":")
    histogram = figure.axes[1]
    histogram.hist(residuals, bins=40)
    histogram.axvline(0, color="grey", linestyle=":")
    histogram.set_xlabel("predicted less true")
    histogram.set_ylabel("rows")
    _save(figure, path)


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


def dependence_plot(
    path: Path, name: str, values: Array, effects: Array, scale: str, speak_for: Array | None = None, *, strips: bool
) -> None:
    """Draw the effect of one column against its value; rows without a value have a strip of their own or are counted.

    Args:
        path: File to write.
        name: The column.
        values: Shape (n,): numbers, dates, or categories.
        effects: Shape (n,): signed effects.
        scale: What effects are measured in.
        speak_for: Shape (n,): the class that each effect speaks for, of more than two.
        strips: Whether values are categories: each has a strip of points, moved sideways a little, seeded.
    """
    missing = np.array([value is None or value != value for value in values])
    across, ticks = values, list[str]()
    if strips:
        words = np.array(["missing" if gone else _word(value) for value, gone in zip(values, missing, strict=True)])
        found, counts = np.unique(words, return_counts=True)
        ticks = sorted(found[np.argsort(-counts, kind="stable")[:_ANNOTATED]].tolist())
        kept = np.isin(words, ticks)
        sideways = np.random.default_rng(0).uniform(-0.25, 0.25, len(words))
        across = np.array([ticks.index(word) if word in ticks else -1 for word in words]) + sideways
    else:
        kept = ~missing
    title = name if strips or kept.all() else f"{name} ({int(missing.sum())} of {len(values)} missing)"
    figure, axes = _canvas(bounded(title, 90), "", f"effect on the {scale}", (4.8, 3.6))
    axes.axhline(0, color="grey", linewidth=0.8)
    for label in [None] if speak_for is None else sorted(set(speak_for[kept].tolist())):
        rows = kept if speak_for is None else kept & (speak_for == label)
        axes.scatter(across[rows], effects[rows], s=9, alpha=0.55, label=None if label is None else label[:20])
    if speak_for is not None and kept.any():
        axes.legend(fontsize=7)
    if ticks:
        axes.set_xticks(range(len(ticks)), [tick[:16] for tick in ticks], rotation=30 if len(ticks) > 4 else 0)
    _save(figure, path)


def tokens_plot(path: Path, tokens: Mapping[str, Mapping[str, float]], scale: str) -> None:
    """Draw the terms that speak most for and against each class, six classes at most, see `token_effects`."""
    shown = list(tokens.items())[:6]
    across = min(2, len(shown))
    down = -(-len(shown) // across)
    figure = _figure((4.6 * across, 2.9 * down))
    figure.suptitle(f"Terms, mean effect on the {scale}")
    for number, (label, terms) in enumerate(shown, 1):
        axes = figure.add_subplot(down, across, number)
        axes.set_title(label[:40], fontsize=10)
        rising = list(terms.items())[::-1]
        colours = ["#2a78d6" if effect > 0 else "#c4572e" for _, effect in rising]
        axes.barh([term[:30] for term, _ in rising], [effect for _, effect in rising], color=colours)
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
    _save(figure, path)


def effects_plot(path: Path, effects: Mapping[str, float], scale: str) -> None:
    """Draw the largest mean effects, see `mean_effects`."""
    top = sorted(effects.items(), key=lambda item: -item[1])[:SHOWN][::-1]
    figure, axes = _canvas("Mean effect of the columns, test rows", f"mean absolute effect on the {scale}", "")
    axes.barh([name[:40] for name, _ in top], [value for _, value in top])
    _save(figure, path)


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _canvas(
    title: str, across: str, up: str, size: tuple[float, float] = (6.4, 5.2), panels: int = 1
) -> "tuple[Figure, Axes]":
    """A figure and the first of its panels."""
    figure = _figure(size)
    axes = figure.subplots(1, panels, squeeze=False)[0, 0]
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return figure, axes


def _figure(size: tuple[float, float]) -> "Figure":
    logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.text import Text

    # Names of columns and classes are text: a `$` in them begins no formula.
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.savefig(path, dpi=100)
