"""A real stream for tests and benchmarks: two years of bike sharing, answered, watched, learned from."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from bentos.outcomes import OutcomeItem, record
from bentos.prediction_log import Record
from bentos.release import Answers, write_release
from models.config import Layer, ModelConfig, resolve
from models.monitoring import CheckName
from stacks.findings import Finding
from steps.champion import Champion
from steps.checks import CHECK, Scene, finite
from steps.ingest import ingest_frame
from steps.metrics import regression_metrics
from steps.paired import Paired, paired_difference
from steps.split import split_frame
from steps.train import fit_family
from steps.trouble import count_windows
from steps.window import read_window
from tests.steps.served import answers_of, batch_of, log_batches

FILE = "bike_sharing/hour.csv"
BEGIN, END = datetime(2011, 7, 1, tzinfo=UTC), datetime(2013, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
CHECKS: tuple[CheckName, ...] = ("performance", "drift")
_TREES: dict[str, Any] = {"n_estimators": 150, "max_depth": 6, "learning_rate": 0.1}
# Not what only counts the time (instant, yr, mnth), nor the parts of the target (casual, registered); the day is kept
# to order the rows by.
_DESCRIBED: dict[str, Any] = {
    "name": "bike_sharing",
    "task": "regression",
    "metric": "mae",
    "target": {"column": "cnt"},
    "sources": [{"name": "uci", "kind": "csv", "path": FILE}],
    "columns": {
        "dteday": {"type": "datetime", "feature": False},
        "season": {"type": "category", "categories": [1, 2, 3, 4]},
        "hr": {"type": "integer", "range": [0, 23]},
        "holiday": {"type": "boolean"},
        "weekday": {"type": "integer", "range": [0, 6]},
        "workingday": {"type": "boolean"},
        "weathersit": {"type": "category", "categories": [1, 2, 3, 4]},
        "temp": {"type": "number", "range": [0, 1]},
        "atemp": {"type": "number", "range": [0, 1]},
        "hum": {"type": "number", "range": [0, 1]},
        "windspeed": {"type": "number", "range": [0, 1]},
    },
    "split": {"by": "content", "test": 0.2},
    "tuning": {"candidates": {"xgboost": _TREES}},
}


def bikes(metric: str = "mae") -> ModelConfig:
    """The model: hourly demand from the hour, the day and the weather."""
    return resolve([Layer("test", _DESCRIBED), Layer("test", {"metric": metric})]).config


@dataclass(frozen=True)
class Hours:
    """Hours in the order of time.

    Attributes:
        at: Shape (n,): when each began.
        rows: The n typed rows with the target.
    """

    at: pd.DatetimeIndex = field(repr=False)
    rows: pd.DataFrame = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> "Hours":
        """All hours of the data set in a folder of real data."""
        before = os.environ.get("GAUNTLET_DATA")
        os.environ["GAUNTLET_DATA"] = str(folder)
        try:
            rows = ingest_frame(bikes()).frame
        finally:
            os.environ.pop("GAUNTLET_DATA") if before is None else os.environ.update(GAUNTLET_DATA=before)
        return cls(pd.DatetimeIndex(rows["dteday"] + pd.to_timedelta(rows["hr"], unit="h"), tz=UTC), rows)

    def dealt_anew(self, seed: int) -> "Hours":
        """The same times and the same rows, each row at a time that chance chose: nothing shifts any more."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        return Hours(self.at, self.rows.iloc[order].reset_index(drop=True))

    def between(self, since: datetime | None, until: datetime) -> "Hours":
        """Those from `since` on and before `until`."""
        chosen = np.asarray(self.at < pd.Timestamp(until))
        if since is not None:
            chosen &= np.asarray(self.at >= pd.Timestamp(since))
        return Hours(self.at[chosen], self.rows[chosen].reset_index(drop=True))


@dataclass(frozen=True)
class Trained:
    """A version, and rows that it was not fitted on.

    Attributes:
        champion: What monitoring looks at.
        test: The rows.
    """

    champion: Champion
    test: pd.DataFrame = field(repr=False)

    @classmethod
    def on(cls, hours: Hours, version: int, folder: Path) -> "Trained":
        """Fit on the training rows of some hours; the same boosted trees each time."""
        config, parts = bikes(), split_frame(bikes(), hours.rows)
        release = write_release(
            folder / f"release-{version}",
            pipeline=fit_family(config, "xgboost", _TREES, parts.train),
            config=config,
            train=parts.train,
            metrics={},
            data_digest="0" * 64,
            trials=1,
            evidence={},
        )
        metrics = regression_metrics(parts.test["cnt"].to_numpy(), release.answer(parts.test).values)
        return cls(Champion(config, release, version, metrics=metrics), parts.test)

    @property
    def holdout(self) -> float:
        """Mean absolute error on its test rows."""
        return self.champion.metrics["mae"]

    def answer(self, rows: pd.DataFrame) -> Answers:
        """Answer typed rows."""
        return self.champion.release.answer(rows)


