"""One trial of a search: what is tried, when it is given up, what is kept of it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from models.config import Family
from models.errors import DataError, bounded
from models.judgement import OwnMetric
from models.section import Scalar
from steps.crossval import CrossValidation
from steps.families import one_thread
from steps.metrics import NONE, best_value, greater_is_better, is_better

Scores = tuple[float | None, ...]
Own = Mapping[str, OwnMetric]

LEVEL = 0.995
MIN_FREEDOM = 8


class OutOfTimeError(Exception):
    """The search's time ended while a configuration was being scored."""


class Trial(BaseModel):
    """One configuration that was tried.

    Attributes:
        number: Counted from 0.
        family: The estimator's family.
        params: Its parameters, as they were fitted: `n_estimators` is what early stopping left.
        score: Mean of the metric over the folds; None when it failed or was dropped.
        failure: Why it failed.
        folds: The metric on each fold that was scored; None where the fold does not allow it.
        dropped_after: Number of folds after which it was given up; 0 when it was not.
        estimate: What a dropped one is taken to score: the search goes on from that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    family: Family
    params: dict[str, Scalar | None]
    score: float | None
    failure: str = ""
    folds: Scores = ()
    dropped_after: int = 0
    estimate: float | None = None


@dataclass(frozen=True)
class Rival:
    """What a running trial is measured against.

    Attributes:
        target: Mean score of the best configuration; to win, a trial must do strictly better.
        best: Its scores, fold by fold.
        kin: Scores of the best configuration of the trial's own family, fold by fold; empty when there is none.
        spread: Student's t quantile times the standard deviation of a fold's difference between two
            configurations of that family; infinite while too few are known.
    """

    target: float
    best: tuple[float, ...]
    kin: tuple[float, ...] = ()
    spread: float = math.inf


@dataclass(frozen=True)
class Task:
    """A configuration to be scored, and what it is measured against while it runs (None: on all folds)."""

    number: int
    family: Family
    params: dict[str, Scalar | None]
    rival: Rival | None = None


@dataclass(frozen=True)
class Scored:
    """What came of a task: its trial, when it began (seconds since the epoch) and how many seconds it took."""

    trial: Trial
    started: float = field(compare=False)
    seconds: float = field(compare=False)


def attempt(folds: CrossValidation, task: Task, before_fit: Callable[[], None] = lambda: None) -> Scored:
    """Score a configuration fold by fold, until it is done or cannot win.

    Whatever an estimator makes of a configuration ends the trial and not the search.

    Args:
        folds: The folds.
        task: The configuration.
        before_fit: Called before each fit; what it raises ends the search.

    Raises:
        OutOfTimeError: `before_fit` said so.
        DataError: No fold allows the metric.
    """
    started, clock = time.time(), time.monotonic()
    scores: list[float | None] = []
    params, failure = task.params, ""
    metric, own = folds.config.metric, folds.config.evaluation.metrics
    try:
        with one_thread():
            params = folds.settle(task.family, task.params, before_fit)
            while len(scores) < folds.count and not _beaten(metric, task.rival, scores, own):
                before_fit()
                scores.append(_finite(folds.fold_score(len(scores), task.family, params)))
    except (OutOfTimeError, DataError):
        raise
    except Exception as error:
        failure = reason(error)
    trial = _concluded(folds, task, params, tuple(scores), failure)
    return Scored(trial, started, time.monotonic() - clock)


def _concluded(
    folds: CrossValidation, task: Task, params: dict[str, Scalar | None], scores: Scores, failure: str
) -> Trial:
    known: dict[str, Any] = {"number": task.number, "family": task.family, "params": params, "folds": scores}
    if failure:
        return Trial(**known, score=None, failure=failure)
    if len(scores) == folds.count:
        return Trial(**known, score=folds.mean(scores))
    config = folds.config
    estimate = _taken(config.metric, task.rival, scores, config.evaluation.metrics)
    return Trial(**known, score=None, dropped_after=len(scores), estimate=estimate)


def rival(metric: str, history: Sequence[Trial], family: Family, best: Scores, own: Own = NONE) -> Rival | None:
    """What the next trial of a family is measured against, by the trials that it may know.

    Args:
        metric: What the scores are.
        history: The trials that count.
        family: The new trial's.
        best: The best configuration's scores, fold by fold.
        own: The model's own metrics.

    Returns:
        None where a fold does not allow the metric: every trial then runs over all folds.
    """
    target = _all_known(best)
    if target is None:
        return None
    siblings = [(trial, scores) for trial in history if trial.family == family and (scores := _all_known(trial.folds))]
    whole = [(trial.score, scores) for trial, scores in siblings if trial.score is not None]
    if not whole:
        return Rival(float(np.mean(target)), target)
    sign = 1 if greater_is_better(metric, own) else -1
    _, kin = max(whole, key=lambda pair: sign * pair[0])
    spread = _spread(kin, [scores for _, scores in siblings if scores is not kin and len(scores) > 1])
    return Rival(float(np.mean(target)), target, kin, spread)


def _spread(kin: tuple[float, ...], others: Sequence[tuple[float, ...]]) -> float:
    """The pooled standard deviation, within configurations, of differences to `kin`, times Student's quantile."""
    differences = [np.subtract(scores, kin[: len(scores)]) for scores in others]
    freedom = sum(len(values) - 1 for values in differences)
    if freedom < MIN_FREEDOM:
        return math.inf
    from scipy.special import stdtrit

    squares = sum(float(np.sum((values - values.mean()) ** 2)) for values in differences)
    return float(stdtrit(freedom, LEVEL)) * math.sqrt(squares / freedom)


