"""Figures of a model's answers against the truth: the same rows in, the same figures out, to the last digit."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.config import ModelConfig
from models.errors import ConfigError, DataError
from models.judgement import OwnMetric
from steps.own import own_metric, own_metrics

if TYPE_CHECKING:
    from bentos.release import Answers

Array = np.ndarray[Any, Any]

ECE_BINS = 15
CLASSIFICATION = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_weighted",
    "roc_auc",
    "pr_auc",
    "pr_auc_macro",
    "log_loss",
    "brier",
    "ece",
)
ABSTAINING = ("answered", "accuracy_answered")
REGRESSION = ("mae", "rmse", "r2")
NONE: Mapping[str, OwnMetric] = {}
_BEST = {"log_loss": 0.0, "brier": 0.0, "ece": 0.0, "mae": 0.0, "rmse": 0.0}


def metric_names(config: ModelConfig, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Figures that a task has; `pr_auc` for two classes, `pr_auc_macro` for more, `ABSTAINING` where it may abstain.

    Args:
        config: The model.
        labels: Its classes, where they are known.
    """
    own = tuple(config.evaluation.metrics)
    if config.task == "regression":
        return (*REGRESSION, *own)
    abstaining = ABSTAINING if config.serving.abstain_below is not None else ()
    absent = {0: None, 2: "pr_auc_macro"}.get(len(labels), "pr_auc")
    return (*(name for name in CLASSIFICATION if name != absent), *abstaining, *own)


def require_metric(config: ModelConfig, labels: Sequence[str] = ()) -> None:
    """Refuse a `metric` that the task has not, and own metrics that take a name or are asked for what they have not.

    Raises:
        ConfigError: The message names those there are.
    """
    own = config.evaluation.metrics
    if taken := [name for name in own if name in (*CLASSIFICATION, *ABSTAINING, *REGRESSION)]:
        raise ConfigError(f"evaluation.metrics: Gauntlet has a figure '{taken[0]}' already; give yours another name")
    if config.metric in own and config.promotion.min_improvement.of == "error":
        raise ConfigError(
            f"promotion.min_improvement.of: what '{config.metric}' is without error is not known: use metric"
        )
    names = [name for name in metric_names(config, labels) if name not in ABSTAINING]
    if config.metric not in names:
        classes = f" with {len(labels)} classes" if labels else ""
        raise ConfigError(
            f"metric: '{config.metric}' is no figure of a {config.task}{classes} (there is: {', '.join(names)})"
        )


def greater_is_better(name: str, own: Mapping[str, OwnMetric] = NONE) -> bool:
    """Whether a larger value of the figure is a better one; `own` are the model's own metrics."""
    return own[name].greater_is_better if name in own else name not in _BEST


def best_value(name: str, own: Mapping[str, OwnMetric] = NONE) -> float:
    """The value of the figure that a model without error has; infinite for an own metric, of which it is not known."""
    if name in own:
        return np.inf if own[name].greater_is_better else -np.inf
    return _BEST.get(name, 1.0)


def is_better(name: str, value: float, than: float, own: Mapping[str, OwnMetric] = NONE) -> bool:
    """Whether `value` is strictly better than `than`; a tie is not."""
    return value > than if greater_is_better(name, own) else value < than


def compute_metrics(config: ModelConfig, labels: Sequence[str], truth: Array, answers: "Answers") -> dict[str, float]:
    """All figures of a task that these rows allow.

    A figure that needs what the rows do not hold (`roc_auc` of a test set with one class, `r2` of a constant truth)
    is left out, unless it is the one that the model goes by.

    Args:
        config: The model.
        labels: Classes in the order of the probabilities' columns; empty for regression.
        truth: Shape (n,): labels, or numbers for regression. A label that is not among `labels` counts as missed.
        answers: What the model said to the same rows.

    Raises:
        DataError: There are no rows, the rows do not allow `config.metric`, or an own metric fails on them.
    """
    if not len(truth):
        raise DataError("no rows to evaluate on: give more data, or a larger split.test")
    if config.task == "regression":
        truth = np.asarray(truth, dtype=np.float64)
        figures = regression_metrics(truth, answers.values)
    else:
        if answers.probabilities is None:
            raise TypeError("a classifier's answers hold probabilities")
        codes = class_codes(labels, truth)
        predicted = class_codes(labels, answers.values)
        figures = classification_metrics(codes, answers.probabilities, predicted)
        if config.serving.abstain_below is not None:
            told = answers.probabilities.max(axis=1) >= config.serving.abstain_below
            figures |= abstention_metrics(codes, predicted, told)
    figures |= own_metrics(config, truth, answers.values, answers.probabilities)
    if config.metric not in figures:
        raise DataError(_undefined(config, labels, truth))
    return figures


