"""Tuning: a seeded search over families and their parameters, which has to beat the plain linear pipeline."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
from pydantic import BaseModel, ConfigDict
from zenml import step

from models.config import Family, ModelConfig
from models.errors import DataError, WorkError
from models.section import Scalar
from stacks import runs
from stacks.terminal import terminal
from steps.caching import cached_by, parse_config
from steps.cluster import Cluster, cluster
from steps.course import Best, Course, Stop
from steps.crossval import CrossValidation, cross_validation
from steps.dask_scorers import DaskScorers
from steps.families import candidates, plain_linear
from steps.metrics import require_metric
from steps.partitions import Each, Partitions, sample_rows
from steps.record import Restored, as_attempt, recorded
from steps.scorers import Scorers
from steps.trials import OutOfTimeError, Scored, Scores, Task, Trial, attempt

log = logging.getLogger(__name__)

# What starting processes costs: below it, trials are scored in this one.
WORTH_SECONDS = 4.0
# So many trials are probably worth it: processes start while the plain linear pipeline is scored.
MANY = 20


class TuningResult(BaseModel):
    """What the search came to.

    Attributes:
        family: Family of the best configuration; the plain linear one unless another scored strictly better.
        params: Its parameters; empty for the plain linear pipeline.
        metric: What the scores are.
        cv_score: Its mean score in cross-validation.
        fold_scores: Its score on each fold; None where the fold does not allow the metric.
        linear_cv_score: The plain linear pipeline's.
        dummy_cv_score: That of a model that ignores its input.
        folds: How many folds the training rows were cut into.
        trials: Configurations that were tried, besides the plain linear one.
        dropped: How many of them were given up before the last fold.
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
    dropped: int = 0
    stopped_by: Stop
    history: tuple[Trial, ...]
    mlflow_run_id: str = ""
    fold_scores: Scores = ()


@dataclass(frozen=True)
class Attempted:
    """A trial just counted, and the best so far.

    Attributes:
        scored: The trial, when it began and how long it took.
        best: The best configuration so far.
        elapsed: Seconds that the search has taken so far, over all the times it was resumed.
        restored: Whether it comes from an earlier, interrupted search.
    """

    scored: Scored
    best: Best
    elapsed: float
    restored: bool = False

    @property
    def trial(self) -> Trial:
        """The trial."""
        return self.scored.trial


def search(
    config: ModelConfig,
    train: pd.DataFrame,
    report: Callable[[Attempted], None] = lambda _: None,
    restored: Sequence[Restored] = (),
    dask: Cluster | None = None,
) -> TuningResult:
    """Search the best configuration on the training rows.

    The plain linear pipeline is scored first, on the same folds; a tuned configuration takes its place only when it
    scores strictly better. A configuration that cannot be fitted is a failed trial; one that cannot win any more is
    dropped (`steps.trials`). The answer does not depend on how many processes score (`steps.course`), nor on whether
    the first trials are `restored`.

    Args:
        config: The model.
        train: Typed frame with the target.
        report: Told of every trial, in the order of numbers.
        restored: The first trials of an interrupted search with the same configuration, rows and libraries; they are
            left aside, and a warning logged, where they are not what this search would have tried.
        dask: Workers that score the trials; processes of this machine when left out.

    Raises:
        ConfigError: The metric, a family or a parameter does not fit the model.
        DataError: The rows are too few to be cut into folds.
        WorkError: Even the plain linear pipeline cannot be fitted.
    """
    began = time.monotonic()
    candidates(config)
    folds = cross_validation(config, train)
    require_metric(config, [str(code) for code in range(folds.classes)])
    with ExitStack() as stack:
        scorers: Scorers | DaskScorers | None = None
        if dask is not None:
            scorers = DaskScorers(dask, folds, min(config.tuning.workers or len(dask.workers), config.tuning.lag))
        elif config.tuning.trials >= MANY:
            scorers = _start(stack, config, folds, config.tuning.trials)
        return _search(config, folds, report, restored, began, scorers)


