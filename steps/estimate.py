"""Estimates of performance while labels are missing: what the scores themselves expect."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from models.config import ModelConfig
from models.errors import DataError
from steps.metrics import deciding_figure

DRAWS = 200
_MOST = 20_000
_Array = np.ndarray[Any, Any]
Measure = Callable[[_Array, _Array], float | None]


class Estimate(BaseModel):
    """A figure that no label stands behind.

    Attributes:
        kind: Always `estimate`: never to be shown as a measured figure.
        metric: Which figure.
        value: Mean of the figure over labels drawn from the scores.
        low: What 2.5 % of the draws stay below.
        high: What 2.5 % of the draws exceed.
        rows: How many answers it stands on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["estimate"] = "estimate"
    metric: str
    value: float
    low: float
    high: float
    rows: int


class EstimateError(BaseModel):
    """How wrong an estimate was, once the truth was there.

    Attributes:
        estimate: What was expected of the labelled rows.
        measured: What came true on the same rows.
        error: Estimate less measured.
        covered: Whether the measured figure lies in the estimate's interval.
        labels: How many rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: Estimate
    measured: float
    error: float
    covered: bool
    labels: int


def measure_of(config: ModelConfig, labels: Sequence[str]) -> Measure:
    """The figure that a model goes by, of codes (or numbers) and answers; None where rows do not allow it.

    Rows that a function of the user's fails on do not allow it.
    """

    def measure(truth: _Array, answered: _Array) -> float | None:
        try:
            return deciding_figure(config, labels, truth, answered)
        except DataError:
            return None

    return measure


def estimate(metric: str, measure: Measure, probabilities: _Array, seed: int) -> Estimate | None:
    """Expected value of a figure of a classifier from its probabilities alone.

    Truths are drawn from the probabilities, 200 times, and the figure computed on each: confidence-based performance
    estimation (NannyML's CBPE; of accuracy it is Guillory et al. 2021's average confidence), for any figure. It holds
    as far as the probabilities are calibrated, and is blind to concept drift, which changes the truth behind them.

    Args:
        metric: Name of the figure.
        measure: The figure, see `measure_of`.
        probabilities: Shape (n, k), rows that sum to 1; at most 20,000 seeded rows are used.
        seed: Seed of the draws.

    Returns:
        None where there are no rows, or drawn truths do not allow the figure.
    """
    rng = np.random.default_rng(seed)
    if len(probabilities) > _MOST:
        probabilities = probabilities[rng.choice(len(probabilities), _MOST, replace=False)]
    if not len(probabilities):
        return None
    ladder = np.cumsum(probabilities, axis=1)[:, :-1]
    drawn = ((rng.random((len(ladder), 1)) >= ladder).sum(axis=1) for _ in range(DRAWS))
    found = [value for truth in drawn if (value := measure(truth, probabilities)) is not None]
    if len(found) < DRAWS / 2:
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    return Estimate(
        metric=metric, value=float(np.mean(found)), low=float(low), high=float(high), rows=len(probabilities)
    )


def estimate_error(
    metric: str, measure: Measure, truth: _Array, probabilities: _Array, seed: int
) -> EstimateError | None:
    """Compare the estimate on labelled rows with the truth.

    Args:
        metric: Name of the figure.
        measure: The figure, see `measure_of`.
        truth: Shape (n,): codes 0..k-1.
        probabilities: Shape (n, k).
        seed: Seed of the draws.

    Returns:
        None where either does not exist.
    """
    expected = estimate(metric, measure, probabilities, seed)
    measured = measure(truth, probabilities) if len(truth) else None
    if expected is None or measured is None:
        return None
    return EstimateError(
        estimate=expected,
        measured=measured,
        error=expected.value - measured,
        covered=expected.low <= measured <= expected.high,
        labels=len(truth),
    )