def figure(name: str, truth: Array, answered: Array) -> float | None:
    """One figure, or None where the rows do not allow it.

    Args:
        name: Which.
        truth: Shape (n,): codes, or numbers for regression.
        answered: Shape (n, k) probabilities, or shape (n,) numbers for regression.
    """
    if answered.ndim == 1:
        return regression_metrics(truth, answered).get(name)
    if name == "accuracy":
        return float(np.mean(truth == answered.argmax(axis=1)))
    if name == "roc_auc":
        return _roc_auc(truth, answered)
    return classification_metrics(truth, answered).get(name)


def deciding_figure(config: ModelConfig, labels: Sequence[str], truth: Array, answered: Array) -> float | None:
    """The figure that a model goes by, of ours or of the user's own; None where the rows do not allow it.

    Args:
        config: The model.
        labels: Its classes; empty for regression.
        truth: As `figure` takes it; a code of -1 is None to a function of the user's.
        answered: Likewise.

    Raises:
        DataError: The user's function fails on these rows.
    """
    name, own = config.metric, config.evaluation.metrics.get(config.metric)
    if own is None:
        return figure(name, truth, answered)
    if answered.ndim == 1:
        return own_metric(name, own, truth, answered, None)
    names = np.array([*labels, None], dtype=object)
    return own_metric(name, own, names[truth], names[answered.argmax(axis=1)], answered)


