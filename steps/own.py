"""Figures of the user's own: functions of truth, predictions and probabilities, named in the YAML by import path."""

import hashlib
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from models.config import ModelConfig
from models.errors import ConfigError, DataError, bounded
from models.judgement import OwnMetric
from steps.bootstrap import PLAIN_ROWS

Array = np.ndarray[Any, Any]
Function = Callable[[Array, Array, Array | None], float]

_TRIED_ROWS = 20


def pin_metrics(config: ModelConfig) -> ModelConfig:
    """Try every metric of the user's on invented answers, before anything is trained.

    Returns:
        The configuration with the sum of each function's file: what was computed with another one is computed again.

    Raises:
        ConfigError: A function cannot be imported or called, or does not return a number.
    """
    if not config.evaluation.metrics:
        return config
    pinned = {name: _pinned(name, metric, config) for name, metric in config.evaluation.metrics.items()}
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"metrics": pinned})})


def own_metrics(config: ModelConfig, truth: Array, predicted: Array, probabilities: Array | None) -> dict[str, float]:
    """The figures of all functions of the user's; one that says NaN is left out.

    Args:
        config: The model.
        truth: Shape (n,): labels, or numbers for regression.
        predicted: Shape (n,), as `truth`.
        probabilities: Shape (n, k) in the order of the labels; None for regression.

    Raises:
        DataError: A function fails on these rows.
    """
    figures = {}
    for name, metric in config.evaluation.metrics.items():
        value = own_metric(name, metric, truth, predicted, probabilities)
        if value is not None:
            figures[name] = value
    return figures


def own_metric(
    name: str, metric: OwnMetric, truth: Array, predicted: Array, probabilities: Array | None
) -> float | None:
    """One figure of the user's, see `own_metrics`; None where the function says NaN.

    Raises:
        ConfigError: The function cannot be imported.
        DataError: It fails on these rows.
    """
    function = _imported(name, metric)
    try:
        value = function(truth.copy(), predicted.copy(), None if probabilities is None else probabilities.copy())
    except Exception as error:
        # Its own words may quote rows.
        raise DataError(
            f"metric '{name}' ({metric.function}) fails on {len(truth)} rows: {_place(error)}; it may return NaN "
            "where rows do not allow it"
        ) from error
    if not isinstance(value, Real) or np.isinf(float(value)):
        raise DataError(f"metric '{name}' ({metric.function}) returns {_kind(value)}, no finite number")
    return None if np.isnan(float(value)) else float(value)


def resample_own(
    config: ModelConfig,
    truth: Array,
    predicted: Array,
    probabilities: Array | None,
    whole: Mapping[str, float],
) -> dict[str, Array]:
    """Figures of the user's in every resample, shape (resamples,) each.

    Above 50,000 rows so many are drawn, and what they deviate from the whole is scaled to all rows (the m out of n
    bootstrap, Bickel et al. 1997). A resample that a function refuses counts as NaN.

    Args:
        config: The model.
        truth: As in `own_metrics`.
        predicted: Likewise.
        probabilities: Likewise.
        whole: The figures on all rows.
    """
    wanted = {name: metric for name, metric in config.evaluation.metrics.items() if name in whole}
    rows, count = len(truth), config.evaluation.resamples
    drawn = min(rows, PLAIN_ROWS)
    random = np.random.default_rng(config.seed)
    values = {name: np.full(count, np.nan) for name in wanted}
    for number in range(count if wanted else 0):
        chosen = random.integers(0, rows, drawn)
        some = (truth[chosen], predicted[chosen], None if probabilities is None else probabilities[chosen])
        for name, metric in wanted.items():
            try:
                value = own_metric(name, metric, *some)
            except DataError:
                continue
            if value is not None:
                values[name][number] = whole[name] + (value - whole[name]) * np.sqrt(drawn / rows)
    return values


def _imported(name: str, metric: OwnMetric) -> Function:
    where = f"evaluation.metrics.{name}.function"
    module, _, attribute = metric.function.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:
        said = bounded(f"{type(error).__name__}: {error}", 300)
        raise ConfigError(f"{where}: '{module}' cannot be imported ({said}); it must be on Python's path") from error
    if not callable(found):
        raise ConfigError(f"{where}: module '{module}' has no function '{attribute}'")
    return found


def _pinned(name: str, metric: OwnMetric, config: ModelConfig) -> OwnMetric:
    function = _imported(name, metric)
    labels = config.target.labels
    if labels or config.task == "regression":
        try:
            own_metric(name, metric, *_invented(labels))
        except DataError as error:
            cause = error.__cause__
            said = f" ({type(cause).__name__}: {cause})" if cause else ""
            raise ConfigError(
                f"evaluation.metrics.{name}, tried on invented rows: {error}{bounded(said, 300)}"
            ) from None
    file = inspect.getsourcefile(inspect.unwrap(function)) if inspect.isroutine(function) else None
    source = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else ""
    return metric.model_copy(update={"source": source})


def _invented(labels: Sequence[str]) -> tuple[Array, Array, Array | None]:
    """Truth, predictions of which a few are wrong, and probabilities."""
    if not labels:
        truth = np.linspace(1.0, 3.0, _TRIED_ROWS)
        return truth, truth + 0.1 * np.sin(np.arange(_TRIED_ROWS)), None
    codes = np.arange(max(_TRIED_ROWS, 4 * len(labels))) % len(labels)
    said = np.where(np.arange(len(codes)) % 5 == 4, (codes + 1) % len(labels), codes)
    probabilities = np.full((len(codes), len(labels)), 0.4 / len(labels))
    probabilities[np.arange(len(codes)), said] += 0.6
    names = np.array(labels, dtype=object)
    return names[codes], names[said], probabilities


def _place(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


def _kind(value: Any) -> str:
    return str(float(value)) if isinstance(value, Real) else f"a {type(value).__name__}"