def _beaten(metric: str, against: Rival | None, scores: Sequence[float | None], own: Own = NONE) -> bool:
    """Whether a configuration cannot win any more, by either of two rules.

    Were it perfect on all remaining folds, it would not be better than the best one. Or: the upper limit (one-sided
    99.5 %) of its mean lies below the best one's. The limit is that of the mean of a finite population of n folds of
    which m were drawn, on differences to the best configuration of the same family, which share most of what makes
    a fold easy or hard: mean difference + t * s * sqrt((1 - m / n) / m) (races of Maron & Moore 1994, here paired).
    """
    done, count = len(scores), len(against.best) if against else 0
    if against is None or not 0 < done < count:
        return False
    known = _all_known(scores)
    if known is None:
        return False
    perfect = float(np.mean((*known, *[best_value(metric, own)] * (count - done))))
    if not is_better(metric, perfect, against.target, own):
        return True
    if not against.kin or not math.isfinite(against.spread):
        return False
    sign = 1 if greater_is_better(metric, own) else -1
    reach = against.spread * math.sqrt((1 - done / count) / done)
    return not is_better(metric, _estimate(against, known) + sign * reach, against.target, own)


def _taken(metric: str, against: Rival | None, scores: Scores, own: Own = NONE) -> float:
    """What a dropped configuration is taken to score: never better than the one that it cannot beat."""
    if against is None:
        raise TypeError("only a trial with a rival is dropped")
    estimate = _estimate(against, _all_known(scores) or ())
    return against.target if is_better(metric, estimate, against.target, own) else estimate


def _estimate(against: Rival, known: tuple[float, ...]) -> float:
    """The mean over all folds that the folds so far point to: easy and hard folds weigh as they did for its kin."""
    like = against.kin or against.best
    return float(np.mean(like) + np.mean(np.subtract(known, like[: len(known)])))


def _all_known(scores: Sequence[float | None]) -> tuple[float, ...] | None:
    known = tuple(score for score in scores if score is not None)
    return known if len(known) == len(scores) and known else None


def _finite(score: float | None) -> float | None:
    if score is not None and not math.isfinite(score):
        raise ValueError(f"the metric came out as {score}")
    return score


def reason(error: BaseException) -> str:
    """Why a trial failed, in one bounded line."""
    return bounded(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)