def gained(old: Answers, new: Answers, truth: Any, metric: str = "mae") -> Paired:
    """By how much new answers are better than old ones to the same rows, with the interval."""
    return paired_difference(bikes(metric), (), np.asarray(truth, dtype=np.float64), old, new)


def serve(url: str, by: Trained, hours: Hours) -> None:
    """Answer hours day by day, into the real prediction log; what was asked for is told at the end of a week."""
    schema = by.champion.release.schema
    inputs, counts = hours.rows[list(schema.inputs)], hours.rows["cnt"].to_numpy()
    answers = answers_of(schema, by.answer(hours.rows).values)
    records: list[Record] = []
    told: dict[datetime, list[OutcomeItem]] = defaultdict(list)
    for day, places in hours.rows.groupby(hours.at.floor("D")).indices.items():
        at = cast(pd.Timestamp, day).to_pydatetime() + timedelta(hours=23)
        rows = inputs.iloc[places].reset_index(drop=True)
        records.append(batch_of(schema, rows, [answers[p] for p in places], at, version=by.champion.version))
        items = [OutcomeItem(prediction_id=f"{records[-1].id}-{n}", outcome=counts[p]) for n, p in enumerate(places)]
        told[BEGIN + WEEK * ((at - BEGIN) // WEEK + 1)] += items
    log_batches(url, records)
    for week, items in told.items():
        record(url, items, week.timestamp())


def look(url: str, champion: Champion, now: datetime) -> tuple[Finding, ...]:
    """What the checks of performance and of drift find in the week that ends at a moment."""
    window = read_window(url, champion.release.schema, now, WEEK, champion.config.monitoring.min_rows)
    return tuple(_found(check, Scene(champion, window, now, url)) for check in CHECKS)


def _found(check: CheckName, scene: Scene) -> Finding:
    checked = CHECK[check](scene)
    return Finding(
        model=scene.champion.config.name,
        version=scene.champion.version,
        check=check,
        since=scene.window.since,
        until=scene.window.until,
        looked=scene.now,
        state=checked.state,
        said=checked.said,
        figures=finite(checked.figures),
        columns=finite(checked.columns),
        named=checked.named,
    )


def watched(url: str, trained: Trained, hours: Hours) -> tuple[Finding, ...]:
    """What the weekly checks find of a champion that answers all hours and is never trained anew."""
    serve(url, trained, hours.between(BEGIN, END))
    return tuple(finding for now in weeks(BEGIN, END) for finding in look(url, trained.champion, now))


def weeks(since: datetime, until: datetime) -> Iterator[datetime]:
    """Ends of the weeks from `BEGIN` on that lie after `since` and not after `until`."""
    first = (since - BEGIN) // WEEK + 1
    return (BEGIN + WEEK * week for week in range(first, (until - BEGIN) // WEEK + 1))


@dataclass(frozen=True)
class Month:
    """A month that a champion answered.

    Attributes:
        begin: Its first moment.
        version: Who answered.
        truth: Shape (n,): what was asked for.
        frozen: What the first champion would have answered.
        answers: What was answered.
        trouble: The checks with trouble at its end, for which the training that follows was started.
        promoted: Whether the challenger of that training was better on the rows that neither was fitted on.
    """

    begin: datetime
    version: int
    truth: Any = field(repr=False)
    frozen: Answers = field(repr=False)
    answers: Answers = field(repr=False)
    trouble: tuple[str, ...] = ()
    promoted: bool = False

    def error(self, answers: Answers, metric: str = "mae") -> float:
        """What such answers are worth."""
        return regression_metrics(self.truth, answers.values)[metric]


def looped(url: str, first: Trained, hours: Hours, folder: Path) -> tuple[Month, ...]:
    """Answer month by month; where the last weeks hold trouble at a month's end, train on all that is known by then."""
    standing, months, versions = first, [], 1
    seen: list[Finding] = []
    begins = [BEGIN.replace(year=2011 + month // 12, month=month % 12 + 1) for month in range(6, 25)]
    for begin, end in pairwise(begins):
        served, by = hours.between(begin, end), standing
        serve(url, by, served)
        seen += [finding for now in weeks(begin, end) for finding in look(url, by.champion, now)]
        own = [finding for finding in seen if finding.version == by.champion.version]
        trouble = tuple(counted.check for counted in count_windows(bikes(), own, end) if counted.is_trouble)
        promoted = False
        if trouble:
            versions += 1
            challenger = Trained.on(hours.between(None, end), versions, folder)
            old, new = (one.answer(challenger.test) for one in (by, challenger))
            promoted = gained(old, new, challenger.test["cnt"]).low > 0
            standing = challenger if promoted else by
        truth = served.rows["cnt"].to_numpy(np.float64)
        sides = first.answer(served.rows), by.answer(served.rows)
        months.append(Month(begin, by.champion.version, truth, *sides, trouble, promoted))
    return tuple(months)


def joined(answers: Sequence[Answers]) -> Answers:
    """Answers one after the other."""
    return Answers(np.concatenate([one.values for one in answers]), None)