def _search(
    config: ModelConfig,
    folds: CrossValidation,
    report: Callable[[Attempted], None],
    restored: Sequence[Restored],
    began: float,
    scorers: Scorers | DaskScorers | None,
) -> TuningResult:
    linear = _linear(config, folds)
    course = Course(config, linear.trial)
    spent = 0.0
    if restored and course.replay([known.trial for known in restored]):
        spent = restored[-1].elapsed
        for known in restored:
            report(Attempted(Scored(known.trial, 0.0, 0.0), course.best, known.elapsed, restored=True))
    elif restored:
        log.warning("tuning: trials of an interrupted search do not fit this one; it starts anew")
        course = Course(config, linear.trial)
    stopped_by = _Run(config, folds, course, report, began - spent, linear.seconds, scorers).to_the_end()
    best = course.best
    return TuningResult(
        family=best.family,
        params=best.params,
        metric=config.metric,
        cv_score=best.score,
        linear_cv_score=float(linear.trial.score or 0.0),
        dummy_cv_score=folds.dummy_score(),
        folds=folds.count,
        trials=len(course.history),
        dropped=sum(trial.dropped_after > 0 for trial in course.history),
        stopped_by=stopped_by,
        history=tuple(course.history),
        fold_scores=best.folds,
    )


class _Run:
    """One search on its way: hands out what the course proposes, here or to processes, until it ends."""

    def __init__(
        self,
        config: ModelConfig,
        folds: CrossValidation,
        course: Course,
        report: Callable[[Attempted], None],
        began: float,
        usual: float,
        starting: Scorers | DaskScorers | None,
    ) -> None:
        self._config, self._folds, self._course, self._report = config, folds, course, report
        self._starting = starting
        self._began = began
        # Seconds of each scoring so far, the plain linear pipeline's to begin with.
        self._seconds = [usual]
        self._times: dict[int, Scored] = {}
        self._scorers: Scorers | DaskScorers | None = None

    def to_the_end(self) -> Stop:
        """Score until a number, patience or time ends the search; other processes are gone then."""
        with ExitStack() as stack:
            try:
                while (stopped_by := self._course.stopped_by) is None:
                    if self._scorers is None:
                        self._scorers = self._processes(stack)
                    for scored in self._scored():
                        self._times[scored.trial.number] = scored
                        self._seconds.append(scored.seconds)
                        self._course.arrived(scored.trial)
                    self._count()
            except OutOfTimeError:
                return "seconds"
        return stopped_by

    def _scored(self) -> list[Scored]:
        self._in_time()
        if self._scorers is None:
            task = self._course.following()
            return [attempt(self._folds, task, self._in_time)] if task else []
        while self._scorers.room > 0 and (task := self._course.following()):
            self._scorers.submit(task)
        # Nothing is under way where all that was proposed had been tried before.
        return self._scorers.collect(self._left()) if self._scorers.busy else []

    def _count(self) -> None:
        while (trial := self._course.advance()) is not None:
            scored = self._times.pop(trial.number, None) or Scored(trial, time.time(), 0.0)
            if trial.failure:
                log.warning("trial %d, %s, failed: %s", trial.number, trial.family, trial.failure)
            self._report(Attempted(scored, self._course.best, time.monotonic() - self._began))

    def _left(self) -> float:
        return self._config.tuning.seconds - (time.monotonic() - self._began)

    def _in_time(self) -> None:
        if self._left() < 0:
            raise OutOfTimeError

    def _processes(self, stack: ExitStack) -> Scorers | DaskScorers | None:
        """Other processes to score in, where they save more than it takes to start them; Dask workers always."""
        expected = self._course.left * sum(self._seconds) / len(self._seconds)
        starting, self._starting = self._starting, None
        if isinstance(starting, DaskScorers):
            stack.enter_context(starting).begin()
            return starting
        if expected <= WORTH_SECONDS:
            if starting:
                starting.close()
            return None
        scorers = starting or _start(stack, self._config, self._folds, self._course.left)
        if scorers:
            with _told():
                scorers.begin()
        return scorers


