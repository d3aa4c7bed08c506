"""Tuning: a seeded search over families and their parameters, which has to beat the plain linear pipeline."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict
from zenml import step

from models.config import Family, ModelConfig, Scalar
from models.errors import DataError, WorkError, bounded
from stacks import runs
from stacks.terminal import terminal
from steps.caching import cached_by, parse_config
from steps.crossval import CrossValidation, cross_validation
from steps.families import candidates, plain_linear
from steps.metrics import greater_is_better, is_better, require_metric
from steps.sampler import Sampler

log = logging.getLogger(__name__)

Stop = Literal["trials", "seconds", "patience"]


class Trial(BaseModel):
    """One configuration that was tried.

    Attributes:
        number: Counted from 0.
        family: The estimator's family.
        params: Its parameters.
        score: Mean of the metric over the folds; None when it failed.
        failure: Why it failed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    family: Family
    params: dict[str, Scalar | None]
    score: float | None
    failure: str = ""


class TuningResult(BaseModel):
    """What the search came to.

    Attributes:
        family: Family of the best configuration; the plain linear one unless another scored strictly better.
        params: Its parameters; empty for the plain linear pipeline.
        metric: What the scores are.
        cv_score: Its mean score in cross-validation.
        linear_cv_score: The plain linear pipeline's.
        dummy_cv_score: That of a model that ignores its input.
        folds: How many folds the training rows were cut into.
        trials: Configurations that were tried, besides the plain linear one.
        stopped_by: What ended the search.
        history: The trials in order.
        mlflow_run_id: The run that holds them as nested runs; empty for a search that was not recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family
    params: dict[str, Scalar | None]
    metric: str
    cv_score: float
    linear_cv_score: float
    dummy_cv_score: float
    folds: int
    trials: int
    stopped_by: Stop
    history: tuple[Trial, ...]
    mlflow_run_id: str = ""


@dataclass(frozen=True)
class Best:
    """The best configuration so far."""

    family: Family
    params: dict[str, Scalar | None]
    score: float


@dataclass(frozen=True)
class Attempted:
    """A trial just done, when it began (seconds since the epoch), how many seconds it took, and the best so far."""

    trial: Trial
    started: float
    seconds: float
    best: Best


class _OutOfTimeError(Exception):
    """The search's time ended while a configuration was being scored."""


def search(
    config: ModelConfig, train: pd.DataFrame, report: Callable[[Attempted], None] = lambda _: None
) -> TuningResult:
    """Search the best configuration on the training rows.

    The plain linear pipeline is scored first, on the same folds; a tuned configuration takes its place only when it
    scores strictly better. A configuration that cannot be fitted is a failed trial.

    Args:
        config: The model.
        train: Typed frame with the target.
        report: Told of every trial.

    Raises:
        ConfigError: The metric, a family or a parameter does not fit the model.
        DataError: The rows are too few to be cut into folds.
        WorkError: Even the plain linear pipeline cannot be fitted.
    """
    deadline = time.monotonic() + config.tuning.seconds
    sampler = Sampler(candidates(config), config.seed, maximise=greater_is_better(config.metric))
    folds = cross_validation(config, train)
    require_metric(config, [str(code) for code in range(folds.classes)])
    linear = _linear_score(config, folds)
    best = Best(plain_linear(config), {}, linear)
    history: list[Trial] = []
    stopped_by: Stop = "trials"
    since_gain = 0
    while len(history) < config.tuning.trials:
        if since_gain >= config.tuning.patience:
            stopped_by = "patience"
            break
        started, clock = time.time(), time.monotonic()
        try:
            trial = _attempt(folds, sampler, history, deadline)
        except _OutOfTimeError:
            stopped_by = "seconds"
            break
        history.append(trial)
        since_gain += 1
        if trial.score is not None and is_better(config.metric, trial.score, best.score):
            best, since_gain = Best(trial.family, trial.params, trial.score), 0
        report(Attempted(trial, started, time.monotonic() - clock, best))
    return TuningResult(
        family=best.family,
        params=best.params,
        metric=config.metric,
        cv_score=best.score,
        linear_cv_score=linear,
        dummy_cv_score=folds.dummy_score(),
        folds=folds.count,
        trials=len(history),
        stopped_by=stopped_by,
        history=tuple(history),
    )


def _linear_score(config: ModelConfig, folds: CrossValidation) -> float:
    try:
        return folds.score(plain_linear(config), {})
    except (ValueError, ArithmeticError) as error:
        raise WorkError(f"the plain {plain_linear(config)} cannot be fitted: {_reason(error)}") from error


