"""Performance of a window: figures of the rows whose outcome is known, beside the holdout's."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bentos.release import told
from bentos.schema import Schema
from models.config import ModelConfig
from models.errors import DataError
from steps.estimate import Estimate, EstimateError, Measure, estimate, estimate_error, measure_of
from steps.metrics import compute_metrics, greater_is_better
from steps.window import Labelled

MOST_LABELS = 20_000
State = Literal["held", "degraded", "uncertain", "too_few_labels"]
_Array = np.ndarray[Any, Any]


class Concept(BaseModel):
    """Whether the truth behind the same scores has changed.

    Attributes:
        gap: By how much the figure is worse than the scores expect, more than it was on the holdout; in its units.
        low: Lower end of its interval.
        high: Upper end.
        drifted: Whether the whole interval lies beyond the loss that counts as degradation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gap: float
    low: float
    high: float
    drifted: bool


class Performance(BaseModel):
    """What a version was worth in a window.

    Attributes:
        metric: The figure that the model goes by.
        state: `degraded`: the whole interval lies beyond the loss that counts; `held`: none of it does; `uncertain`:
            some of it does; `too_few_labels`: nothing is judged.
        answers: Answers of the version in the window.
        labels: How many of them have an outcome: every figure here stands on these.
        coverage: The share of them.
        contradicted: Of the labels, those that were told in two ways.
        holdout: The metric on the holdout.
        limit: The metric from which on it counts as degraded.
        value: The metric here; None where the labels do not allow it.
        low: Lower end of its bootstrap interval.
        high: Upper end.
        figures: All figures of the labelled rows.
        expected: What the scores of all answers expect; None for a regression.
        estimate_error: How wrong such an estimate is on the labelled rows.
        concept: None for a regression, with too few labels, or without the holdout's gap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    state: State
    answers: int
    labels: int
    coverage: float
    contradicted: int
    holdout: float
    limit: float
    value: float | None = None
    low: float | None = None
    high: float | None = None
    figures: dict[str, float] = {}
    expected: Estimate | None = None
    estimate_error: EstimateError | None = None
    concept: Concept | None = None


def window_performance(
    config: ModelConfig,
    schema: Schema,
    scores: _Array,
    labelled: Labelled,
    holdout: float,
    holdout_gap: float | None = None,
) -> Performance:
    """Judge the answers of one version in a window by the outcomes that are known.

    Degraded is what has lost `monitoring.degradation` of the holdout's figure (of an error: gained), and not by
    chance: the percentile bootstrap interval over the labelled rows decides (Efron & Tibshirani 1993, chapter 13).

    Args:
        config: The model.
        schema: Its labels.
        scores: Shape (n, k) or (n,): its answers; `labelled.rows` are positions in it.
        labelled: Outcomes.
        holdout: The metric on the holdout.
        holdout_gap: What the scores expect of the holdout less that metric (`EstimateError.error`).
    """
    truth, answered = _coded(schema, labelled.truth), scores[labelled.rows]
    limit, measure = _limit(config, holdout), measure_of(config, schema.labels)
    common: dict[str, Any] = {
        "metric": config.metric,
        "answers": len(scores),
        "labels": len(truth),
        "coverage": len(truth) / len(scores) if len(scores) else 0.0,
        "contradicted": labelled.contradicted,
        "holdout": holdout,
        "limit": limit,
        "expected": estimate(config.metric, measure, scores, config.seed) if schema.labels else None,
    }
    error = estimate_error(config.metric, measure, truth, answered, config.seed) if schema.labels else None
    value = measure(truth, answered) if len(truth) else None
    if value is None or len(truth) < config.monitoring.min_labels:
        return Performance(state="too_few_labels", value=value, estimate_error=error, **common)
    chance = _bootstrap(config, measure, truth, answered)
    if len(chance) < config.evaluation.resamples / 2:  # such as one row of a class: most resamples have none
        return Performance(state="too_few_labels", value=value, estimate_error=error, **common)
    tail = (1 - config.evaluation.confidence) / 2
    low, high = (float(end) for end in np.quantile(chance, (tail, 1 - tail)))
    return Performance(
        state=_state(config, low, high, limit),
        value=value,
        low=low,
        high=high,
        figures=_figures(config, schema, labelled.truth, answered),
        estimate_error=error,
        concept=_concept(config, error, holdout_gap, (low, high), abs(limit - holdout)),
        **common,
    )


def _coded(schema: Schema, truth: _Array) -> _Array:
    if not schema.labels:
        return truth.astype(np.float64)
    order = {label: code for code, label in enumerate(schema.labels)}
    return np.fromiter((order[label] for label in truth), dtype=np.int64, count=len(truth))


def _greater_is_better(config: ModelConfig) -> bool:
    return greater_is_better(config.metric, config.evaluation.metrics)


def _limit(config: ModelConfig, holdout: float) -> float:
    loss = config.monitoring.degradation * abs(holdout)
    return holdout - loss if _greater_is_better(config) else holdout + loss


def _bootstrap(config: ModelConfig, measure: Measure, truth: _Array, answered: _Array) -> _Array:
    """The metric of resamples of the labelled rows, of at most 20,000 of them; those that do not allow it left out."""
    rng = np.random.default_rng(config.seed)
    if len(truth) > MOST_LABELS:
        chosen = rng.choice(len(truth), MOST_LABELS, replace=False)
        truth, answered = truth[chosen], answered[chosen]
    drawn = (rng.integers(0, len(truth), len(truth)) for _ in range(config.evaluation.resamples))
    found = (measure(truth[rows], answered[rows]) for rows in drawn)
    return np.array([value for value in found if value is not None])


def _state(config: ModelConfig, low: float, high: float, limit: float) -> State:
    best, worst = (high, low) if _greater_is_better(config) else (low, high)
    sign = 1 if _greater_is_better(config) else -1
    if sign * best < sign * limit:
        return "degraded"
    return "held" if sign * worst >= sign * limit else "uncertain"


def _figures(config: ModelConfig, schema: Schema, truth: _Array, answered: _Array) -> dict[str, float]:
    try:
        return compute_metrics(config, schema.labels, truth, told(schema, answered))
    except DataError:  # the metric does not exist on them; the others would mislead alone
        return {}


def _concept(
    config: ModelConfig,
    error: EstimateError | None,
    holdout_gap: float | None,
    interval: tuple[float, float],
    loss: float,
) -> Concept | None:
    """The figure's interval, turned into one of how far the scores promise too much, beyond the holdout's gap.

    The scores' expectation is taken as known: it stands on the same rows, whose chance the interval holds.
    """
    if error is None or holdout_gap is None:
        return None
    sign = 1 if _greater_is_better(config) else -1
    gaps = sorted(sign * (error.estimate.value - end - holdout_gap) for end in interval)
    return Concept(gap=sign * (error.error - holdout_gap), low=gaps[0], high=gaps[1], drifted=gaps[0] > loss)