def _start(stack: ExitStack, config: ModelConfig, folds: CrossValidation, left: int) -> Scorers | None:
    """Start processes for at most `left` configurations; None where there would be one."""
    most = min(config.tuning.workers or cores(), config.tuning.lag, left)
    if most < 2:
        return None
    with _told():
        return stack.enter_context(Scorers(folds, candidates(config), most))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkError(
            f"tuning cannot start its processes: {error.strerror}; tuning.workers: 1 does without"
        ) from error


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _linear(config: ModelConfig, folds: CrossValidation) -> Scored:
    scored = attempt(folds, Task(0, plain_linear(config), {}))
    if scored.trial.score is None:
        raise WorkError(f"the plain {plain_linear(config)} cannot be fitted: {scored.trial.failure}")
    return scored


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
            shown = f"{config.metric} {done.best.score:.4f} {done.best.family}"
            bar.update(task, completed=done.trial.number + 1, description=shown)

        yield advance


def _log_line(config: ModelConfig, done: Attempted, total: int) -> None:
    if not done.restored and (done.trial.number % 10 == 9 or done.trial.number + 1 == total):
        log.info(
            "tuning: %d of %d, best %s %.4f (%s)",
            done.trial.number + 1,
            total,
            config.metric,
            done.best.score,
            done.best.family,
        )


def tune_model(config: ModelConfig, train: pd.DataFrame, dask: Cluster | None = None) -> TuningResult:
    """Search, show progress, and record the search in MLflow: one run, its trials as nested runs as they finish.

    A search that was interrupted, even by `kill -9`, is continued in its run by the next one with the same
    configuration, rows, code and libraries, and ends as it would have.

    Args:
        config: The model.
        train: Typed frame with the target.
        dask: Workers that score the trials; processes of this machine when left out.

    Raises:
        ConfigError: The metric, a family or a parameter does not fit the model.
        DataError: The rows are too few to be cut into folds.
        WorkError: Even the plain linear pipeline cannot be fitted, or MLflow refused.
    """
    with recorded(config, train) as record, progress(config) as show:

        def report(done: Attempted) -> None:
            if not done.restored:
                record.add(as_attempt(config.metric, done.scored, done.elapsed))
            show(done)

        result = search(config, train, report, record.restored, dask)
        runs.log_run(record.run_id, metrics=_scores(result), tags={"gauntlet.tuning_stopped_by": result.stopped_by})
    log.info("tuning: %s", summary(result))
    return result.model_copy(update={"mlflow_run_id": record.run_id})


def summary(result: TuningResult) -> str:
    """One line on what the search came to."""
    taken = f"{result.family} {result.cv_score:.4f}" if result.params else f"plain {result.family}"
    dropped = f", {result.dropped} dropped early" if result.dropped else ""
    return (
        f"{taken} taken after {result.trials} trials (ended by {result.stopped_by}{dropped}); {result.metric} in "
        f"{result.folds}-fold cross-validation: plain linear {result.linear_cv_score:.4f}, "
        f"dummy {result.dummy_cv_score:.4f}"
    )


def search_sample(each: Each, config: ModelConfig, train: Partitions) -> pd.DataFrame:
    """The seeded sample of training rows that tuning and the preparation see: about `search_rows` of them.

    Raises:
        DataError: A class of the training rows is not among them.
    """
    sample = sample_rows(each, train, config, config.search_rows, "search")
    found = set(sample[config.target.column]) if config.task == "classification" else set(train.classes)
    if absent := [label for label in train.classes if label not in found]:
        raise DataError(
            f"class '{absent[0][:40]}' has {train.classes[absent[0]]:,} of {len(train):,} training rows and none of "
            f"the {len(sample):,} sampled ones ({len(absent)} such classes): raise search_rows, {config.search_rows:,}"
        )
    return sample


def _scores(result: TuningResult) -> dict[str, float]:
    return {
        f"cv_{result.metric}": result.cv_score,
        f"cv_{result.metric}_linear": result.linear_cv_score,
        f"cv_{result.metric}_dummy": result.dummy_cv_score,
        "trials": float(result.trials),
    }


@step(cache_policy=cached_by(__name__))
def tune(config: str, train: pd.DataFrame | Partitions) -> Annotated[TuningResult, "tuning"]:
    """Search the best configuration for the training rows; of partitions, for a sample of `search_rows`."""
    parsed = parse_config(config)
    if isinstance(train, Partitions):
        with cluster("tune") as dask:
            return tune_model(parsed, search_sample(dask.each, parsed, train), dask)
    return tune_model(parsed, train)