def _attempt(folds: CrossValidation, sampler: Sampler, history: list[Trial], deadline: float) -> Trial:
    """Score the next proposal; one that was made before keeps the score it had."""

    def in_time() -> None:
        if time.monotonic() > deadline:
            raise _OutOfTimeError

    number = len(history)
    in_time()
    family, params = sampler.propose(number)
    score, failure = None, ""
    if known := next((t for t in history if (t.family, t.params) == (family, params)), None):
        score, failure = known.score, known.failure
    else:
        try:
            score = folds.score(family, params, in_time)
        # Whatever an estimator makes of a configuration ends the trial, not the search.
        except (_OutOfTimeError, DataError):
            raise
        except Exception as error:
            failure = _reason(error)
            log.warning("trial %d, %s, failed: %s", number, family, failure)
    sampler.tell(number, score)
    return Trial(number=number, family=family, params=params, score=score, failure=failure)


def _reason(error: Exception) -> str:
    return bounded(f"{type(error).__name__}: {' '.join(str(error).split())}", 300)


@contextmanager
def progress(config: ModelConfig) -> Iterator[Callable[[Attempted], None]]:
    """What shows a search to a person: a bar on a terminal (stderr), else a log line now and then."""
    total = config.tuning.trials
    if not sys.stderr.isatty() or config.logging.format == "json":
        yield lambda done: _log_line(config, done, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("tuning"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=terminal(), transient=True) as bar:
        task = bar.add_task("", total=total)

        def advance(done: Attempted) -> None:
            bar.update(task, advance=1, description=f"{config.metric} {done.best.score:.4f} {done.best.family}")

        yield advance


def _log_line(config: ModelConfig, done: Attempted, total: int) -> None:
    if done.trial.number % 10 == 9 or done.trial.number + 1 == total:
        log.info(
            "tuning: %d of %d, best %s %.4f (%s)",
            done.trial.number + 1,
            total,
            config.metric,
            done.best.score,
            done.best.family,
        )


def tune_model(config: ModelConfig, train: pd.DataFrame) -> TuningResult:
    """Search, show progress, and record the search in MLflow: one run, its trials as nested runs.

    Raises:
        ConfigError: The metric, a family or a parameter does not fit the model.
        DataError: The rows are too few to be cut into folds.
        WorkError: Even the plain linear pipeline cannot be fitted, or MLflow refused.
    """
    run_id = runs.start_run(config.name)
    attempts: list[runs.Attempt] = []
    try:
        with progress(config) as show:

            def report(done: Attempted) -> None:
                attempts.append(_as_attempt(config, done))
                show(done)

            result = search(config, train, report)
        runs.log_attempts(run_id, attempts)
        runs.log_run(run_id, metrics=_scores(result), tags={"gauntlet.tuning_stopped_by": result.stopped_by})
    except BaseException:
        runs.finish_run(run_id, failed=True)
        raise
    runs.finish_run(run_id)
    log.info("tuning: %s", summary(result))
    return result.model_copy(update={"mlflow_run_id": run_id})


def summary(result: TuningResult) -> str:
    """One line on what the search came to."""
    taken = f"{result.family} {result.cv_score:.4f}" if result.params else f"plain {result.family}"
    return (
        f"{taken} taken after {result.trials} trials (ended by {result.stopped_by}); {result.metric} in "
        f"{result.folds}-fold cross-validation: plain linear {result.linear_cv_score:.4f}, "
        f"dummy {result.dummy_cv_score:.4f}"
    )


def _scores(result: TuningResult) -> dict[str, float]:
    return {
        f"cv_{result.metric}": result.cv_score,
        f"cv_{result.metric}_linear": result.linear_cv_score,
        f"cv_{result.metric}_dummy": result.dummy_cv_score,
        "trials": float(result.trials),
    }


def _as_attempt(config: ModelConfig, done: Attempted) -> runs.Attempt:
    trial = done.trial
    return runs.Attempt(
        name=f"trial-{trial.number:03d}-{trial.family}",
        params={"family": trial.family, **trial.params},
        metrics={} if trial.score is None else {f"cv_{config.metric}": trial.score},
        started=done.started,
        seconds=done.seconds,
        failure=trial.failure,
    )


@step(cache_policy=cached_by(__name__))
def tune(config: dict[str, Any], train: pd.DataFrame) -> Annotated[TuningResult, "tuning"]:
    """Search the best configuration for the training rows."""
    return tune_model(parse_config(config), train)
