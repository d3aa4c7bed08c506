"""What monitoring knows of a model, as `GET /monitoring/summary` tells it: counts and findings, no value of a row."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import anyio
import sqlalchemy as sa
from anyio import to_thread
from pydantic import AwareDatetime, Field

from bentos.messages import Message
from bentos.outcomes import count_received
from bentos.predictions import answered
from bentos.reply import Reply, fault, faults
from models.errors import GauntletError
from models.monitoring import CheckName, Severity
from stacks.alerts import read_alerts
from stacks.findings import ESTIMATED, Finding, State, deciding, newest_findings, read_findings
from stacks.ledger import TABLE, Ledger, database_url
from stacks.lifecycle import CROWNING

log = logging.getLogger("gauntlet.service")

HOURS: Final = 24
MOST_HOURS: Final = 8_760
MOST_COLUMNS: Final = 50
MOST_POINTS: Final = 100
TREND: Final = timedelta(days=90)
KEPT_SECONDS: Final = 5.0
PATIENCE: Final = 5.0
_SHARE: Final = 20  # a summary that took a second is kept for so many
_MOST_KEPT: Final = 64
_HOURS: Final = re.compile("[0-9]{1,4}")


class Traffic(Message):
    """How much a version answered in the hours."""

    version: int
    variant: str
    answers: int = Field(description="Requests; a batch is one.")
    rows: int


class Reigning(Message):
    """The champion."""

    version: int
    since: AwareDatetime


class Seen(Message):
    """The newest finding of a check."""

    check: CheckName
    state: State
    said: str
    version: int = Field(description="The champion that was looked at.")
    since: AwareDatetime = Field(description="Begin of the window.")
    until: AwareDatetime = Field(description="Its end.")
    looked: AwareDatetime
    age_seconds: float = Field(description="Since it was looked.")
    figures: dict[str, float]
    columns: dict[str, float] = Field(
        description=f"Of drift the effect, of quality the completeness; the {MOST_COLUMNS} that are worst."
    )
    named: list[str] = Field(description="What was found: columns, classes, groups or checks.")


class Point(Message):
    """The metric that decides in one window; null where it was not measured or estimated there."""

    since: AwareDatetime
    until: AwareDatetime
    version: int
    state: State
    value: float | None
    low: float | None
    high: float | None
    estimate: float | None = Field(description="Without labels, from the model's own probabilities.")
    estimate_low: float | None
    estimate_high: float | None
    holdout: float | None = Field(description="What the version had on its test rows.")
    limit: float | None = Field(description="From where on it is found.")
    labels: float | None


class OpenAlert(Message):
    """An alert that is not over."""

    subject: str
    severity: Severity
    said: str
    version: int
    raised: AwareDatetime
    told: AwareDatetime | None
    times: int


class Summary(Message):
    """What monitoring knows of a model."""

    model: str
    hours: int
    at: AwareDatetime = Field(description="When this was put together.")
    metric: str = Field(description="The metric that decides.")
    champion: Reigning | None
    traffic: list[Traffic]
    outcomes: int = Field(description="Outcomes received in the hours.")
    findings: list[Seen]
    trend: list[Point] = Field(description=f"{TREND.days} days up to the newest window, {MOST_POINTS} points at most.")
    alerts: list[OpenAlert] = Field(description="Those that are open, the newest first.")


def summarise(ledger: Ledger, model: str, metric: str, hours: int, now: datetime | None = None) -> Summary:
    """Put together what monitoring knows of a model; the database counts, no prediction is read.

    Args:
        ledger: Whose database is read; it is not changed.
        model: Name of the model.
        metric: The metric that decides.
        hours: How far back answers and outcomes are counted, 1 to 8,760.
        now: End of these hours; this moment when left out.

    Raises:
        WorkError: The database cannot be used, or would count for longer than 10 s.
    """
    until = now or datetime.now(UTC)
    since = until - timedelta(hours=hours)
    newest = newest_findings(ledger, [model])
    still_open = [alert for alert in reversed(read_alerts(ledger, model, since=until)) if alert.recovered is None]
    shown = ("subject", "severity", "said", "version", "raised", "told", "times")
    traffic = answered(ledger, model, since, until)
    return Summary(
        model=model,
        hours=hours,
        at=until,
        metric=metric,
        champion=_champion(ledger, model),
        traffic=[Traffic(version=t.version, variant=t.variant, answers=t.answers, rows=t.rows) for t in traffic],
        outcomes=count_received(ledger, model, since, until),
        findings=[_seen(finding, until) for finding in newest],
        trend=_trend(ledger, model, metric, newest),
        alerts=[OpenAlert(**{name: getattr(a, name) for name in shown}) for a in still_open],
    )


def worst_columns(finding: Finding) -> dict[str, float]:
    """The columns of a finding that say most: the largest effects, the smallest completeness; 50 at most."""
    ordered = sorted(finding.columns.items(), key=lambda item: item[1], reverse=finding.check != "quality")
    return dict(ordered[:MOST_COLUMNS])


@dataclass
class _Kept:
    reply: Reply
    until: float


@dataclass
class Summaries:
    """Summaries as replies, put together one at a time, and kept for a while: asking often costs the database nothing.

    Attributes:
        clock: Seconds that never fall.
    """

    clock: Callable[[], float] = time.monotonic
    _kept: dict[tuple[str, int], _Kept] = field(default_factory=dict)
    _turn: anyio.Lock | None = None

    async def reply(self, model: str, metric: str, hours: str | None) -> Reply:
        """The summary of a model.

        Args:
            model: Name of the model.
            metric: The metric that decides.
            hours: How far back, as the query has it.
        """
        asked = _asked(hours)
        if asked is None:
            why = f"Input should be a whole number from 1 to {MOST_HOURS}"
            return faults(422, [(["hours"], why, "hours")], place="query")
        self._turn = self._turn or anyio.Lock()
        async with self._turn:
            kept = self._kept.get((model, asked))
            if kept is None or kept.until <= self.clock():
                begun = self.clock()
                told = await to_thread.run_sync(partial(_told, model, metric, asked))
                took = self.clock() - begun
                kept = self._keep((model, asked), told, begun + took + max(KEPT_SECONDS, _SHARE * took))
            return kept.reply

    def _keep(self, key: tuple[str, int], reply: Reply, until: float) -> _Kept:
        while len(self._kept) >= _MOST_KEPT and key not in self._kept:
            del self._kept[min(self._kept, key=lambda each: self._kept[each].until)]
        self._kept[key] = _Kept(reply, until)
        return self._kept[key]


def _asked(hours: str | None) -> int | None:
    """The hours that a query names; None where it is no such number."""
    if hours is None:
        return HOURS
    number = int(hours) if _HOURS.fullmatch(hours) else 0
    return number if 1 <= number <= MOST_HOURS else None


def _told(model: str, metric: str, hours: int) -> Reply:
    try:
        summary = summarise(Ledger(database_url(), patience=PATIENCE), model, metric, hours)
    except GauntletError as error:
        log.error("the summary of %s cannot be told: %s", model, error)
        return fault(
            503,
            "the summary cannot be told just now; fewer hours are counted sooner",
            "database_unavailable",
            retry_after=5,
        )
    return Reply(200, summary.model_dump_json().encode())


def _champion(ledger: Ledger, model: str) -> Reigning | None:
    query = sa.select(TABLE.c.version, TABLE.c.time).where(TABLE.c.model == model, TABLE.c.action.in_(CROWNING))
    with ledger.peeking() as connection:
        if connection is None or not sa.inspect(connection).has_table(TABLE.name):
            return None
        row = connection.execute(query.order_by(TABLE.c.sequence.desc()).limit(1)).first()
    return Reigning(version=row.version, since=datetime.fromisoformat(row.time)) if row else None


def _seen(finding: Finding, now: datetime) -> Seen:
    shown = ("check", "state", "said", "version", "since", "until", "looked", "figures")
    return Seen(
        **{name: getattr(finding, name) for name in shown},
        age_seconds=(now - finding.looked).total_seconds(),
        columns=worst_columns(finding),
        named=list(finding.named[:MOST_COLUMNS]),
    )


def _trend(ledger: Ledger, model: str, metric: str, newest: tuple[Finding, ...]) -> list[Point]:
    last = next((finding.until for finding in newest if finding.check == "performance"), None)
    if last is None:
        return []
    windows = read_findings(ledger, model, since=last - TREND, until=last, checks=["performance"])
    return [_point(finding, metric) for finding in windows[-MOST_POINTS:]]


def _point(finding: Finding, metric: str) -> Point:
    figures = finding.figures
    name = deciding(figures, metric)
    return Point(
        since=finding.since,
        until=finding.until,
        version=finding.version,
        state=finding.state,
        value=figures.get(name or ""),
        low=figures.get(f"{name}_low"),
        high=figures.get(f"{name}_high"),
        estimate=figures.get(f"{ESTIMATED}{name}"),
        estimate_low=figures.get(f"{ESTIMATED}{name}_low"),
        estimate_high=figures.get(f"{ESTIMATED}{name}_high"),
        holdout=figures.get("holdout"),
        limit=figures.get("limit"),
        labels=figures.get("labels"),
    )
