"""How all models stand: from their YAMLs, the ledger and this home's record of runs; no engine is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from flows.record import LastRun, last_runs
from models.config import ModelConfig, Schedule, load_model, model_names
from models.errors import ConfigError
from stacks.ledger import Entry, open_ledger
from stacks.lifecycle import CROWNING, standing

DECISIONS: Final[Mapping[str, str]] = {
    "promote": "promoted",
    "keep": "kept",
    "reject": "rejected",
    "pending": "pending",
}


@dataclass(frozen=True)
class Overview:
    """One model; times are ISO 8601 in UTC.

    Attributes:
        champion: The version that serves.
        metric: What the model is judged by; None where its YAML is broken.
        score: The champion's figure of it on its test rows, as it was promoted.
        since: When it became champion.
        last_run: When the last run ended or, one that still runs, began.
        outcome: What became of that: a verdict, or `failed`, `interrupted`, `crashed`, `running`.
        told_by: Who says so: the `ledger`, which holds verdicts of all machines, or this `home`, which knows failures.
        next_run: When the model's schedule fires next.
        error: What is wrong with its YAML.
    """

    model: str
    champion: int | None
    metric: str | None
    score: float | None
    since: str | None
    last_run: str | None
    outcome: str | None
    told_by: str | None
    next_run: str | None
    error: str | None


def overview() -> list[Overview]:
    """All models by name: two queries, however many there are."""
    ledger = open_ledger()
    histories = ledger.histories()
    names = model_names()
    crowned = {name: promotion(histories.get(name, ())) for name in names}
    payloads = ledger.payloads([entry.sequence for entry in crowned.values() if entry])
    runs = last_runs()
    return [
        _row(name, histories.get(name, ()), payloads.get(entry.sequence, {}) if entry else {}, runs.get(name))
        for name, entry in crowned.items()
    ]


def promotion(entries: tuple[Entry, ...]) -> Entry | None:
    """The entry that promoted the champion, with what it was judged by; a rollback's entry holds none of that."""
    champion = standing(entries).champion
    own = [entry for entry in entries if entry.version == champion and entry.action == "promote"]
    return own[-1] if own else None


def _row(model: str, entries: tuple[Entry, ...], payload: Mapping[str, Any], run: LastRun | None) -> Overview:
    config, following, error = _described(model)
    metric = config.metric if config else None
    crowning = [entry for entry in entries if entry.action in CROWNING]
    champion = standing(entries).champion
    at, outcome, told_by = _last(entries, run)
    return Overview(
        model=model,
        champion=champion,
        metric=metric,
        score=payload.get("metrics", {}).get(metric),
        since=_iso(crowning[-1].time) if crowning and champion is not None else None,
        last_run=at,
        outcome=outcome,
        told_by=told_by,
        next_run=following,
        error=error,
    )


def _described(model: str) -> tuple[ModelConfig | None, str | None, str | None]:
    """Configuration, next run and what is wrong with either."""
    try:
        config = load_model(model).config
        return config, next_run(config.schedule) if config.schedule else None, None
    except (ConfigError, OSError) as error:
        return None, None, str(error)


def _last(entries: tuple[Entry, ...], run: LastRun | None) -> tuple[str | None, str | None, str | None]:
    judged = [entry for entry in entries if entry.action in DECISIONS]
    told = _iso(judged[-1].time) if judged else ""
    if run and run.at >= told[:19]:
        return run.at, run.outcome, "home"
    return (told, DECISIONS[judged[-1].action], "ledger") if judged else (None, None, None)


def next_run(schedule: Schedule, now: datetime | None = None) -> str | None:
    """When a schedule fires next after `now`; None for one that is not active.

    Raises:
        ConfigError: There is no such time or time zone.
    """
    if not schedule.active:
        return None
    try:
        moment = (now or datetime.now(UTC)).astimezone(ZoneInfo(schedule.timezone))
        return _iso(next(CronSim(schedule.cron, moment)))
    except (CronSimError, ValueError, KeyError, StopIteration):
        raise ConfigError(f"schedule: '{schedule.cron}' in {schedule.timezone} is no time that ever comes") from None


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
