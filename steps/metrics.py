"""Figures of a model's answers against the truth: the same rows in, the same figures out, to the last digit."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from models.config import ModelConfig
from models.errors import ConfigError, DataError

if TYPE_CHECKING:
    from bentos.release import Answers

Array = np.ndarray[Any, Any]

CLASSIFICATION = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "roc_auc", "pr_auc", "log_loss", "brier")
ABSTAINING = ("answered", "accuracy_answered")
REGRESSION = ("mae", "rmse", "r2")
_BEST = {"log_loss": 0.0, "brier": 0.0, "mae": 0.0, "rmse": 0.0}


def metric_names(config: ModelConfig, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Figures that a task has; `pr_auc` exists for two classes only, `ABSTAINING` where the model may abstain.

    Args:
        config: The model.
        labels: Its classes, where they are known.
    """
    if config.task == "regression":
        return REGRESSION
    abstaining = ABSTAINING if config.serving.abstain_below is not None else ()
    return (*(name for name in CLASSIFICATION if name != "pr_auc" or len(labels) in (0, 2)), *abstaining)


def require_metric(config: ModelConfig, labels: Sequence[str] = ()) -> None:
    """Refuse a `metric` that the task has not.

    Raises:
        ConfigError: The message names those there are.
    """
    names = [name for name in metric_names(config, labels) if name not in ABSTAINING]
    if config.metric not in names:
        classes = f" with {len(labels)} classes" if labels else ""
        raise ConfigError(
            f"metric: '{config.metric}' is no figure of a {config.task}{classes} (there is: {', '.join(names)})"
        )


def greater_is_better(name: str) -> bool:
    """Whether a larger value of the figure is a better one."""
    return name not in _BEST


def best_value(name: str) -> float:
    """The value of the figure that a model without error has."""
    return _BEST.get(name, 1.0)


def is_better(name: str, value: float, than: float) -> bool:
    """Whether `value` is strictly better than `than`; a tie is not."""
    return value > than if greater_is_better(name) else value < than


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
        DataError: There are no rows, or the rows do not allow `config.metric`.
    """
    if not len(truth):
        raise DataError("no rows to evaluate on: give more data, or a larger split.test")
    if config.task == "regression":
        figures = regression_metrics(np.asarray(truth, dtype=np.float64), answers.values)
    else:
        if answers.probabilities is None:
            raise TypeError("a classifier's answers hold probabilities")
        codes = _codes(labels, truth)
        predicted = _codes(labels, answers.values)
        figures = classification_metrics(codes, answers.probabilities, predicted)
        if config.serving.abstain_below is not None:
            told = answers.probabilities.max(axis=1) >= config.serving.abstain_below
            figures |= abstention_metrics(codes, predicted, told)
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


def classification_metrics(truth: Array, probabilities: Array, predicted: Array | None = None) -> dict[str, float]:
    """Figures of a classifier.

    Args:
        truth: Shape (n,): codes 0..k-1; -1 for a class that the model does not know.
        probabilities: Shape (n, k), rows that sum to 1.
        predicted: Shape (n,): codes; the most probable class when left out.

    Returns:
        `roc_auc` of many classes is the mean over the classes that the rows tell apart, each against the rest
        (Hand & Till 2001 discuss it); `log_loss` clips at the smallest double step; `brier` is the mean squared
        error of the second class's probability, of many classes the mean sum of squares (Brier 1950).
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    recall, f1, weight = _by_class(truth, predicted)
    present = weight > 0
    figures = {
        "accuracy": float(np.mean(truth == predicted)),
        "balanced_accuracy": float(np.mean(recall[present])),
        "f1_macro": float(np.mean(f1)),
        "f1_weighted": float(np.average(f1, weights=weight)),
        "log_loss": _log_loss(truth, probabilities),
        "brier": _brier(truth, probabilities),
    }
    if (area := _roc_auc(truth, probabilities)) is not None:
        figures["roc_auc"] = area
    if probabilities.shape[1] == 2 and (truth == 1).any():
        from sklearn.metrics import average_precision_score

        figures["pr_auc"] = float(average_precision_score(truth == 1, probabilities[:, 1]))
    return {name: figures[name] for name in CLASSIFICATION if name in figures}


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


def _codes(labels: Sequence[str], values: Array) -> Array:
    order = {label: code for code, label in enumerate(labels)}
    return np.fromiter((order.get(value, -1) for value in values), dtype=np.int64, count=len(values))


def _by_class(truth: Array, predicted: Array) -> tuple[Array, Array, Array]:
    """Recall, F1 (0 where never predicted nor right) and number of rows, per class in truth or prediction."""
    classes = np.union1d(truth, predicted)
    hits = np.array([np.sum((truth == c) & (predicted == c)) for c in classes], dtype=np.float64)
    actual = np.array([np.sum(truth == c) for c in classes], dtype=np.float64)
    said = np.array([np.sum(predicted == c) for c in classes], dtype=np.float64)
    return hits / np.maximum(actual, 1), 2 * hits / (actual + said), actual


def _log_loss(truth: Array, probabilities: Array) -> float:
    given = np.where(truth >= 0, probabilities[np.arange(len(truth)), np.maximum(truth, 0)], 0.0)
    return float(-np.mean(np.log(np.clip(given, np.finfo(np.float64).eps, 1.0))))


def _brier(truth: Array, probabilities: Array) -> float:
    classes = probabilities.shape[1]
    squares = np.sum((probabilities - (truth[:, None] == np.arange(classes))) ** 2, axis=1) + (truth < 0)
    return float(np.mean(squares) / (2 if classes == 2 else 1))


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


def _undefined(config: ModelConfig, labels: Sequence[str], truth: Array) -> str:
    if config.metric in metric_names(config, labels):
        found = len(set(truth.tolist()))
        return (
            f"{config.metric} cannot be computed on {len(truth)} rows with {found} different target values: "
            "give more data, or a larger split.test"
        )
    return f"metric '{config.metric}' is none of {', '.join(metric_names(config, labels))}"