def classification_metrics(truth: Array, probabilities: Array, predicted: Array | None = None) -> dict[str, float]:
    """Figures of a classifier.

    Args:
        truth: Shape (n,): codes 0..k-1; -1 for a class that the model does not know.
        probabilities: Shape (n, k), rows that sum to 1.
        predicted: Shape (n,): codes; the most probable class when left out.

    Returns:
        `roc_auc` of many classes is the mean over the classes that the rows tell apart, each against the rest
        (Hand & Till 2001 discuss it); `log_loss` clips at the smallest double step; `brier` is the mean squared
        error of the second class's probability, of many classes the mean sum of squares (Brier 1950); `pr_auc` is
        the average precision of the second class of two, `pr_auc_macro` the mean over many; `ece`: see
        `calibration_gaps`.
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    recall, f1, weight = _by_class(truth, predicted)
    log_losses, squares = row_losses(truth, probabilities)
    present = weight > 0
    figures = {
        "accuracy": float(np.mean(truth == predicted)),
        "balanced_accuracy": float(np.mean(recall[present])),
        "f1_macro": float(np.mean(f1)),
        "f1_weighted": float(np.average(f1, weights=weight)),
        "log_loss": float(np.mean(log_losses)),
        "brier": float(np.mean(squares)),
        "ece": _ece(truth, probabilities),
    }
    if (area := _roc_auc(truth, probabilities)) is not None:
        figures["roc_auc"] = area
    if (area := _pr_auc(truth, probabilities)) is not None:
        figures["pr_auc" if probabilities.shape[1] == 2 else "pr_auc_macro"] = area
    return {name: figures[name] for name in CLASSIFICATION if name in figures}


def row_losses(truth: Array, probabilities: Array) -> tuple[Array, Array]:
    """Each row's log loss and squared error, whose means are `log_loss` and `brier`; both of shape (n,).

    Args:
        truth: Shape (n,): codes; -1 for a class that the model does not know, to which it gives probability 0.
        probabilities: Shape (n, k).
    """
    classes = probabilities.shape[1]
    given = np.where(truth >= 0, probabilities[np.arange(len(truth)), np.maximum(truth, 0)], 0.0)
    squares = np.sum((probabilities - (truth[:, None] == np.arange(classes))) ** 2, axis=1) + (truth < 0)
    logs = -np.log(np.clip(given, np.finfo(np.float64).eps, 1.0))
    return logs, squares / (2 if classes == 2 else 1)


def calibration_gaps(truth: Array, probabilities: Array) -> tuple[Array, Array]:
    """What the expected calibration error is made of: each row's bin of 15, and its probability less what happened.

    The bins are of equal width, right ends included. Two classes: probability and share of the second class (Naeini et
    al. 2015, "Obtaining well calibrated probabilities using Bayesian binning"). More: probability of the most probable
    class, and how often it is right (Guo et al. 2017, "On calibration of modern neural networks"). The error is
    the sum of the bins' absolute sums of gaps, by the number of rows.

    Args:
        truth: Shape (n,): codes; -1 for a class that the model does not know.
        probabilities: Shape (n, k).

    Returns:
        Bins 0..14 and gaps in -1..1, both of shape (n,).
    """
    if probabilities.shape[1] == 2:
        said, happened = probabilities[:, 1], truth == 1
    else:
        said, happened = probabilities.max(axis=1), truth == probabilities.argmax(axis=1)
    bins = np.clip(np.ceil(said * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
    return bins, said - happened


def class_codes(labels: Sequence[str], values: Array) -> Array:
    """Shape (n,): the place of each value among the labels, -1 for one that is not there."""
    order = {label: code for code, label in enumerate(labels)}
    return np.fromiter((order.get(value, -1) for value in values), dtype=np.int64, count=len(values))


def abstention_metrics(truth: Array, predicted: Array, told: Array) -> dict[str, float]:
    """Share of the rows that are answered, and of those answered the share that is right (left out where none is).

    Args:
        truth: Shape (n,): codes.
        predicted: Shape (n,): codes.
        told: Shape (n,) of bool: rows for which the model does not abstain.
    """
    figures = {"answered": float(np.mean(told))}
    if told.any():
        figures["accuracy_answered"] = float(np.mean(truth[told] == predicted[told]))
    return figures


def regression_metrics(truth: Array, predicted: Array) -> dict[str, float]:
    """Mean absolute error, root mean squared error (units of the target) and the coefficient of determination.

    `r2` is left out where the truth is constant.
    """
    errors = predicted - truth
    figures = {"mae": float(np.mean(np.abs(errors))), "rmse": float(np.sqrt(np.mean(errors**2)))}
    spread = float(np.sum((truth - truth.mean()) ** 2))
    if spread > 0:
        figures["r2"] = 1 - float(np.sum(errors**2)) / spread
    return figures


def _by_class(truth: Array, predicted: Array) -> tuple[Array, Array, Array]:
    """Recall, F1 (0 where never predicted nor right) and number of rows, per class in truth or prediction."""
    classes = np.union1d(truth, predicted)
    hits = np.array([np.sum((truth == c) & (predicted == c)) for c in classes], dtype=np.float64)
    actual = np.array([np.sum(truth == c) for c in classes], dtype=np.float64)
    said = np.array([np.sum(predicted == c) for c in classes], dtype=np.float64)
    return hits / np.maximum(actual, 1), 2 * hits / (actual + said), actual


def _ece(truth: Array, probabilities: Array) -> float:
    bins, gaps = calibration_gaps(truth, probabilities)
    return float(np.abs(np.bincount(bins, weights=gaps, minlength=ECE_BINS)).sum() / len(truth))


def _roc_auc(truth: Array, probabilities: Array) -> float | None:
    from sklearn.metrics import roc_auc_score

    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for code in classes:
            positive = truth == code
            if positive.any() and not positive.all():
                areas.append(float(roc_auc_score(positive, probabilities[:, code])))
    return float(np.mean(areas)) if areas else None


def _pr_auc(truth: Array, probabilities: Array) -> float | None:
    from sklearn.metrics import average_precision_score

    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [average_precision_score(truth == c, probabilities[:, c]) for c in classes if (truth == c).any()]
    return float(np.mean(areas)) if areas else None


def _undefined(config: ModelConfig, labels: Sequence[str], truth: Array) -> str:
    if config.metric in metric_names(config, labels):
        found = len(set(truth.tolist()))
        return (
            f"{config.metric} cannot be computed on {len(truth)} rows with {found} different target values: "
            "give more data, or a larger split.test"
        )
    return f"metric '{config.metric}' is none of {', '.join(metric_names(config, labels))}"
